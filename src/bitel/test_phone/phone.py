"""`Phone`: a SIP user agent server that handles each call by rules and logs it.

The log consists of JSON lines, flushed one by one. Each is an object with `at` (Unix seconds),
`call` (Call-ID), `number` (as received) and `event`, then the details of that event:

    invite    a new call; `from`: user part of the caller's URI; `rule`: the behaviour chosen
    answered  our 200 was sent
    audio     the first RTP packet was received
    bye       the caller hung up
    cancel    the caller canceled
    rejected  we rejected the call; `code`
    hangup    we hung up
    end       the call is over; `packets` received, `seconds` since the answer (0 without one)
    recorded  the WAV was written; `file`: its name

The first event of a call is `invite`, the last one `end`, or `recorded` after it. A call to a
silent number has an `invite` only. Lines are not synced to disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

from bitel.recordings import wav
from bitel.sip.config import AgentConfig
from bitel.sip.events import Canceled, Ended, Event, Incoming
from bitel.sip.grammar import Address, HostPort, split_address, user_of
from bitel.sip.message import MessageError, Request, parse
from bitel.sip.sdp import TELEPHONE_EVENT, NoCommonCodec, SessionDescription, make_answer
from bitel.sip.user_agent import UserAgent
from bitel.sip_transport.tls import TlsFileError, TlsFiles
from bitel.sip_transport.transport import SipTransport
from bitel.test_phone.rtp_sinks import CountingSink, RecordingSink, RtpSink, write_recording
from bitel.test_phone.rtp_source import RtpSource
from bitel.test_phone.rules import Answer, Behaviour, CallHistory, Reject, Ring, Rule, Silent

logger = logging.getLogger(__name__)

TEMPORARILY_UNAVAILABLE: Final = 480
NOT_ACCEPTABLE_HERE: Final = 488
SERVICE_UNAVAILABLE: Final = 503

Kind = Literal[
    "invite", "answered", "audio", "bye", "cancel", "rejected", "hangup", "end", "recorded"
]

Detail = str | int | float

_MAX_TEXT: Final = 256
"""Characters of a number or Call-ID in the log; the caller chooses both."""


@dataclass(frozen=True, slots=True)
class PhoneConfig:
    """Configuration of a phone.

    `listen`: SIP address; port 0: any free one. `public_address`: address in Contact, if it is
    another one. `record`: folder for WAV files with the first `record_minutes` of each call; None:
    packets are only counted. `log`: file of the log. More than `max_calls` concurrent calls are
    rejected with 503.
    """

    listen: HostPort
    rules: tuple[Rule, ...] = ()
    record: Path | None = None
    log: Path | None = None
    public_address: HostPort | None = None
    record_minutes: float = 10.0
    max_calls: int = 20_000
    tls: TlsFiles | None = None


@dataclass(slots=True, eq=False)
class _Call:
    """A call, from INVITE to its end."""

    call_id: str
    number: str
    offer: SessionDescription | None
    source: Address
    sink: RtpSink | None = None
    timer: asyncio.TimerHandle | None = None
    answered_at: float | None = None
    hung_up: bool = False
    sending: list[asyncio.Task[None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log. `at` is in Unix seconds."""

    at: float
    call: str
    number: str
    event: Kind
    details: dict[str, Detail] = field(default_factory=dict)


class CallLog:
    """Keeps the latest 10,000 entries, and writes all entries to `path` if given.

    `on_entry` is called with each entry. Raises OSError if `path` can't be opened.
    """

    def __init__(self, path: Path | None, on_entry: Callable[[Entry], None] | None) -> None:
        self.entries: deque[Entry] = deque(maxlen=10_000)
        self._on_entry = on_entry
        self._file = None if path is None else path.open("a", encoding="ascii")

    def write(self, call: str, number: str, event: Kind, **details: Detail) -> None:
        """Log an event with the current time."""
        entry = Entry(time.time(), call[:_MAX_TEXT], number[:_MAX_TEXT], event, details)
        self.entries.append(entry)
        if self._file is not None:
            head = {"at": entry.at, "call": entry.call, "number": entry.number, "event": event}
            self._file.write(json.dumps({**head, **details}) + "\n")
            self._file.flush()
        if self._on_entry is not None:
            self._on_entry(entry)

    def close(self) -> None:
        """Close the file; entries can still be read."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Phone:
    """A SIP user agent server on UDP and TCP, and with a certificate on TLS at the next port.

    `on_entry` is called with each entry of its log.
    """

    def __init__(
        self, config: PhoneConfig, *, on_entry: Callable[[Entry], None] | None = None
    ) -> None:
        self._config = config
        self._history = CallHistory(config.rules)
        self._on_entry = on_entry
        self._calls: dict[str, _Call] = {}
        self._saving: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._all_over = asyncio.Event()

    @property
    def address(self) -> HostPort:
        """The address of its SIP socket, once started."""
        return self._transport.local

    @property
    def calls(self) -> int:
        """Number of current calls, ringing or answered."""
        return len(self._calls)

    async def start(self) -> None:
        """Bind the sockets. Raises OSError for the port, the log or the folder; TlsFileError."""
        config = self._config
        self._loop = asyncio.get_running_loop()
        if config.record is not None:
            config.record.mkdir(parents=True, exist_ok=True)
        self.log = CallLog(config.log, self._on_entry)
        try:
            self._transport = SipTransport(
                config.listen, self._make_agent, self._on_event, tls=config.tls
            )
        except (OSError, TlsFileError):
            self.log.close()
            raise

    async def stop(self, grace: float = 2.0) -> None:
        """End all calls, wait up to `grace` seconds for the callers, and close the sockets."""
        self._stopping = True
        for call in list(self._calls.values()):
            if call.answered_at is None:
                self._reject(call, TEMPORARILY_UNAVAILABLE)
            else:
                self._hang_up(call)
        if self._calls:
            self._all_over.clear()
            try:
                await asyncio.wait_for(self._all_over.wait(), grace)
            except TimeoutError:
                logger.info("%d calls did not confirm that they are over", len(self._calls))
        for call in list(self._calls.values()):
            self._end(call)
        await self._transport.close()
        await asyncio.gather(*self._saving)
        self.log.close()

    def _make_agent(self, local: HostPort) -> UserAgent:
        contact = self._config.public_address or (_reachable(local[0]), local[1])
        config = AgentConfig(local=contact, user_agent="bitel phone")
        return _SilentNumbersAgent(config, self._history, self._log_invite)

    def _log_invite(self, call_id: str, number: str, caller: str, behaviour: Behaviour) -> None:
        self.log.write(call_id, number, "invite", **{"from": caller, "rule": str(behaviour)})

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Incoming):
            self._receive_invite(event)
            return
        call = self._calls.get(event.call_id)
        if call is None:
            return
        if isinstance(event, Canceled):
            self._note(call, "cancel")
            self._end(call)
        elif isinstance(event, Ended):
            if event.by == "far":
                self._note(call, "bye")
            elif not call.hung_up:
                self._note(call, "hangup")
            self._end(call)

    def _receive_invite(self, event: Incoming) -> None:
        behaviour = self._history.decide(event.call_id, event.number)
        call = _Call(event.call_id, event.number, event.offer, event.source)
        self._calls[call.call_id] = call
        self._log_invite(call.call_id, call.number, event.from_user, behaviour)
        if self._stopping or len(self._calls) > self._config.max_calls:
            self._reject(call, SERVICE_UNAVAILABLE)
        else:
            self._apply(call, behaviour)

    def _apply(self, call: _Call, behaviour: Behaviour) -> None:
        match behaviour:
            case Reject(code):
                self._reject(call, code)
            case Ring():
                self._ring(call)
            case Answer(after) if after > 0:
                self._ring(call)
                # One iteration later, so that a CANCEL read in this one is handled first.
                soon = self._loop.call_soon
                call.timer = self._loop.call_later(after, soon, self._answer, call, behaviour)
            case Answer():
                self._answer(call, behaviour)
            case Silent():
                # `_SilentNumbersAgent` should have dropped the datagram.
                logger.error("the INVITE of silent call %s was answered with 100", call.call_id)

    def _ring(self, call: _Call) -> None:
        self._transport.agent.ring(call.call_id, self._loop.time())
        self._transport.flush()

    def _reject(self, call: _Call, code: int) -> None:
        self._note(call, "rejected", code=code)
        self._transport.agent.reject(call.call_id, code, self._loop.time())
        self._transport.flush()
        self._end(call)

    def _answer(self, call: _Call, behaviour: Answer) -> None:
        if call.call_id not in self._calls:
            return
        try:
            answer = self._open_sink(call)
            if any(each.by == "tone" for each in behaviour.presses):
                # A phone that knows events sends no tones.
                audio = [codec for codec in answer.codecs if codec.name != TELEPHONE_EVENT]
                answer = answer._replace(codecs=tuple(audio))
        except NoCommonCodec:
            self._reject(call, NOT_ACCEPTABLE_HERE)
            return
        except OSError as error:
            logger.warning("no port to hear call %s on: %s", call.call_id, error)
            self._reject(call, SERVICE_UNAVAILABLE)
            return
        call.answered_at = self._loop.time()
        self._note(call, "answered")
        self._transport.agent.accept(call.call_id, answer, call.answered_at)
        self._transport.flush()
        wants_source = behaviour.presses or behaviour.play
        if wants_source and call.offer is not None and call.sink is not None:
            info = partial(self._send_info, call)
            source = RtpSource(call.offer, answer, call.sink.send, info)
            call.sending.append(self._loop.create_task(source.press(behaviour.presses)))
            if behaviour.play:
                call.sending.append(self._loop.create_task(self._play(source, behaviour.play)))
        if behaviour.hangup is not None:
            call.timer = self._loop.call_later(behaviour.hangup, self._hang_up, call)

    async def _play(self, source: RtpSource, file: str) -> None:
        try:
            pcm, _ = await asyncio.to_thread(wav.read, Path(file))
        except (OSError, ValueError, EOFError) as error:
            logger.error("%s can't be played: %s", file, error)
            return
        await source.play(pcm)

    def _send_info(self, call: _Call, key: str) -> None:
        self._transport.agent.send_info(call.call_id, key, self._loop.time())
        self._transport.flush()

    def _open_sink(self, call: _Call) -> SessionDescription:
        """Open a port for the call's audio; returns the SDP answer."""
        if call.offer is None:
            raise NoCommonCodec("the INVITE offers no media")
        host = _reachable(self.address[0], call.source[:2])

        def on_first() -> None:
            self._note(call, "audio")

        if self._config.record is None:
            call.sink = CountingSink(host, on_first)
        else:
            call.sink = RecordingSink(host, on_first, minutes=self._config.record_minutes)
        return make_answer(call.offer, (host, call.sink.port))

    def _hang_up(self, call: _Call) -> None:
        if not call.hung_up:
            call.hung_up = True
            self._note(call, "hangup")
            self._transport.agent.hang_up(call.call_id, self._loop.time())
            self._transport.flush()

    def _end(self, call: _Call) -> None:
        if self._calls.pop(call.call_id, None) is None:
            return
        if call.timer is not None:
            call.timer.cancel()
        for task in call.sending:
            task.cancel()
        packets = 0 if call.sink is None else call.sink.close()
        seconds = 0.0 if call.answered_at is None else self._loop.time() - call.answered_at
        self._note(call, "end", packets=packets, seconds=round(seconds, 3))
        if self._config.record is not None and isinstance(call.sink, RecordingSink):
            task = self._loop.create_task(self._save(call, self._config.record, call.sink))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)
        if not self._calls:
            self._all_over.set()

    async def _save(self, call: _Call, folder: Path, sink: RecordingSink) -> None:
        try:
            path = await asyncio.to_thread(write_recording, folder, call.number, call.call_id, sink)
        except OSError as error:
            logger.error("the recording of call %s could not be written: %s", call.call_id, error)
        else:
            self._note(call, "recorded", file=path.name)

    def _note(self, call: _Call, event: Kind, **details: Detail) -> None:
        self.log.write(call.call_id, call.number, event, **details)


class _SilentNumbersAgent(UserAgent):
    """A user agent that ignores requests to silent numbers.

    `UserAgent` answers an INVITE with 100 before the phone sees it, so the datagram is dropped
    first. `log_invite` is called once per dropped call.
    """

    __slots__ = ("_has_silent_rules", "_history", "_log_invite")

    def __init__(
        self,
        config: AgentConfig,
        history: CallHistory,
        log_invite: Callable[[str, str, str, Behaviour], None],
    ) -> None:
        super().__init__(config)
        self._history = history
        self._log_invite = log_invite
        self._has_silent_rules = history.has_silent_rules

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """See `UserAgent`; drops datagrams to silent numbers."""
        if not (self._has_silent_rules and self._is_to_silent_number(data)):
            super().receive_datagram(data, source, now)

    def _is_to_silent_number(self, data: bytes) -> bool:
        try:
            message = parse(data)
        except MessageError:
            return False
        # Requests within a dialog and responses belong to a call that was answered.
        if not isinstance(message, Request) or message.to_tag:
            return False
        number = user_of(message.uri)
        decided = self._history.decided(message.call_id)
        if decided is None and message.method == "INVITE":
            decided = self._history.decide(message.call_id, number)
            if isinstance(decided, Silent):
                caller = user_of(split_address(message.header("from"))[0])
                self._log_invite(message.call_id, number, caller, decided)
        return isinstance(decided or self._history.next_for(number), Silent)


def _reachable(host: str, far: HostPort = ("192.0.2.1", 9)) -> str:
    """The address that `far` can send to: `host`, or the local address of the route to `far`.

    Connecting a UDP socket sends nothing; it only looks up the route.
    """
    if host not in {"0.0.0.0", "::"}:
        return host
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(far)
        except OSError:
            return "::1" if host == "::" else "127.0.0.1"
        reached: str = probe.getsockname()[0]
        return reached
