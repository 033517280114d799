"""The phone: takes calls, does with each what the rules say, and logs what it saw."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitel.sip.config import AgentConfig
from bitel.sip.events import Canceled, Ended, Event, Incoming
from bitel.sip.grammar import Address, HostPort
from bitel.sip.sdp import NoCommonCodec, SessionDescription, make_answer
from bitel.sip_transport.tls import TlsFileError, TlsFiles
from bitel.sip_transport.transport import SipTransport
from bitel.test_phone.call_history import Memory
from bitel.test_phone.log import CallLog, Detail, Entry, Kind
from bitel.test_phone.recorder import Recorder
from bitel.test_phone.rtp_sinks import CountingEar, Ear, RecordingEar
from bitel.test_phone.rules import Answer, Behaviour, Reject, Ring, Rule, Silent
from bitel.test_phone.silent_numbers import SelectivelyDeafAgent

logger = logging.getLogger(__name__)

TEMPORARILY_UNAVAILABLE: Final = 480
NOT_ACCEPTABLE_HERE: Final = 488
SERVICE_UNAVAILABLE: Final = 503


@dataclass(frozen=True, slots=True)
class PhoneConfig:
    """What a phone is told when it is made.

    `listen` is where it takes calls; port 0 takes any that is free. `public_address` is what it
    says its Contact is, where that is another one, as behind a relay. `record` is a folder: with
    it, the first `record_minutes` of each call's audio become a WAV there; without it, packets
    are only counted. More than `max_calls` at once are refused with 503.
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
    ear: Ear | None = None
    timer: asyncio.TimerHandle | None = None
    answered_at: float | None = None
    hung_up: bool = False


class Phone:
    """A SIP callee on one port, for UDP and TCP, and with a certificate for TLS on the next.

    `on_entry` is told each entry of its log as it happens.
    """

    def __init__(
        self, config: PhoneConfig, *, on_entry: Callable[[Entry], None] | None = None
    ) -> None:
        self._config = config
        self._memory = Memory(config.rules)
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
        self._recorder = None if config.record is None else Recorder(config.record)
        self.log = CallLog(config.log, on_entry=self._on_entry)
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

    def _make_agent(self, local: HostPort) -> SelectivelyDeafAgent:
        contact = self._config.public_address or (_reachable(local[0]), local[1])
        config = AgentConfig(local=contact, user_agent="bitel phone")
        return SelectivelyDeafAgent(config, self._memory, self._note_unheard)

    def _note_unheard(self, call_id: str, number: str, caller: str) -> None:
        self.log.write(call_id, number, "invite", **{"from": caller, "rule": str(Silent())})

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
        behaviour = self._memory.decide(event.call_id, event.number)
        call = _Call(event.call_id, event.number, event.offer, event.source)
        self._calls[call.call_id] = call
        self.log.write(
            call.call_id, call.number, "invite", **{"from": event.from_user, "rule": str(behaviour)}
        )
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
                # Its datagram never reaches the agent, so there is nothing to be silent about.
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
        """Open an ear for the call, and write the SDP that names it."""
        if call.offer is None:
            raise NoCommonCodec("the INVITE offers no media")
        host = _reachable(self.address[0], call.source[:2])
        call.ear = self._open_ear(call, host)
        return make_answer(call.offer, (host, call.ear.port))

    def _open_ear(self, call: _Call, host: str) -> Ear:
        def on_first() -> None:
            self._note(call, "audio")

        if self._recorder is None:
            return CountingEar(host, on_first)
        return RecordingEar(host, on_first, minutes=self._config.record_minutes)

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
        packets = 0 if call.ear is None else call.ear.close()
        seconds = 0.0 if call.answered_at is None else self._loop.time() - call.answered_at
        self._note(call, "end", packets=packets, seconds=round(seconds, 3))
        if isinstance(call.ear, RecordingEar):
            task = self._loop.create_task(self._save(call, call.ear))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)
        if not self._calls:
            self._all_over.set()

    async def _save(self, call: _Call, ear: RecordingEar) -> None:
        assert self._recorder is not None
        try:
            path = await self._recorder.save(call.number, call.call_id, ear)
        except OSError as error:
            logger.error("the recording of call %s could not be written: %s", call.call_id, error)
        else:
            self._note(call, "recorded", file=path.name)

    def _note(self, call: _Call, event: Kind, **details: Detail) -> None:
        self.log.write(call.call_id, call.number, event, **details)


def _reachable(host: str, far: HostPort = ("192.0.2.1", 9)) -> str:
    """The address that `far` can reach us at: `host`, where that is not the wildcard.

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
