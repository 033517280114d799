"""The Reason header (RFC 3326): why a call was refused or ended."""

from __future__ import annotations

from collections.abc import Iterable

from bitel.sip.grammar import parameter, split_list

MAX_CAUSE = 127


def q850_cause(values: Iterable[str]) -> int | None:
    """The first Q.850 cause (0 to 127) among Reason header values; None where there is none."""
    for value in values:
        for item in split_list(value):
            protocol, _, parameters = item.partition(";")
            cause = parameter(parameters, "cause")
            if protocol.strip().upper() != "Q.850" or cause is None:
                continue
            if cause.isascii() and cause.isdigit() and len(cause) <= 3 and int(cause) <= MAX_CAUSE:
                return int(cause)
    return None


def names_analytics(values: Iterable[str]) -> bool:
    """Whether a Reason header says that call analytics blocked the call (ATIS-1000099 "603+").

    Its text begins with `v=analytics1`, as in `SIP;cause=603;text="v=analytics1;url=..."`.
    """
    return any("v=analytics1" in value.lower() for value in values)


def q850_reason(cause: int) -> str:
    """A Reason header's value for a Q.850 cause."""
    return f"Q.850;cause={cause}"
