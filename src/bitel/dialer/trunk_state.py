"""How a carrier's address stands, for whoever watches over the dialer."""

from __future__ import annotations

from dataclasses import dataclass

from bitel.sip.grammar import Address


@dataclass(frozen=True, slots=True)
class TrunkState:
    """One address of one trunk, or a trunk that has none yet.

    `trunk` is the trunk as the settings name it, `address` where it is reached, None until DNS
    has said so. `rests`: it asked to be left alone for a while; `usable`: it neither rests nor
    has it stopped answering. `registered` is None where nobody wants to be. `answered_at` is when
    it last answered anything, in Unix seconds; None: never yet.
    """

    trunk: str
    address: Address | None
    usable: bool
    rests: bool
    registered: bool | None
    answered_at: float | None
