"""The head of a message: which header each of its lines is (RFC 3261 §7.3).

A far end sends the same headers in the same order again and again. So the names of all lines
together are the key of a cache, whose values are the `HeaderLayout` of such a head.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter

MAX_HEADERS = 128

_COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
}
_ESSENTIAL = ("via", "from", "to", "call-id", "cseq")
_FIELD = re.compile(r"\r\n([^\r\n:]*):")
_FOLD = re.compile(r"\n[ \t]+")
_HEADER_NAME = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]{1,1024}\Z")

Essentials = Callable[[list[str]], tuple[str, str, str, str, str]]


class HeadError(ValueError):
    """Header lines that are too many, or are none."""


class HeaderLayout:
    """Which header is in which line. Names are in lower case and full length.

    `places` are the lines of each header. `essentials` takes the first Via, From, To, Call-ID and
    CSeq out of the lines; it is None where there are none, or more than one of those but Via.
    `is_folded` says that lines go on with the one before, and have to be joined first.
    """

    __slots__ = ("essentials", "is_folded", "places")

    def __init__(self, places: dict[str, tuple[int, ...]], *, is_folded: bool = False) -> None:
        self.places = places
        self.is_folded = is_folded
        single = all(len(places.get(name, ())) == 1 for name in _ESSENTIAL[1:])
        whole = single and "via" in places
        self.essentials: Essentials | None = (
            itemgetter(*(places[name][0] for name in _ESSENTIAL)) if whole else None
        )


def split_head(text: str) -> tuple[str, HeaderLayout, list[str]]:
    """First line, layout, and values with the space around them, of a head without its last CRLF.

    Raises `HeadError`.
    """
    fields = _FIELD.split(text)
    between = "".join(fields[::2])
    if "\n" not in between and "\r" not in between and "\0" not in text:
        layout = _layout(tuple(fields[1::2]))
        if not layout.is_folded:
            return fields[0], layout, fields[2::2]
    fields = _FIELD.split(_tidied(text))
    return fields[0], _layout(tuple(fields[1::2])), fields[2::2]


def _tidied(text: str) -> str:
    """A head with every header in a line of its own, that ends with CRLF and is not empty."""
    # A quoted string may hold one, escaped (RFC 3261 §25.1).
    if "\0" in text.replace("\\\0", ""):
        raise HeadError("a message's headers hold a zero byte")
    unfolded = _FOLD.sub(" ", text.replace("\r\n", "\n").replace("\r", " "))
    first, *lines = unfolded.split("\n")
    # What follows an empty line goes on with nothing, for all that its first character says.
    if len(lines) > MAX_HEADERS:
        raise HeadError(f"a message has more than {MAX_HEADERS} header lines")
    if not all(":" in line for line in lines if line):
        raise HeadError("a header line has no colon")
    return "\r\n".join([first, *(line.lstrip() for line in lines if line)])


@lru_cache(maxsize=128)
def _layout(written: tuple[str, ...]) -> HeaderLayout:
    """The layout of lines with these names."""
    if any(name[:1] in (" ", "\t") for name in written):
        return HeaderLayout({}, is_folded=True)
    if len(written) > MAX_HEADERS:
        raise HeadError(f"a message has more than {MAX_HEADERS} header lines")
    places: dict[str, tuple[int, ...]] = {}
    for place, name in enumerate(map(_canonical, written)):
        places[name] = (*places.get(name, ()), place)
    return HeaderLayout(places)


def _canonical(written: str) -> str:
    """A header's name in lower case and full length (§7.3.1)."""
    name = written.strip().lower()
    if not _HEADER_NAME.match(name):
        raise HeadError("a header's name is not a token")
    return _COMPACT.get(name, name)
