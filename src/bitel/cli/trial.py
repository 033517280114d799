"""Commands for trials without a service: `bitel dial`, `bitel phone` and `bitel demo`."""

from __future__ import annotations

import asyncio
import errno
import resource
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from bitel.cli import common
from bitel.errors import BitelError, InvalidServerError, SettingsError

if TYPE_CHECKING:
    from bitel.dialer.config import SipTrunkConfig
    from bitel.dialer.playlist import Codec, Playlist
    from bitel.dialer.sip_dialer import SipTrunkDialer
    from bitel.domain.attempts import AttemptResult, DialRequest
    from bitel.domain.menus import Menu
    from bitel.rtp.shared_clip import SharedClip
    from bitel.settings import Settings
    from bitel.sip.grammar import Address
    from bitel.test_phone.phone import Entry, PhoneConfig

SAMPLE_SECONDS = 6.0


def dial(
    number: common.Number,
    dialer: Annotated[
        str | None, Option(metavar="ID", help="The dialer; the first one by default.")
    ] = None,
    voice: Annotated[
        Path | None, Option(metavar="FILE", help="The audio file to play; a sample by default.")
    ] = None,
    full: common.Full = False,
    config: common.Config = None,
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
    result = uvloop.run(_dial(trunk_config, e164, voice, full=full))
    typer.echo(_summary(e164, result))
    if result.outcome is not Outcome.ANSWERED:
        raise typer.Exit(1)


def _config(settings: Settings, dialer_id: str | None) -> SipTrunkConfig:
    from bitel.dialer.config import sip_trunk_config

    if not settings.dialers:
        raise SettingsError("the settings name no dialer; add one with [[dialers]]")
    found = settings.dialers[0] if dialer_id is None else settings.dialer(dialer_id)
    if found is None:
        names = ", ".join(each.id for each in settings.dialers)
        raise InvalidServerError(f"no dialer is named {dialer_id!r}; there is {names}")
    # A running service does registration and OPTIONS.
    return replace(sip_trunk_config(found, settings.region), register=False, ping_interval=0.0)


async def _dial(
    config: SipTrunkConfig, e164: str, voice: Path | None, *, full: bool
) -> AttemptResult:
    from bitel.domain.attempts import DialRequest
    from bitel.domain.ids import new_id

    async def on_answered(at: float) -> bool:
        return True

    with tempfile.TemporaryDirectory(prefix="bitel-dial-") as folder:
        playing = await _Playing.prepare(voice, Path(folder))
        dialer = await _start(config, playing, _MessagePrinter(full=full))
        request = DialRequest(new_id(time.time()), new_id(time.time()), e164, "voice")
        call = asyncio.create_task(dialer.dial(request, on_answered))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:  # Ctrl-C ends the call too, not just the program
            dialer.cancel(request.attempt_id)
            await asyncio.wait([call], timeout=5)
            raise
        finally:
            await dialer.close()


async def _start(
    config: SipTrunkConfig, playing: _Playing, observer: _MessagePrinter
) -> SipTrunkDialer:
    """Start a dialer at the configured port, or at a free one if that is in use."""
    from bitel.dialer.sip_dialer import SipTrunkDialer

    dialer = SipTrunkDialer(config, playing, time.time, observer=observer)
    try:
        await dialer.start()
    except BitelError as fault:
        taken = isinstance(fault.__cause__, OSError) and fault.__cause__.errno == errno.EADDRINUSE
        if not taken:
            raise
        elsewhere = replace(config, bind=(config.bind[0], 0), public_port=None)
        dialer = SipTrunkDialer(elsewhere, playing, time.time, observer=observer)
        await dialer.start()
    return dialer


@dataclass
class _Playing:
    """The audio of the call: a file, in both G.711 laws."""

    clips: Mapping[str, Playlist]

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

    async def for_request(
        self, request: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        return self.clips

    async def for_menu(
        self, menu: Menu, codecs: Sequence[Codec]
    ) -> Mapping[str, Mapping[str | float, SharedClip]]:
        return {}  # such a call has no menu

    async def for_machine(
        self, recording_id: str | None, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        return {}  # or answering machines


class _MessagePrinter:
    """Prints the SIP messages of the call as they are sent and received."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self._sip_call_ids: set[bytes] = set()

    def invited(self, request: DialRequest, sip_call_id: str) -> None:
        self._sip_call_ids.add(sip_call_id.encode())

    def tap(
        self, direction: Literal["in", "out"], data: bytes, address: Address, at: float
    ) -> None:
        from bitel.dialer import sip_trace

        # A public port also receives unrelated messages.
        if sip_trace.sip_call_id(data) in self._sip_call_ids:
            traced = sip_trace.Traced.of(direction, data, address, at)
            typer.echo(sip_trace.in_full(traced) if self._full else sip_trace.arrow(traced))

    def over(self, request: DialRequest, result: AttemptResult | None) -> None:
        pass


def _summary(e164: str, result: AttemptResult) -> str:
    outcome = result.outcome.value
    if result.answered_at is not None:
        after = result.answered_at - result.started_at
        lasted = result.ended_at - result.answered_at
        return f"{e164}: {outcome} after {after:.1f} s, for {lasted:.1f} s"
    detail = f" ({result.detail})" if result.detail else ""
    return f"{e164}: {outcome}{detail}"


def phone(
    listen: Annotated[str, Option(metavar="HOST:PORT", help="Where to take calls.")],
    record: Annotated[
        Path | None, Option(metavar="DIR", help="Write each call's audio as a WAV there.")
    ] = None,
    rule: Annotated[
        list[str] | None,
        Option(
            metavar="PATTERN=BEHAVIOUR",
            help="What a number does: answer[:after=S][:hangup=S], busy, reject:CODE, ring, "
            "silent; or one after the other, as in busy*2,answer. PATTERN is a glob on the number "
            "as the carrier gets it (*9121234567); the first match wins, and without one the phone "
            "answers after 1 s.",
        ),
    ] = None,
    log: Annotated[
        Path | None, Option(metavar="FILE", help="Append what happens, as JSON lines.")
    ] = None,
    public_address: Annotated[
        str, Option(metavar="HOST:PORT", help="What Contact says, where not --listen.")
    ] = "",
    tls_certificate: Annotated[
        Path | None,
        Option(metavar="FILE", help="Take calls by TLS too, at the port after --listen's."),
    ] = None,
    tls_key: Annotated[
        Path | None, Option(metavar="FILE", help="The certificate's key, if not in its file.")
    ] = None,
    quiet: Annotated[bool, Option("--quiet", help="Print no line for each call.")] = False,
) -> None:
    """Take SIP calls: answer, be busy, ring, or stay silent, by number."""
    from bitel.settings import split_address
    from bitel.sip_transport.tls import TlsFileError, TlsFiles
    from bitel.test_phone.phone import PhoneConfig
    from bitel.test_phone.rules import RuleError, parse_rules

    try:
        config = PhoneConfig(
            listen=split_address(listen),
            rules=parse_rules(rule or []),
            record=record,
            log=log,
            public_address=split_address(public_address) if public_address else None,
            tls=TlsFiles(certificate=tls_certificate, key=tls_key),
        )
    except RuleError as error:
        raise typer.BadParameter(str(error), param_hint="--rule") from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    # Each call has a socket, so the limit of open files is raised to its maximum.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        asyncio.run(_serve(config, quiet=quiet))
    except TlsFileError as error:
        raise SettingsError(str(error)) from None
    except OSError as error:
        fault = f"write to {error.filename}" if error.filename else f"listen on {listen}"
        raise SettingsError(f"the phone can't {fault}: {error.strerror}") from None


async def _serve(config: PhoneConfig, *, quiet: bool) -> None:
    """Run the phone until SIGTERM or SIGINT."""
    from bitel.sip.grammar import host_in_uri
    from bitel.test_phone.phone import Phone

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    phone = Phone(config, on_entry=None if quiet else _print)
    await phone.start()
    host, port = phone.address
    typer.echo(f"phone ready on {host_in_uri(host)}:{port}", err=True)
    await stop.wait()
    await phone.stop()


def _print(entry: Entry) -> None:
    details = "".join(f" {name}={value}" for name, value in entry.details.items())
    line = f"{entry.number} {entry.event}{details}"
    # The number is untrusted: control characters must not be printed on the terminal.
    typer.echo(ascii(line)[1:-1], err=True)


def demo(
    heard: Annotated[
        Path, Option(help="Where to leave the recording of what the first number heard.")
    ] = Path("heard.wav"),
) -> None:
    """Play the whole service on this machine, with the built-in phone for a carrier.

    Takes under a minute. The exit status is 0 only if every call ended as it should.
    """
    from rich.console import Console

    from bitel.demo.play import play

    raise typer.Exit(0 if play(heard, Console()) else 1)
