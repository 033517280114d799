"""Recipients: the persons that a batch calls, each with a number and what is particular to them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})


class Recipient(NamedTuple):
    """A person to call."""

    phone_number: str
    """As the client wrote it."""
    reference: str | None = None
    """The client's own name for the call, up to 100 characters."""
    variables: Mapping[str, str] = NO_VARIABLES
    """Values of the variables of a text, by name."""
    time_zone: str | None = None
    """An IANA name such as Asia/Tehran; None: as the number says."""
