"""Asterisk's app_amd on the same audio: the peer of `bench.answering_machines`.

Each greeting is a file that one half of a local channel plays, while the other half runs `AMD()`.
Calls take as long as they do in life, so many run at once. `scripts/peers` installs Asterisk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.line_audio import Call
from bitel.answering_machine import DetectorSettings
from tests.peers.asterisk import Asterisk, asterisk

AT_ONCE = 40  # calls
POLL = 0.02  # seconds
PATIENCE = 30.0  # seconds for a call
SILENCE_LEVEL = 256  # Asterisk's default, of 32767

MODULES = (
    "res_timing_timerfd",
    "codec_alaw",
    "codec_ulaw",
    "format_pcm",
    "app_playback",
    "app_amd",
    "app_userevent",
    "pbx_config",
)
FILES = {
    "extensions.conf": """\
[answerer]
exten => _X.,1,Answer()
 same => n,Playback({inside}/${{EXTEN}})
 same => n,Wait(8)
[caller]
exten => _X.,1,UserEvent(Begun,Call: ${{EXTEN}})
 same => n,AMD({arguments})
 same => n,UserEvent(Decided,Call: ${{EXTEN}},Status: ${{AMDSTATUS}},Cause: ${{AMDCAUSE}})
 same => n,Hangup()
""",
    "amd.conf": "[general]\n",
}


def own_times(settings: DetectorSettings) -> str:
    """The arguments of AMD() that are nearest to our settings; its level of silence is fixed."""
    milliseconds = [
        settings.initial_silence,
        settings.greeting,
        settings.after_greeting,
        settings.total,
        settings.shortest_word,
        settings.between_words,
    ]
    words = [f"{1000 * each:.0f}" for each in milliseconds]
    return ",".join([*words, str(settings.most_words), str(SILENCE_LEVEL)])


@dataclass(frozen=True, slots=True)
class PeerDecision:
    """What app_amd says of a call: HUMAN, MACHINE, NOTSURE or HANGUP; seconds since the answer."""

    status: str
    cause: str
    seconds: float


def decide(calls: Sequence[Call], arguments: str = "") -> list[PeerDecision | None]:
    """app_amd's decision on each call, None where there is none. Raises RuntimeError.

    `arguments` are those of AMD(); without any, it has the defaults of Asterisk.
    """
    with asterisk(MODULES, FILES, {"arguments": arguments}) as peer:
        for number, call in enumerate(calls):
            kind = "alaw" if call.law == "A" else "ulaw"
            (peer.folder / f"{_extension(number)}.{kind}").write_bytes(call.without_loss())
        peer.ask("Events", EventMask="user")
        return _run(peer, len(calls))


def _extension(number: int) -> str:
    return f"9{number:05}"


def _run(peer: Asterisk, count: int) -> list[PeerDecision | None]:
    began: dict[str, float] = {}
    decided: dict[str, PeerDecision] = {}
    placed: dict[str, float] = {}
    given_up: set[str] = set()
    read = 0
    while len(decided) + len(given_up) < count:
        while len(placed) < count and len(placed) - len(decided) - len(given_up) < AT_ONCE:
            name = _extension(len(placed))
            placed[name] = time.monotonic()
            peer.ask(
                "Originate",
                Channel=f"Local/{name}@answerer/n",
                Context="caller",
                Exten=name,
                Priority="1",
                Async="true",
            )
        time.sleep(POLL)
        peer.ask("Ping")
        now = time.monotonic()
        for event in peer.events[read:]:
            if event["Event"] != "UserEvent":
                continue
            name = event.get("Call", "")
            if event["UserEvent"] == "Begun":
                began[name] = now
            elif event["UserEvent"] == "Decided" and name in began:
                seconds = now - began[name]
                decided[name] = PeerDecision(event["Status"], event.get("Cause", ""), seconds)
        read = len(peer.events)
        given_up |= {
            name for name, at in placed.items() if name not in decided and now - at > PATIENCE
        }
    return [decided.get(_extension(number)) for number in range(count)]
