"""Caller id selection, caller identity headers (RFC 3325), and the format of dialled numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bitel.dialer.trunk import phone_parameter
from bitel.domain.phone_numbers import national
from bitel.sip.grammar import host_in_uri

Identification = Literal["from", "pai", "ppi", "rpid"]
"""The header that identifies the caller: From alone, P-Asserted-Identity (within a trust domain),
P-Preferred-Identity (RFC 3325 §9), or Remote-Party-ID (an expired draft)."""

ANONYMOUS = "sip:anonymous@anonymous.invalid"
"""From of an anonymous caller (RFC 3323 §4.1.1.3)."""


class CallerIds:
    """Chooses a caller id for each call.

    By the longest prefix of the callee's number in `by_prefix`, else evenly from `pool`. All
    attempts of a call get the same one, even after a restart and, by rendezvous hashing, after
    changes of the pool.
    """

    def __init__(
        self, pool: Sequence[str] = (), by_prefix: Mapping[str, str] | None = None
    ) -> None:
        self._pool = tuple(pool) or ("",)
        self._by_prefix = sorted((by_prefix or {}).items(), key=lambda item: -len(item[0]))

    def choose(self, e164: str, call_id: str) -> str:
        """The caller id of the call `call_id` to `e164`; "" without one."""
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
    """The headers of an INVITE that identify the caller."""

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
    """The headers for `caller_id` at `host`; "" for an anonymous caller.

    With `user_phone` the From URI of a telephone number has `;user=phone`. With `privacy` the
    carrier hides the number from the callee (RFC 3323 §4.2, `id` of RFC 3325 §9.3).
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
    """For numbers with `prefix`: remove the first `strip` characters, then prepend `add`."""

    prefix: str
    strip: int = 0
    add: str = ""


def dialled_number(
    e164: str, format: NumberFormat = "e164", rules: Sequence[NumberRule] = ()
) -> str:
    """A number as the carrier expects it: `+98912…`, `98912…`, `0912…`, or by a rule.

    The rule with the longest prefix applies; without one, `format`.
    """
    fitting = [rule for rule in rules if e164.startswith(rule.prefix)]
    if fitting:
        rule = max(fitting, key=lambda rule: len(rule.prefix))
        return rule.add + e164[rule.strip :]
    if format == "digits":
        return e164.removeprefix("+")
    return national(e164) if format == "national" else e164
