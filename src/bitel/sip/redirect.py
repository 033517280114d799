"""What a refusal says about another try: when (Retry-After), and elsewhere (a 3xx's Contacts)."""

from __future__ import annotations

import re

from bitel.sip.dialog import uri_of
from bitel.sip.grammar import GrammarError, parameter, split_address
from bitel.sip.message import Response

MAX_CONTACTS = 10
_SECONDS = re.compile(r"\s*([0-9]{1,10})\s*(?:[;(]|\Z)")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


def retry_after_of(response: Response) -> float | None:
    """The seconds of a Retry-After header (RFC 3261 §20.33); None where there is none to read."""
    seconds = _SECONDS.match(response.header("retry-after"))
    return float(seconds[1]) if seconds else None


def redirected_to(response: Response) -> tuple[str, ...]:
    """The URIs that a 3xx names, by falling q (§8.1.3.4), at most `MAX_CONTACTS` of them."""
    if not 300 <= response.code < 400:
        return ()
    values = response.values("contact")[: 4 * MAX_CONTACTS]
    uris = [uri_of(value) for value in sorted(values, key=_quality, reverse=True)]
    return tuple(dict.fromkeys(uri for uri in uris if uri))[:MAX_CONTACTS]


def _quality(contact: str) -> float:
    try:
        q = parameter(split_address(contact)[1], "q") or ""
    except GrammarError:
        return 0.0
    return float(q) if _QUALITY.match(q) else 1.0
