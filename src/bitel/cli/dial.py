"""`bitel dial`: one test call from this terminal, with neither service nor database."""

from __future__ import annotations

import asyncio
import errno
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitel.cli.options import ConfigOption
from bitel.errors import BitelError, InvalidServerError, SettingsError

if TYPE_CHECKING:
    from bitel.dialer.config import SipTrunkConfig
    from bitel.dialer.playlist import Codec, Playlist
    from bitel.dialer.sip_dialer import SipTrunkDialer
    from bitel.dialing.dialer import DialRequest
    from bitel.domain.attempts import AttemptResult
    from bitel.settings import Settings
    from bitel.sip.grammar import Address

SAMPLE_SECONDS = 6.0


def dial(
    number: Annotated[str, typer.Argument(metavar="NUMBER", show_default=False)],
    dialer: Annotated[
        str | None, typer.Option(metavar="ID", help="The dialer; the first one by default.")
    ] = None,
    voice: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The audio file to play; a sample by default."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show each message as a whole.")] = False,
    config: ConfigOption = None,
) -> None:
    """Place one test call and show its SIP messages as they come. Succeeds if it was answered.

    It needs no service, and goes beside one that runs: from another port, without registering.
    The call is neither stored nor billed.
    """
    import uvloop

    from bitel import settings
    from bitel.domain.attempts import Outcome
    from bitel.domain.phone_numbers import to_e164
    from bitel.observability import logging

    loaded = settings.load(config)
    logging.configure(loaded.log_level, loaded.log_json)
    trunk_config = _config(loaded, dialer)
    e164 = to_e164(number, loaded.region, loaded.extra_prefixes)
    if voice is not None and not voice.is_file():
        raise typer.BadParameter(f"{voice} is not a file", param_hint="--voice")
    attempted = uvloop.run(_dial(trunk_config, e164, voice, full=full))
    typer.echo(_summary(e164, attempted))
    if attempted.outcome is not Outcome.ANSWERED:
        raise typer.Exit(1)


def _config(settings: Settings, dialer_id: str | None) -> SipTrunkConfig:
    from bitel.dialer.config import sip_trunk_config

    if not settings.dialers:
        raise SettingsError("the settings name no dialer; add one with [[dialers]]")
    found = settings.dialers[0] if dialer_id is None else settings.dialer(dialer_id)
    if found is None:
        names = ", ".join(each.id for each in settings.dialers)
        raise InvalidServerError(f"no dialer is named {dialer_id!r}; there is {names}")
    # The carrier's way to us belongs to the service, whose place we don't take.
    return replace(sip_trunk_config(found, settings.region), register=False, ping_interval=0.0)


async def _dial(
    config: SipTrunkConfig, e164: str, voice: Path | None, *, full: bool
) -> AttemptResult:
    from bitel.dialing.dialer import DialRequest
    from bitel.domain.ids import new_id

    with tempfile.TemporaryDirectory(prefix="bitel-dial-") as folder:
        playing = await _Playing.prepare(voice, Path(folder))
        dialer = await _start(config, playing, _Ladder(full=full))
        try:
            order = DialRequest(new_id(time.time()), new_id(time.time()), e164, "voice")
            return await _dial_until_interrupted(dialer, order)
        finally:
            await dialer.close()


async def _dial_until_interrupted(dialer: SipTrunkDialer, order: DialRequest) -> AttemptResult:
    """Ctrl-C ends the call too, not just the program."""

    async def heard(at: float) -> bool:
        return True

    call = asyncio.create_task(dialer.dial(order, heard))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        dialer.call_off(order.attempt_id)
        await asyncio.wait([call], timeout=5)
        raise


async def _start(config: SipTrunkConfig, playing: _Playing, ladder: _Ladder) -> SipTrunkDialer:
    """A dialer at the configured port, or at a free one where a service has that."""
    from bitel.dialer.sip_dialer import SipTrunkDialer

    dialer = SipTrunkDialer(config, playing, time.time, observer=ladder)
    try:
        await dialer.start()
    except BitelError as fault:
        taken = isinstance(fault.__cause__, OSError) and fault.__cause__.errno == errno.EADDRINUSE
        if not taken:
            raise
        elsewhere = replace(config, bind=(config.bind[0], 0), public_port=None)
        dialer = SipTrunkDialer(elsewhere, playing, time.time, observer=ladder)
        await dialer.start()
    return dialer


class _Playing:
    """What is played: one file, in both laws."""

    def __init__(self, clips: Mapping[str, Playlist]) -> None:
        self._clips = clips

    @classmethod
    async def prepare(cls, voice: Path | None, folder: Path) -> _Playing:
        from bitel.recordings.decode import decode
        from bitel.recordings.limits import DecodeLimits
        from bitel.recordings.sample import write_sample
        from bitel.rtp.shared_clip import read_clip

        if voice is None:
            voice = folder / "sample.wav"
            write_sample(voice, SAMPLE_SECONDS)
        decoded = await decode(voice, folder, DecodeLimits())
        return cls({"PCMA": [read_clip(decoded.alaw)], "PCMU": [read_clip(decoded.ulaw)]})

    async def for_order(
        self, order: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        return self._clips


class _Ladder:
    """Shows the messages of the call as they come and go."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self._sip_call_ids: set[bytes] = set()

    def invited(self, order: DialRequest, sip_call_id: str) -> None:
        self._sip_call_ids.add(sip_call_id.encode())

    def tap(
        self, direction: Literal["in", "out"], data: bytes, address: Address, at: float
    ) -> None:
        from bitel.dialer import sip_trace

        # A port that faces the world hears from strangers too.
        if sip_trace.sip_call_id(data) in self._sip_call_ids:
            traced = sip_trace.Traced.of(direction, data, address, at)
            typer.echo(sip_trace.in_full(traced) if self._full else sip_trace.arrow(traced))

    def over(self, order: DialRequest, attempted: AttemptResult | None) -> None:
        pass


def _summary(e164: str, attempted: AttemptResult) -> str:
    outcome = attempted.outcome.value
    if attempted.answered_at is not None:
        after = attempted.answered_at - attempted.started_at
        lasted = attempted.ended_at - attempted.answered_at
        return f"{e164}: {outcome} after {after:.1f} s, for {lasted:.1f} s"
    detail = f" ({attempted.detail})" if attempted.detail else ""
    return f"{e164}: {outcome}{detail}"
