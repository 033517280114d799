"""Main loop of a detection process: `python -m bitel.answering_machine.worker DESCRIPTOR SETTINGS`.

DESCRIPTOR is the socket to the parent, SETTINGS a JSON object with the fields of
`DetectorSettings`. The process exits when the socket closes, so also when the parent dies. It
ignores SIGINT and SIGTERM, since calls continue while the service drains.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from bitel.answering_machine.beep import BeepSettings, ToneEnd
from bitel.answering_machine.detector import Detector, DetectorSettings
from bitel.answering_machine.measures import FrameWindow, measure
from bitel.answering_machine.messages import (
    Alive,
    Audio,
    BeepEnded,
    Decided,
    End,
    Frames,
    Message,
    Start,
    encode,
)
from bitel.g711 import Pcm

INTERVAL = 0.02  # seconds from one batch to the next; a larger batch costs less per frame
ALIVE_INTERVAL = 0.5  # seconds
CHUNK = 1 << 20  # bytes per read
FULL = 1 << 16  # bytes of a read after which more is likely to wait


@dataclass(slots=True)
class _Call:
    window: FrameWindow
    detector: Detector
    beeps: bool
    is_reported: bool = False
    beep: ToneEnd | None = None


class Worker:
    """The calls of a process, without its socket."""

    def __init__(self, settings: DetectorSettings) -> None:
        self._settings = settings
        self._calls: dict[int, _Call] = {}

    @property
    def calls(self) -> int:
        """Number of calls that are followed."""
        return len(self._calls)

    def handle(self, messages: Iterable[Message]) -> list[Message]:
        """Take a batch of messages; the decisions and record tones that it leads to."""
        found: list[tuple[int, _Call, Pcm | None]] = []
        ended: set[int] = set()
        for message in messages:
            if isinstance(message, Audio):
                call = self._calls.get(message.call)
                if call is None:
                    continue
                if message.payload is None:
                    call.window.lose()
                    found.append((message.call, call, None))
                else:
                    windows = call.window.push(message.payload)
                    found.extend((message.call, call, each) for each in windows)
            elif isinstance(message, Start):
                self._calls[message.call] = _Call(
                    FrameWindow(message.law), Detector(self._settings), message.beeps
                )
            elif isinstance(message, End):
                self._calls.pop(message.call, None)
                ended.add(message.call)
        measures = iter(measure([window for _, _, window in found if window is not None]))
        answers: list[Message] = []
        for number, call, window in found:
            call.detector.push(None if window is None else next(measures))
            if number not in ended:
                self._report(number, call, answers)
        return answers

    def _report(self, number: int, call: _Call, answers: list[Message]) -> None:
        decision, beep = call.detector.decision, call.detector.beep
        if decision is not None and not call.is_reported:
            call.is_reported = True
            # `marshal` takes strings only.
            verdict = None if decision.verdict is None else decision.verdict.value
            answers.append(Decided(number, verdict, decision.reason.value, decision.at))
            if not call.beeps:
                self._calls.pop(number, None)
        if beep is not call.beep and beep is not None:
            call.beep = beep
            if call.beeps:
                answers.append(BeepEnded(number, beep.began, beep.ended, beep.frequency))


def serve(connected: socket.socket, settings: DetectorSettings) -> None:
    """Answer the parent until it closes the socket."""
    worker, frames = Worker(settings), Frames()
    alive_at = 0.0
    connected.setblocking(True)
    while True:
        wait = ALIVE_INTERVAL if worker.calls else None
        readable, _, _ = select.select([connected], [], [], wait)
        answers: list[Message] = []
        data = b""
        if readable:
            data = connected.recv(CHUNK)
            if not data:
                return
            answers += worker.handle(frames.feed(data))
        if time.monotonic() - alive_at >= ALIVE_INTERVAL:
            alive_at = time.monotonic()
            answers.append(Alive(worker.calls, time.process_time()))
        if answers:
            connected.sendall(encode(answers))
        if worker.calls and len(data) < FULL:
            time.sleep(INTERVAL)


def settings_from_json(text: str) -> DetectorSettings:
    """Inverse of `json.dumps(dataclasses.asdict(settings))`."""
    fields = json.loads(text)
    return DetectorSettings(**{**fields, "beep": BeepSettings(**fields["beep"])})


def main() -> None:
    """Run the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connected:
        try:
            serve(connected, settings_from_json(sys.argv[2]))
        except (BrokenPipeError, ConnectionResetError):
            return  # the parent has died


if __name__ == "__main__":
    main()
