"""baresip as an independent callee, in a process of its own, on loopback, without audio devices.

Imported, it is the test's side: `baresip_phone(...)` starts the process and reads what it reports.
Run as a script it is that process: libre keeps its state per process, so each phone needs one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from baresip import Call, StackEvent

Manner = Literal["answer", "reject", "ring"]
Transport = Literal["udp", "tcp", "tls"]

HOST = "127.0.0.1"
_SAMPLE_RATE = 8000
_ATTEMPTS = 5


@dataclass(slots=True)
class BaresipPhone:
    """A running baresip that takes calls to any number on `port`.

    `events` grows as it reports: "incoming", "established", "closed", "recorded".
    """

    port: int
    transport: Transport
    process: asyncio.subprocess.Process
    events: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def address(self) -> tuple[str, int]:
        """Where it takes calls. It listens for TLS one port above."""
        return HOST, self.port + (self.transport == "tls")

    @property
    def trunk(self) -> str:
        """The trunk that it is to a dialer."""
        host, port = self.address
        return f"sip:{host}:{port};transport={self.transport}"

    async def saw(self, event: str, times: int = 1, timeout: float = 15.0) -> None:
        """Wait until `event` was reported that many times. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.events.count(event) < times:
                self._changed.clear()
                await self._changed.wait()

    async def is_ready(self) -> bool:
        """Wait until it takes calls; False where the process ends before."""
        ready = asyncio.create_task(self.saw("ready"))
        ended = asyncio.create_task(self.process.wait())
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, ended):
            task.cancel()
        return self.process.returncode is None

    async def read_events(self) -> None:
        """Collect what the process reports until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.events.append(json.loads(line)["event"])
            self._changed.set()


@asynccontextmanager
async def baresip_phone(
    manner: Manner = "answer",
    *,
    record: Path | None = None,
    hang_up_after: float | None = None,
    reinvite: bool = False,
    digits: str = "",
    hold: float | None = None,
    transport: Transport = "udp",
    certificate: Path | None = None,
) -> AsyncIterator[BaresipPhone]:
    """A baresip that answers, rejects (486), or rings for ever; it ends with the `async with`.

    `record` is the WAV to write of the latest call's audio, whole once "recorded" was reported.
    `hang_up_after` is the time in seconds from its answer to its BYE. With `reinvite` it sends a
    re-INVITE right after the ACK of its answer, and the first 0.1 s of a recording is missing.
    Once established it keys `digits`, and puts the caller on hold for `hold` seconds.
    It takes calls over `transport` alone; TLS needs a `certificate`, a PEM file with its key in it.
    """
    options = [manner, "--transport", transport, *(["--reinvite"] if reinvite else [])]
    options += [] if record is None else ["--record", str(record)]
    options += [] if hang_up_after is None else ["--hang-up-after", str(hang_up_after)]
    options += ["--digits", digits] if digits else []
    options += [] if hold is None else ["--hold", str(hold)]
    options += [] if certificate is None else ["--certificate", str(certificate)]
    for _ in range(_ATTEMPTS):
        phone = await _start(options, transport)
        reader = asyncio.create_task(phone.read_events())
        try:
            if await phone.is_ready():
                yield phone
                return
        finally:
            if phone.process.returncode is None:
                phone.process.terminate()
            await phone.process.wait()
            await reader
    raise AssertionError("baresip does not start: its port may be taken, or its package broken")


async def _start(options: list[str], transport: Transport) -> BaresipPhone:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(port), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    return BaresipPhone(port, transport, process)


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
        self._tasks: set[asyncio.Task[None]] = set()

    def on_incoming(self, call: Call) -> None:
        """Begin with a new call."""
        _report("incoming")
        task = asyncio.get_running_loop().create_task(self._take(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, call: Call) -> None:
        from baresip import CallState, Event

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
                _report("established")
            elif event.event is Event.CALL_CLOSED:
                closed.set()
                _report("closed")

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
            _report("held")
            await asyncio.sleep(self._hold)
            await call.resume()
            _report("resumed")
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
        _report("recorded")


def _report(event: str) -> None:
    print(json.dumps({"event": event}), flush=True)


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
        extra_params=("catchall=yes",),
    )
    agent = await UserAgent.create(runtime, account)
    agent.on_incoming(callee.on_incoming)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    _report("ready")
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
    parser.add_argument("--hold", type=float)
    parser.add_argument("--transport", choices=["udp", "tcp", "tls"])
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    _main()
