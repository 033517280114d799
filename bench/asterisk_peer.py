"""Asterisk as a peer of benches, installed by `scripts/peers`.

It is configured for speed: only the modules needed to play a call, no console, log or call records,
and a recording in the codec of the call.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.report import missing
from tests.peers.asterisk import Asterisk, asterisk, why_missing

MODULES = (
    "res_timing_timerfd",
    "res_sorcery_config",
    "res_sorcery_memory",
    "res_sorcery_astdb",
    "res_geolocation",
    "res_statsd",
    "res_pjproject",
    "res_pjsip",
    "res_pjsip_pubsub",
    "res_pjsip_session",
    "res_pjsip_sdp_rtp",
    "res_pjsip_caller_id",
    "res_rtp_asterisk",
    "chan_pjsip",
    "codec_alaw",
    "codec_ulaw",
    "format_pcm",
    "app_playback",
    "pbx_config",
)

PJSIP = """\
[transport]
type = transport
protocol = udp
bind = 127.0.0.1:{sip}
[carrier]
type = aor
contact = sip:127.0.0.1:{carrier}
[carrier]
type = endpoint
transport = transport
context = default
disallow = all
allow = alaw
aors = carrier
direct_media = no
media_address = 127.0.0.1
bind_rtp_to_media_address = yes
"""


@dataclass(frozen=True, slots=True)
class Caller:
    """A running Asterisk that places calls and plays `clip`, a path inside its chroot."""

    asterisk: Asterisk
    clip: str

    @property
    def pid(self) -> int:
        """The id of the process to measure."""
        return self.asterisk.pid

    def call(self, number: str) -> None:
        """Places a call that plays the clip and hangs up."""
        self.asterisk.ask(
            "Originate",
            Channel=f"PJSIP/{number}@carrier",
            Application="Playback",
            Data=self.clip,
            CallerID="02191000000",
            Async="true",
        )

    def running(self) -> int:
        """Number of calls that ring or run."""
        return int(self.asterisk.ask("CoreStatus")["CoreCurrentCalls"])


def require() -> None:
    """Ends the bench if Asterisk can't run here."""
    if sentence := why_missing():
        missing(sentence)


@contextmanager
def calling(carrier: int, clip: Path) -> Iterator[Caller]:
    """Runs Asterisk during the block.

    It sends calls to the UDP port `carrier` of 127.0.0.1, and plays `clip`, a raw A-law file.
    """
    with asterisk(MODULES, {"pjsip.conf": PJSIP}, {"carrier": carrier}) as running:
        shutil.copyfile(clip, running.folder / "clip.alaw")
        yield Caller(running, f"{running.inside}/clip")
