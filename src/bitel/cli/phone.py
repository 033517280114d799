"""`bitel phone`: a SIP callee for trying things out, in the foreground."""

from __future__ import annotations

import asyncio
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.errors import SettingsError

if TYPE_CHECKING:
    from bitel.test_phone.log import Entry
    from bitel.test_phone.phone import PhoneConfig


def phone(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to take calls.")],
    record: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each call's audio as a WAV there.")
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=BEHAVIOUR",
            help="What a number does: answer[:after=S][:hangup=S], busy, reject:CODE, ring, "
            "silent; or one after the other, as in busy*2,answer. PATTERN is a glob on the number "
            "as the carrier gets it (*9121234567); the first match wins, and without one the phone "
            "answers after 1 s.",
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append what happens, as JSON lines.")
    ] = None,
    public_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="What Contact says, where not --listen.")
    ] = "",
    tls_certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take calls by TLS too, at the port after --listen's."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key, if not in its file.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no line for each call.")] = False,
) -> None:
    """Take SIP calls: answer, be busy, ring, or stay silent, by number."""
    # Other commands start sooner without these.
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
    _allow_many_calls()
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
    # A stranger wrote the number; control characters must not reach the terminal.
    typer.echo(ascii(line)[1:-1], err=True)


def _allow_many_calls() -> None:
    """Each call has a socket: ask for as many files as this user may open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
