"""The phone: a SIP callee that handles each call as the rules say, and logs it.

The log is JSON lines, each written and flushed as it happens. A line is an object with `at` (Unix
seconds), `call` (Call-ID), `number` (as it arrived) and `event`, then the details of that event:

    invite    a new call; `from`, the user part of the caller's URI, and `rule`, what it will meet
    answered  our 200 has been sent
    audio     the first RTP packet has arrived
    bye       the caller hung up
    cancel    the caller gave up before the answer
    rejected  we refused; `code`
    hangup    we hung up
    end       the call is over: `packets` received and `seconds` since the answer (0 without one)
    recorded  its WAV is on disk; `file`, its name

A call has one `invite`, first, and one `end`, which only `recorded` may follow. A call to a silent
number has an `invite` only. Lines are not synced to disk: the log survives a crash of the caller,
not of this machine.
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
from pathlib import Path
from typing import Final, Literal

from bitel.sip.config import AgentConfig
from bitel.sip.events import Canceled, Ended, Event, Incoming
from bitel.sip.grammar import Address, HostPort, split_address, user_of
from bitel.sip.message import MessageError, Request, parse
from bitel.sip.sdp import NoCommonCodec, SessionDescription, make_answer
from bitel.sip.user_agent import UserAgent
from bitel.sip_transport.tls import TlsFileError, TlsFiles
from bitel.sip_transport.transport import SipTransport
from bitel.test_phone.rtp_sinks import CountingSink, RecordingSink, RtpSink, write_recording
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
"""Characters of a number or Call-ID that are logged; the caller chooses both."""


@dataclass(frozen=True, slots=True)
class PhoneConfig:
    """How a phone behaves.

    `listen` is where it takes calls; port 0 takes any that is free. `public_address` is what
    Contact says, where that is another one, as behind a relay. `record` is a folder: with it, the
    first `record_minutes` of each call's audio become a WAV there; without it, packets are only
    counted. More than `max_calls` at once are refused with 503.
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
    """A call from its INVITE to its end."""

    call_id: str
    number: str
    offer: SessionDescription | None
    source: Address
    sink: RtpSink | None = None
    timer: asyncio.TimerHandle | None = None
    answered_at: float | None = None
    hung_up: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log. `at` is in Unix seconds."""

    at: float
    call: str
    number: str
    event: Kind
    details: dict[str, Detail] = field(default_factory=dict)


class CallLog:
    """Keeps the latest 10,000 entries, and writes every entry to `path` where one is given.

    `on_entry` is called with each entry. Raises OSError where `path` can't be opened.
    """

    def __init__(self, path: Path | None, on_entry: Callable[[Entry], None] | None) -> None:
        self.entries: deque[Entry] = deque(maxlen=10_000)
        self._on_entry = on_entry
        self._file = None if path is None else path.open("a", encoding="ascii")

    def write(self, call: str, number: str, event: Kind, **details: Detail) -> None:
        """Note that `event` has just happened."""
        entry = Entry(time.time(), call[:_MAX_TEXT], number[:_MAX_TEXT], event, details)
        self.entries.append(entry)
        if self._file is not None:
            head = {"at": entry.at, "call": entry.call, "number": entry.number, "event": event}
            self._file.write(json.dumps({**head, **details}) + "\n")
            self._file.flush()
        if self._on_entry is not None:
            self._on_entry(entry)

    def close(self) -> None:
        """Close the file. Entries may be read after that, and none written."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Phone:
    """A SIP callee on one port, for UDP and TCP, and with a certificate for TLS on the next.

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
        """Where it listens, once it has started."""
        return self._transport.local

    @property
    def calls(self) -> int:
        """How many calls there are now, ringing or answered."""
        return len(self._calls)

    async def start(self) -> None:
        """Listen. Raises OSError where the port, the log or the folder can't be had.

        TlsFileError says which of the TLS files can't be used.
        """
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
        """Hang up every call, wait up to `grace` seconds for the far ends, and listen no more."""
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
            self._take(event)
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

    def _take(self, event: Incoming) -> None:
        behaviour = self._history.decide(event.call_id, event.number)
        call = _Call(event.call_id, event.number, event.offer, event.source)
        self._calls[call.call_id] = call
        self._log_invite(call.call_id, call.number, event.from_user, behaviour)
        if self._stopping or len(self._calls) > self._config.max_calls:
            self._reject(call, SERVICE_UNAVAILABLE)
        else:
            self._begin(call, behaviour)

    def _begin(self, call: _Call, behaviour: Behaviour) -> None:
        match behaviour:
            case Reject(code):
                self._reject(call, code)
            case Ring():
                self._ring(call)
            case Answer(after, hangup) if after > 0:
                self._ring(call)
                # A CANCEL may be read in this very turn of the loop; its event comes in the next.
                soon = self._loop.call_soon
                call.timer = self._loop.call_later(after, soon, self._answer, call, hangup)
            case Answer(_, hangup):
                self._answer(call, hangup)
            case Silent():
                # Its datagram should never have reached the agent.
                logger.error("the INVITE of silent call %s was answered with 100", call.call_id)

    def _ring(self, call: _Call) -> None:
        self._transport.agent.ring(call.call_id, self._loop.time())
        self._transport.flush()

    def _reject(self, call: _Call, code: int) -> None:
        self._note(call, "rejected", code=code)
        self._transport.agent.reject(call.call_id, code, self._loop.time())
        self._transport.flush()
        self._end(call)

    def _answer(self, call: _Call, hangup: float | None) -> None:
        if call.call_id not in self._calls:
            return
        try:
            answer = self._listen(call)
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
        if hangup is not None:
            call.timer = self._loop.call_later(hangup, self._hang_up, call)

    def _listen(self, call: _Call) -> SessionDescription:
        """Open a port for the call's audio, and write the SDP that names it."""
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
    """A user agent that ignores what is sent to a silent number, as if it were switched off.

    A user agent answers an INVITE with 100 before it asks the phone. So the datagram is dropped
    before the user agent reads it. `log_invite` is called once for each call that is dropped.
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
        """As the user agent's, but for datagrams to silent numbers."""
        if not (self._has_silent_rules and self._is_to_silent_number(data)):
            super().receive_datagram(data, source, now)

    def _is_to_silent_number(self, data: bytes) -> bool:
        try:
            message = parse(data)
        except MessageError:
            return False
        # A request within a dialog, or a response, follows from what was answered before.
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
    """The address that `far` can send to: `host`, unless that is the wildcard.

    Connecting a UDP socket sends nothing; it only asks the routing table.
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
