"""Caller and callee as the carrier wants them: caller id, identity headers, number format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bitel.dialer.trunk import phone_parameter
from bitel.domain.phone_numbers import national
from bitel.sip.grammar import host_in_uri

Identification = Literal["from", "pai", "ppi", "rpid"]
"""The header that names the caller: From alone, P-Asserted-Identity (within a trust domain),
P-Preferred-Identity (RFC 3325 §9), or Remote-Party-ID (a draft that stayed one)."""

ANONYMOUS = "sip:anonymous@anonymous.invalid"
"""What From says of a caller who wants privacy (RFC 3323 §4.1.1.3)."""


class CallerIds:
    """Chooses a caller id for each call.

    By the longest prefix of the callee's number in `by_prefix`; else calls are spread evenly over
    `pool`. All attempts of a call get the same one, also after a restart, and when others were
    added to the pool or removed from it in between (rendezvous hashing).
    """

    def __init__(
        self, pool: Sequence[str] = (), by_prefix: Mapping[str, str] | None = None
    ) -> None:
        self._pool = tuple(pool) or ("",)
        self._by_prefix = sorted((by_prefix or {}).items(), key=lambda item: -len(item[0]))

    def choose(self, e164: str, call_id: str) -> str:
        """The caller id of the call `call_id` to `e164`; "" where there is none."""
        for prefix, caller_id in self._by_prefix:
            if e164.startswith(prefix):
                return caller_id
        if len(self._pool) == 1:
            return self._pool[0]
        return max(self._pool, key=lambda caller_id: _weight(call_id, caller_id))


def _weight(call_id: str, caller_id: str) -> bytes:
    return hashlib.blake2b(f"{call_id} {caller_id}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Identity:
    """The headers of an INVITE that say who calls."""

    from_uri: str
    display_name: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def identity(
    caller_id: str,
    host: str,
    by: Identification = "from",
    privacy: bool = False,
    user_phone: bool = False,
) -> Identity:
    """The headers for `caller_id` at `host`; "" is no particular caller.

    With `user_phone` the URI of From has `;user=phone`, if `caller_id` is a telephone number. With
    `privacy` the person called does not learn it (RFC 3323 §4.2, `id` of RFC 3325 §9.3); the
    carrier still does, by the other headers.
    """
    uri = f"sip:{caller_id or 'anonymous'}@{host_in_uri(host)}"
    headers: tuple[tuple[str, str], ...] = ()
    if caller_id and by == "pai":
        headers = (("P-Asserted-Identity", f"<{uri}>"),)
    elif caller_id and by == "ppi":
        headers = (("P-Preferred-Identity", f"<{uri}>"),)
    elif caller_id and by == "rpid":
        hidden = "full" if privacy else "off"
        party = f"<{uri}>;party=calling;screen=yes;privacy={hidden}"
        headers = (("Remote-Party-ID", party),)
    if privacy:
        return Identity(ANONYMOUS, "Anonymous", (*headers, ("Privacy", "id")))
    return Identity(uri + phone_parameter(caller_id, user_phone), headers=headers)


NumberFormat = Literal["e164", "digits", "national"]


@dataclass(frozen=True, slots=True)
class NumberRule:
    """Numbers that begin with `prefix` lose `strip` characters in front, then gain `add`."""

    prefix: str
    strip: int = 0
    add: str = ""


def dialled_number(
    e164: str, format: NumberFormat = "e164", rules: Sequence[NumberRule] = ()
) -> str:
    """`+98912…` as the carrier wants it: `+98912…`, `98912…`, `0912…`, or by a rule.

    The rule with the longest prefix decides; a number that none fits is written in `format`.
    """
    fitting = [rule for rule in rules if e164.startswith(rule.prefix)]
    if fitting:
        rule = max(fitting, key=lambda rule: len(rule.prefix))
        return rule.add + e164[rule.strip :]
    if format == "digits":
        return e164.removeprefix("+")
    return national(e164) if format == "national" else e164
