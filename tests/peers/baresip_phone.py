"""baresip as an independent callee, in a process of its own, on loopback, without audio devices.

`baresip_phone(...)` is the test's side. Run with `-m`, this module is the phone's process.
It reports "incoming", "established", "closed", "recorded", "held", "resumed"
and "transfer refused".
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.peers.phone_process import HOST, PhoneProcess, Transport, phone_process, report

if TYPE_CHECKING:
    from baresip import Call, StackEvent

Manner = Literal["answer", "reject", "ring"]
Keyed = Literal["rtpevent", "info"]

_SAMPLE_RATE = 8000


@asynccontextmanager
async def baresip_phone(
    manner: Manner = "answer",
    *,
    record: Path | None = None,
    hang_up_after: float | None = None,
    reinvite: bool = False,
    digits: str = "",
    keyed: Keyed = "rtpevent",
    hold: float | None = None,
    transfer: bool = False,
    transport: Transport = "udp",
    certificate: Path | None = None,
) -> AsyncIterator[PhoneProcess]:
    """A baresip that answers, rejects (486), or rings for ever; it ends with the `async with`.

    `record` is the WAV to write of the latest call's audio, whole once "recorded" was reported.
    `hang_up_after` is the time in seconds from its answer to its BYE. With `reinvite` it sends a
    re-INVITE right after the ACK of its answer, and the first 0.1 s of a recording is missing.
    Once established it keys `digits` as telephone events or by INFO, puts the caller on hold for
    `hold` seconds, and asks the caller to call another number (`transfer`).
    It takes calls over `transport` alone; TLS needs a `certificate`, a PEM file with its key in it.
    """
    options = [manner, "--transport", transport, *(["--reinvite"] if reinvite else [])]
    options += [] if record is None else ["--record", str(record)]
    options += [] if hang_up_after is None else ["--hang-up-after", str(hang_up_after)]
    options += ["--digits", digits] if digits else []
    options += [] if hold is None else ["--hold", str(hold)]
    options += ["--keyed", keyed]
    options += ["--transfer"] if transfer else []
    options += [] if certificate is None else ["--certificate", str(certificate)]
    module = "tests.peers.baresip_phone"
    async with phone_process(sys.executable, module, options, transport) as phone:
        yield phone


# From here on: the process.


class _Callee:
    """Does with each call what the command line says, and reports it on stdout."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._manner: str = options.manner
        self._record: Path | None = options.record
        self._hang_up_after: float | None = options.hang_up_after
        self._reinvite: bool = options.reinvite
        self._digits: str = options.digits
        self._hold: float | None = options.hold
        self._transfer: bool = options.transfer
        self._tasks: set[asyncio.Task[None]] = set()

    def on_incoming(self, call: Call) -> None:
        """Begin with a new call."""
        report("incoming")
        task = asyncio.get_running_loop().create_task(self._take(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, call: Call) -> None:
        from baresip import CallState, Event, TransferFailed

        if self._manner == "reject":
            await call.reject()
            return
        if self._manner == "ring":
            return
        closed = asyncio.Event()
        established = asyncio.Event()

        def on_event(event: StackEvent) -> None:
            if event.event is Event.CALL_ESTABLISHED:
                established.set()
                report("established")
            elif event.event is Event.CALL_CLOSED:
                closed.set()
                report("closed")

        call.on(on_event)
        recording = asyncio.create_task(self._listen(call, closed))
        # Answering an audio call without video is a change of direction to baresip, which it
        # tells the far end of with a re-INVITE, and its audio starts anew.
        await call.answer(video=not self._reinvite)
        await established.wait()
        if self._digits:
            await call.send_dtmf(self._digits)
        if self._hold is not None:
            await call.hold()
            report("held")
            await asyncio.sleep(self._hold)
            await call.resume()
            report("resumed")
        if self._transfer:
            try:
                await call.transfer(f"sip:0912@{HOST}")
            except TransferFailed:
                report("transfer refused")
        if self._hang_up_after is not None:
            await asyncio.sleep(self._hang_up_after)
            if call.state is not CallState.CLOSED:
                await call.hangup()
        await closed.wait()
        await recording

    async def _listen(self, call: Call, closed: asyncio.Event) -> None:
        """Write what is heard to the WAV, until the call is over."""
        if self._record is None:
            return
        from baresip import AudioNotActive, AudioRestarted

        with wave.open(str(self._record), "wb") as file:
            file.setparams((1, 2, _SAMPLE_RATE, 0, "NONE", ""))
            while not closed.is_set():
                with suppress(AudioNotActive, AudioRestarted):
                    file.writeframes(call.audio.read(65536))
                await asyncio.sleep(0.01)
        report("recorded")


# On loopback a jitter buffer has nothing to even out, and drops packets at its start.
_CONFIGURATION = """
sip_listen {host}:{port}
audio_jitter_buffer_type off
"""


async def _run(options: argparse.Namespace) -> None:
    from baresip import Account, Config, Runtime, UserAgent

    callee = _Callee(options)
    configuration = _CONFIGURATION.format(host=HOST, port=options.port)
    if options.certificate is not None:
        configuration += f"sip_certificate {options.certificate}\n"
    runtime = Runtime()
    await runtime.start(
        Config(
            net_interface=HOST,
            max_concurrent_calls=None,
            extra_config_text=configuration,
        )
    )
    account = Account(
        user="phone",
        domain=HOST,
        password="",
        transport=options.transport,
        reg_interval=0,
        audio_codecs=("pcma", "pcmu"),
        dtmf_mode=options.keyed,
        extra_params=("catchall=yes",),
    )
    agent = await UserAgent.create(runtime, account)
    agent.on_incoming(callee.on_incoming)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    report("ready")
    await stop.wait()
    await runtime.close()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("manner", choices=["answer", "reject", "ring"])
    parser.add_argument("--record", type=Path)
    parser.add_argument("--hang-up-after", type=float)
    parser.add_argument("--reinvite", action="store_true")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--digits", default="")
    parser.add_argument("--keyed", choices=["rtpevent", "info"])
    parser.add_argument("--hold", type=float)
    parser.add_argument("--transfer", action="store_true")
    parser.add_argument("--transport", choices=["udp", "tcp", "tls"])
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    _main()
