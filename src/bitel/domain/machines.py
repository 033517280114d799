"""What is done about answering machines in a call."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

LONGEST_GREETING: Final = 30
"""Seconds after which a message is played to a machine that gives no record tone."""
LONGEST_DECISION: Final = 8
"""Seconds from the answer until it is known at the latest that a machine has answered."""


class MachineDetection(StrEnum):
    """What a call does about machines."""

    FLAG = "flag"
    """It is noted whether a human or a machine has answered."""
    HANGUP = "hangup"
    """A call to a machine is ended."""
    MESSAGE = "message"
    """A machine's record tone is waited for, and a message is played there."""


def longest_message(seconds: float) -> float:
    """The longest that a call to a machine lasts with a message of so many seconds."""
    return LONGEST_DECISION + LONGEST_GREETING + seconds
