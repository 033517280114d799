"""What the phone's own log says of calls: the truth that does not come from the service."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Seen:
    """A call as the phone saw it; times are Unix seconds."""

    number: str
    invited_at: float
    answered_at: float | None = None
    audio_at: float | None = None
    ended_at: float | None = None
    events: list[str] = field(default_factory=list)


def read(path: Path) -> Mapping[str, Sequence[Seen]]:
    """The calls of each number, in the order in which they came."""
    calls: dict[str, Seen] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["event"] == "invite":
            calls[entry["call"]] = Seen(entry["number"], entry["at"])
        if entry["call"] not in calls:
            continue
        call = calls[entry["call"]]
        call.events.append(entry["event"])
        match entry["event"]:
            case "answered":
                call.answered_at = entry["at"]
            # The phone takes packets until its BYE is answered; who has hung up hears none of them.
            case "audio" if "hangup" not in call.events:
                call.audio_at = entry["at"]
            case "end" | "rejected" | "cancel":
                call.ended_at = call.ended_at or entry["at"]
    by_number: dict[str, list[Seen]] = defaultdict(list)
    for call in sorted(calls.values(), key=lambda call: call.invited_at):
        by_number[call.number].append(call)
    return by_number


def called_again_after_audio(calls: Mapping[str, Sequence[Seen]]) -> list[str]:
    """The numbers that were called once more after somebody there had heard audio."""
    return [
        number for number, seen in calls.items() if any(earlier.audio_at for earlier in seen[:-1])
    ]


def in_two_calls_at_once(calls: Mapping[str, Sequence[Seen]]) -> list[str]:
    """The numbers whose next call came before the one before it was over."""
    return [
        number
        for number, seen in calls.items()
        if any(
            earlier.ended_at is None or later.invited_at < earlier.ended_at
            for earlier, later in itertools.pairwise(seen)
        )
    ]
