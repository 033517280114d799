"""The callee: a SIP user agent server over UDP that counts the RTP of each call and logs it all.

It runs in a process of its own, which is never killed or stopped, and shares no code with the
service: its log shows what reached the phones. Commands come on stdin, one a line:
`drop SECONDS` (all SIP datagrams are dropped), `refuse SECONDS` (503 at once to each new call) and
`quit`. Each line of the log is a JSON object with `at` (CLOCK_MONOTONIC), `wall` (Unix seconds),
`event`, and `call`, `branch` and `number` where it belongs to an invitation.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from tests.chaos.plans import Plan, Step, plan_of

T1: Final = 0.5
T2: Final = 4.0
RING_LIMIT: Final = 90.0
"""Seconds after which ringing ends with 480, where the INVITE has no Expires."""
GIVE_UP: Final = 32.0
"""Seconds for which a response is repeated that is not acknowledged (64 * T1)."""
SILENCE: Final = 15.0
"""Seconds without audio after which the person hangs up."""
SO_TIMESTAMPNS: Final = 35
TIMESPEC: Final = struct.Struct("@qq")
_COMPACT: Final = {"v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact"}

Address = tuple[str, int]


@dataclass(frozen=True)
class Message:
    """A SIP message; header names in lower case, in their long form."""

    start: str
    headers: list[tuple[str, str]]
    body: str

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Raises ValueError for what is not SIP."""
        head, _, body = data.decode("utf-8", "replace").partition("\r\n\r\n")
        start, *lines = head.split("\r\n")
        if "SIP/2.0" not in start:
            raise ValueError(start)
        headers = []
        for line in lines:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            headers.append((_COMPACT.get(name, name), value.strip()))
        return cls(start, headers, body)

    def get(self, name: str) -> str:
        """The first header of that name; empty where there is none."""
        return next((value for each, value in self.headers if each == name), "")

    def all(self, name: str) -> list[str]:
        """Every header of that name."""
        return [value for each, value in self.headers if each == name]

    @property
    def method(self) -> str:
        """The method of a request; of a response, the one that it answers."""
        return self.get("cseq").split()[-1]

    @property
    def branch(self) -> str:
        """The transaction's branch."""
        return _parameter(self.get("via"), "branch")

    @property
    def called(self) -> str:
        """The user in a request's URI."""
        return self.start.split()[1].partition(":")[2].partition("@")[0]


def _parameter(value: str, name: str) -> str:
    for part in value.split(";")[1:]:
        key, _, given = part.strip().partition("=")
        if key.lower() == name:
            return given
    return ""


def _tag(message: Message) -> str:
    return _parameter(message.get("to"), "tag")


@dataclass
class Dialog:
    """An invitation and the call that it became."""

    invite: Message
    source: Address
    number: str
    plan: Plan
    step: Step
    tag: str
    state: str = "proceeding"  # answered, confirmed, refused, over
    response: bytes = b""
    audio: socket.socket | None = None
    packets: int = 0
    first_packet: float = 0.0
    last_packet: float = 0.0
    confirmed_at: float = 0.0
    bye_branch: str = ""

    @property
    def names(self) -> dict[str, Any]:
        """The fields that name it in the log."""
        invite = self.invite
        return {"call": invite.get("call-id"), "branch": invite.branch, "number": self.number}


class Callee:
    """One SIP socket, a heap of timers, and an RTP socket for each call."""

    def __init__(self, host: str, port: int, log: TextIO, ring_timeout: float) -> None:
        self._host = host
        self._log = log
        self._ring_timeout = ring_timeout
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._invited: dict[tuple[str, str], Dialog] = {}
        self._by_tag: dict[str, Dialog] = {}
        self._invitations: dict[str, int] = {}
        self._byes: dict[str, Dialog] = {}
        self._drop_until = self._refuse_until = 0.0
        self._ended = False
        self._input = b""
        self._sip = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sip.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sip.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sip.setblocking(False)
        self._sip.bind((host, port))
        self._port = self._sip.getsockname()[1]

    def run(self) -> None:
        """Answer calls until `quit` is read, or stdin is closed."""
        self._selector.register(self._sip, selectors.EVENT_READ, self._read_sip)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._read_command)
        while not self._ended:
            wait = self._timers[0][0] - time.monotonic() if self._timers else 1.0
            for key, _ in self._selector.select(max(wait, 0.0)):
                key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
        for dialog in list(self._invited.values()):
            self._end(dialog, "quit")

    # Input

    def _read_command(self) -> None:
        read = os.read(sys.stdin.fileno(), 4096)
        self._input += read
        *lines, self._input = self._input.split(b"\n")
        if not read:
            lines.append(b"quit")
        for line in lines:
            command, *arguments = line.decode().split()
            self._write(command)
            if command == "quit":
                self._ended = True
            elif command == "drop":
                self._drop_until = time.monotonic() + float(arguments[0])
            elif command == "refuse":
                self._refuse_until = time.monotonic() + float(arguments[0])

    def _read_sip(self) -> None:
        for _ in range(200):
            try:
                data, ancillary, _, source = self._sip.recvmsg(65535, 64)
            except BlockingIOError:
                return
            at = time.monotonic()
            for _, kind, value in ancillary:
                if kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = TIMESPEC.unpack(value)
                    at += seconds + nanoseconds * 1e-9 - time.time()
            with contextlib.suppress(ValueError):
                self._receive(Message.parse(data), source, at)

    def _receive(self, message: Message, source: Address, at: float) -> None:
        if at < self._drop_until:
            self._drop(message, at)
            return
        if message.start.startswith("SIP/2.0"):
            self._receive_response(message, at)
            return
        method = message.start.split()[0]
        dialog = self._by_tag.get(_tag(message))
        if method == "INVITE" and dialog is None:
            self._invite(message, source, at)
        elif method == "ACK":
            self._acknowledged(message, dialog, at)
        elif method == "CANCEL":
            self._cancel(message, source, at)
        elif method == "BYE":
            self._reply(message, source, 200 if dialog else 481)
            if dialog is not None and dialog.state != "over":
                self._write("bye", at, by="service", **dialog.names)
                self._end(dialog, "service")
        elif method == "OPTIONS":
            self._reply(message, source, 200)
        elif dialog is not None and dialog.state != "over":
            body = self._session(dialog) if method == "INVITE" else ""
            self._reply(message, source, 200, dialog.tag, body=body)
        else:
            self._reply(message, source, 481)

    def _drop(self, message: Message, at: float) -> None:
        """Log a message that is dropped: when an INVITE was sent, and what the service knew."""
        what = message.start.split()[0]
        names = {"call": message.get("call-id"), "branch": message.branch}
        known = self._invited.get((names["call"], names["branch"]))
        known = known or self._by_tag.get(_tag(message))
        if what in ("ACK", "BYE") and known is not None:
            self._write(what.lower(), at, by="service", dropped=True, **known.names)
        elif what == "SIP/2.0" and message.branch in self._byes:
            self._bye_answered(self._byes[message.branch], message, at)
        elif what == "INVITE" and not _tag(message):
            self._write("invite", at, dropped=True, number=message.called, **names)
        else:
            self._write("dropped", at, what=what)

    def _receive_response(self, message: Message, at: float) -> None:
        dialog = self._byes.get(message.branch)
        if dialog is not None and not message.start.startswith("SIP/2.0 1"):
            del self._byes[message.branch]
            self._bye_answered(dialog, message, at)

    def _bye_answered(self, dialog: Dialog, message: Message, at: float) -> None:
        self._write("bye answered", at, code=int(message.start.split()[1]), **dialog.names)

    # INVITE, ACK and CANCEL

    def _invite(self, message: Message, source: Address, at: float) -> None:
        key = message.get("call-id"), message.branch
        known = self._invited.get(key)
        if known is not None:
            self._write("invite", at, repeat=True, **known.names)
            if known.response:
                self._sip.sendto(known.response, known.source)
            return
        number = message.called
        earlier = self._invitations.get(number, 0)
        refused = at < self._refuse_until
        if not refused:
            self._invitations[number] = earlier + 1
        plan = plan_of(number)
        step = Step(0.0, 503, ring=None) if refused else plan.step(earlier)
        dialog = Dialog(message, source, number, plan, step, os.urandom(6).hex())
        self._invited[key] = self._by_tag[dialog.tag] = dialog
        self._write("invite", at, repeat=False, plan=plan.name, **dialog.names)
        if step.silent:
            dialog.state = "over"
            self._write("over", by="silent", packets=0, first=0.0, last=0.0, **dialog.names)
            return
        if not step.quiet:
            self._respond(dialog, 100)
        if step.ring is not None:
            self._later(step.quiet + 0.1, lambda: self._ring(dialog))
        if step.final_after is not None:
            wait = step.final_after + step.ring_timeouts * self._ring_timeout
            self._later(at + wait - time.monotonic(), lambda: self._decide(dialog))
        expires = message.get("expires")
        limit = float(expires) if expires.isdigit() else RING_LIMIT
        self._later(limit, lambda: self._stop_ringing(dialog))

    def _ring(self, dialog: Dialog) -> None:
        if dialog.state == "proceeding":
            self._respond(dialog, dialog.step.ring or 180)

    def _stop_ringing(self, dialog: Dialog) -> None:
        if dialog.state == "proceeding":
            self._refuse(dialog, 480)

    def _decide(self, dialog: Dialog) -> None:
        if dialog.state != "proceeding":
            return
        if dialog.step.code >= 300:
            self._refuse(dialog, dialog.step.code, dialog.step.headers)
            return
        dialog.state = "answered"
        audio = dialog.audio = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        audio.setblocking(False)
        audio.bind((self._host, 0))
        self._selector.register(audio, selectors.EVENT_READ, lambda: self._read_audio(dialog))
        self._respond(dialog, 200, body=self._session(dialog))
        self._repeat(dialog, "answered", T1, time.monotonic() + GIVE_UP)
        if dialog.step.hang_up is not None:
            self._later(dialog.step.hang_up, lambda: self._hang_up(dialog))

    def _refuse(self, dialog: Dialog, code: int, headers: Any = ()) -> None:
        dialog.state = "refused"
        self._respond(dialog, code, headers)
        self._repeat(dialog, "refused", T1, time.monotonic() + GIVE_UP)
        self._end(dialog, "refused", state="refused")

    def _repeat(self, dialog: Dialog, state: str, wait: float, until: float) -> None:
        """Send the final response again until it is acknowledged."""

        def again() -> None:
            if dialog.state != state:
                return
            if time.monotonic() > until:
                self._write("not acknowledged", **dialog.names)
                if state == "answered":
                    self._hang_up(dialog, by="not acknowledged")
                return
            self._sip.sendto(dialog.response, dialog.source)
            self._repeat(dialog, state, min(wait * 2, T2), until)

        self._later(wait, again)

    def _acknowledged(self, message: Message, dialog: Dialog | None, at: float) -> None:
        dialog = self._invited.get((message.get("call-id"), message.branch), dialog)
        if dialog is None:
            return
        if dialog.state in ("answered", "refused"):
            self._write("ack", at, **dialog.names)
        if dialog.state == "answered":
            dialog.state = "confirmed"
            dialog.confirmed_at = at
            self._watch_silence(dialog)
        elif dialog.state == "refused":
            dialog.state = "over"

    def _cancel(self, message: Message, source: Address, at: float) -> None:
        dialog = self._invited.get((message.get("call-id"), message.branch))
        if dialog is None:
            self._reply(message, source, 481)
            return
        self._write("cancel", at, **dialog.names)
        if dialog.step.silent:
            return
        self._reply(message, source, 200)
        if dialog.state == "proceeding":
            self._refuse(dialog, 487)

    # Audio, and the end

    def _read_audio(self, dialog: Dialog) -> None:
        audio = dialog.audio
        if audio is None or audio.fileno() < 0:
            return  # closed by what was read a moment ago
        for _ in range(64):
            try:
                data = audio.recv(2048)
            except BlockingIOError:
                return
            if len(data) < 12 or data[0] >> 6 != 2 or data[1] & 0x7F not in (0, 8):
                continue
            now = time.monotonic()
            if not dialog.packets:
                dialog.first_packet = now
                self._write("audio", now, **dialog.names)
            dialog.packets += 1
            dialog.last_packet = now

    def _watch_silence(self, dialog: Dialog) -> None:
        if dialog.state != "confirmed":
            return
        quiet = time.monotonic() - max(dialog.confirmed_at, dialog.last_packet)
        if quiet >= SILENCE:
            self._hang_up(dialog, by="silence")
        else:
            self._later(SILENCE - quiet, lambda: self._watch_silence(dialog))

    def _hang_up(self, dialog: Dialog, by: str = "callee") -> None:
        if dialog.state not in ("answered", "confirmed"):
            return
        invite = dialog.invite
        target = invite.get("contact").partition("<")[2].partition(">")[0] or "sip:service"
        branch = f"z9hG4bK{os.urandom(8).hex()}"
        request = "\r\n".join(
            [
                f"BYE {target} SIP/2.0",
                f"Via: SIP/2.0/UDP {self._host}:{self._port};branch={branch};rport",
                "Max-Forwards: 70",
                f"From: {invite.get('to')};tag={dialog.tag}",
                f"To: {invite.get('from')}",
                f"Call-ID: {invite.get('call-id')}",
                "CSeq: 1 BYE",
                "Content-Length: 0",
                "",
                "",
            ]
        ).encode()
        self._write("bye", by=by, **dialog.names)
        self._end(dialog, by)
        self._byes[branch] = dialog
        self._send_bye(branch, request, dialog.source, T1, time.monotonic() + GIVE_UP)

    def _send_bye(
        self, branch: str, request: bytes, to: Address, wait: float, until: float
    ) -> None:
        if branch in self._byes and time.monotonic() < until:
            self._sip.sendto(request, to)
            again = min(wait * 2, T2)
            self._later(wait, lambda: self._send_bye(branch, request, to, again, until))

    def _end(self, dialog: Dialog, by: str, state: str = "over") -> None:
        if dialog.state == "over" or (dialog.state == "refused" and by != "refused"):
            return
        if dialog.audio is not None:
            self._read_audio(dialog)
            self._selector.unregister(dialog.audio)
            dialog.audio.close()
        dialog.state = state
        counted = {"first": dialog.first_packet, "last": dialog.last_packet}
        self._write("over", by=by, packets=dialog.packets, **counted, **dialog.names)

    # Output

    def _session(self, dialog: Dialog) -> str:
        assert dialog.audio is not None
        port = dialog.audio.getsockname()[1]
        return (
            f"v=0\r\no=- 1 1 IN IP4 {self._host}\r\ns=-\r\nc=IN IP4 {self._host}\r\nt=0 0\r\n"
            f"m=audio {port} RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\na=ptime:20\r\n"
        )

    def _respond(self, dialog: Dialog, code: int, headers: Any = (), body: str = "") -> None:
        tag = "" if code == 100 else dialog.tag
        dialog.response = self._reply(dialog.invite, dialog.source, code, tag, headers, body)
        self._write("sent", code=code, **dialog.names)

    def _reply(
        self,
        request: Message,
        to: Address,
        code: int,
        tag: str = "",
        headers: Any = (),
        body: str = "",
    ) -> bytes:
        to_header = request.get("to")
        if tag and not _parameter(to_header, "tag"):
            to_header += f";tag={tag}"
        lines = [f"SIP/2.0 {code} {'OK' if code == 200 else 'Said'}"]
        lines += [f"Via: {via}" for via in request.all("via")]
        lines += [f"From: {request.get('from')}", f"To: {to_header}"]
        lines += [f"Call-ID: {request.get('call-id')}", f"CSeq: {request.get('cseq')}"]
        lines += [f"Contact: <sip:callee@{self._host}:{self._port}>", *headers]
        if body:
            lines.append("Content-Type: application/sdp")
        lines += [f"Content-Length: {len(body)}", "", body]
        data = "\r\n".join(lines).encode()
        self._sip.sendto(data, to)
        return data

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), do))

    def _write(self, event: str, at: float | None = None, **more: Any) -> None:
        at = time.monotonic() if at is None else at
        line = {"at": at, "wall": at + time.time() - time.monotonic(), "event": event, **more}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def main() -> None:
    """The process: answers calls at one address until stdin ends."""
    parser = argparse.ArgumentParser(description="A SIP callee that logs all it receives.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--ring-timeout", type=float, required=True)
    given = parser.parse_args()
    with given.log.open("w") as log:
        Callee(given.host, given.port, log, given.ring_timeout).run()


if __name__ == "__main__":
    main()
