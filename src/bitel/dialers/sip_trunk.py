"""Places calls over SIP trunks: an INVITE, the recording as RTP once it is answered, a BYE."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from bitel.calls.outcome import Attempted, Outcome
from bitel.dialers.attempt import Attempt
from bitel.dialers.carriers import Carriers
from bitel.dialers.config import SipTrunkConfig
from bitel.dialers.hops import Hop
from bitel.dialers.identity import CallerIds, Identity, identity
from bitel.dialers.leg import Leg
from bitel.dialers.numbering import NumberForm
from bitel.dialers.playlists import Playlist, PlaylistSource
from bitel.dialers.targets import Targets
from bitel.dialers.trunk import address_toward
from bitel.dialers.watch import Watch
from bitel.dialing.dialer import Heard, Order
from bitel.errors import BitelError, InvalidRequestError, NotFoundError, UnavailableError
from bitel.rtp.packet import PTIMES
from bitel.rtp.streamer import FarEndError, Streamer, StreamReport
from bitel.sip import (
    AgentConfig,
    Answered,
    Ended,
    Event,
    Failed,
    Incoming,
    Invitation,
    MediaChanged,
    RequestDone,
    UserAgent,
)
from bitel.sip.sdp import (
    DEFAULT_PTIME,
    Agreed,
    Direction,
    NoCommonCodec,
    check_answer,
    make_offer,
)
from bitel.transports.udp import Link, UdpTransport

__all__ = ["SipTrunkConfig", "SipTrunkDialer"]

log = structlog.get_logger(__name__)


class SipTrunkDialer:
    """A Dialer over one UDP socket for SIP and one sender process for RTP.

    `clock` gives Unix seconds. `link` stands between agent and socket in tests of lossy links.
    """

    def __init__(
        self,
        config: SipTrunkConfig,
        playlists: PlaylistSource,
        clock: Callable[[], float],
        link: Link | None = None,
        watch: Watch | None = None,
        targets: Targets | None = None,
    ) -> None:
        self._config = config
        self._playlists = playlists
        self._clock = clock
        self._link = link
        self._legs: dict[str, Leg] = {}
        self._attempts: dict[str, Attempt] = {}
        self._transport: UdpTransport | None = None
        self._streamer = Streamer(config.bind[0], config.rtp_ports)
        self._watch = watch
        self._carriers = Carriers(config, clock, targets)
        self._numbers = NumberForm(config.number_format, config.number_rules)
        self._caller_ids = CallerIds(config.caller_pool, config.caller_ids)
        self._address = ""

    @property
    def up(self) -> bool:
        """Whether SIP is spoken, and a carrier is there to speak with."""
        return self._transport is not None and self._carriers.up

    @property
    def streamer(self) -> Streamer:
        """The RTP side, for its figures."""
        return self._streamer

    async def start(self) -> None:
        """Bind the SIP socket and start the RTP sender; BitelError says what is in the way."""
        host, port = self._config.bind
        try:
            self._address = self._config.public_address or await self._own_address()
            self._transport = await UdpTransport.open(
                self._config.bind,
                lambda local: UserAgent(
                    AgentConfig(
                        local=(self._address, self._config.public_port or local[1]),
                        t1=self._config.t1,
                    )
                ),
                self._receive,
                link=self._link,
                tap=self._watch.tap if self._watch else None,
            )
        except OSError as fault:
            raise BitelError(f"SIP can't be spoken from {host}:{port}: {fault}") from fault
        await self._streamer.start()
        self._carriers.start(self._transport)

    async def close(self) -> None:
        """Take registrations back, stop the sender, close the socket."""
        await self._carriers.stop()
        await self._streamer.stop()
        if self._transport is not None:
            await self._transport.close()
            self._transport = None

    async def dial(self, order: Order, heard: Heard) -> Attempted:
        """Make one attempt: trunk by trunk while they are in trouble, until one gives an answer."""
        attempt = Attempt(order, self._config.ring_timeout, self._clock)
        self._attempts[order.attempt_id] = attempt
        try:
            playlists = await self._playlists.for_order(order, self._config.codecs)
            port = self._streamer.open_port()
        except (NotFoundError, InvalidRequestError) as fault:
            # Nothing to play, now or ever.
            del self._attempts[order.attempt_id]
            return attempt.over(Outcome.MEDIA_MISMATCH, detail=str(fault))
        except UnavailableError as fault:
            # No free port, storage out of reach, no voice: later may be better.
            del self._attempts[order.attempt_id]
            return attempt.over(Outcome.TRUNK_TROUBLE, detail=str(fault))
        attempted: Attempted | None = None
        try:
            attempted = await self._call(attempt, playlists, port, heard)
            return attempted
        finally:
            if self._watch:
                self._watch.over(order, attempted)
            self._streamer.release_port(port)
            if attempt.leg is not None:
                self._legs.pop(attempt.leg.call_id, None)
            del self._attempts[order.attempt_id]

    def call_off(self, attempt_id: str) -> None:
        """CANCEL or BYE, whichever fits."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            attempt.called_off = True
            if attempt.leg is not None:
                self._hang_up(attempt.leg)

    async def _call(
        self, attempt: Attempt, playlists: Mapping[str, Playlist], port: int, heard: Heard
    ) -> Attempted:
        answered = await self._try_trunks(attempt, port)
        if isinstance(answered, Attempted):
            return answered
        leg = attempt.leg
        assert leg is not None, "an answer has an INVITE behind it"
        attempt.answered_at = self._clock()
        try:
            agreed = check_answer(leg.offer, answered.answer)
        except NoCommonCodec as fault:
            await self._end(leg)
            return attempt.over(Outcome.MEDIA_MISMATCH, detail=str(fault), sip_code=200)
        if not await heard(attempt.answered_at):
            await self._end(leg)
            return attempt.over(Outcome.TRUNK_TROUBLE, "the answer could not be recorded", 200)
        self._sip.agent.acknowledge(leg.call_id)
        self._sip.flush()
        return await self._play(attempt, leg, agreed, playlists[agreed.codec_name], port)

    async def _play(
        self, attempt: Attempt, leg: Leg, agreed: Agreed, playlist: Playlist, port: int
    ) -> Attempted:
        """Send the clips, until they or the call are over."""
        played: asyncio.Future[StreamReport] = asyncio.get_running_loop().create_future()
        if leg.ended.done() or attempt.called_off:
            # Gone while the answer was made durable: nobody is there to hear anything.
            return await self._finish(attempt, leg)
        stream = self._streamer.play(
            port,
            agreed.far,
            agreed.payload_type,
            playlist,
            played.set_result,
            ptime=agreed.ptime if agreed.ptime in PTIMES else DEFAULT_PTIME,
        )
        if not _may_send(agreed.direction):
            self._streamer.pause(stream)
        leg.follow_media(lambda changed: self._follow(stream, changed))
        either: list[asyncio.Future[Any]] = [played, leg.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not played.done():
            ended_at = self._clock()
            self._streamer.stop_stream(stream)
            await played
            return await self._finish(attempt, leg, ended_at)
        report = played.result()
        if not report.finished and not leg.ended.done():
            await self._end(leg)
            return attempt.over(Outcome.CUT_OFF, detail=report.error, sip_code=200, ended_by="us")
        return await self._finish(attempt, leg)

    def _follow(self, stream: int, changed: MediaChanged) -> None:
        """Hold the recording while the far end does, and go on where it then wants it."""
        far = changed.remote.address, changed.remote.port
        if not _may_send(changed.local.direction) or _is_nowhere(far):
            self._streamer.pause(stream)
            return
        try:
            self._streamer.resume(stream, far)
        except FarEndError as fault:
            log.warning("media_not_followed", fault=str(fault))
            self._streamer.pause(stream)

    async def _finish(self, attempt: Attempt, leg: Leg, ended_at: float | None = None) -> Attempted:
        """End the call if the far end has not, and report it as answered until then."""
        ended_at = self._clock() if ended_at is None else ended_at
        ended = await self._end(leg)
        return attempt.over(
            Outcome.ANSWERED,
            sip_code=200,
            q850=ended.q850,
            ended_by=ended.by,
            ended_at=ended_at,
        )

    async def _try_trunks(self, attempt: Attempt, port: int) -> Answered | Attempted:
        number = self._numbers.of(attempt.order.e164)
        caller = self._caller_ids.choose(attempt.order.e164)
        config = self._config
        who = identity(caller, self._address, config.identity, config.privacy)
        try:
            hops = await self._carriers.hops(lambda trunk: trunk.uri_for(number))
        except OSError as fault:
            return attempt.over(Outcome.TRUNK_TROUBLE, detail=str(fault))
        over = attempt.over(Outcome.TRUNK_TROUBLE, detail="every trunk asked to be left alone")
        while hops and attempt.rings_for():
            if attempt.called_off:
                return attempt.over(Outcome.CALLED_OFF)
            hop, *left = hops
            decided = await self._invite(attempt, hop, who, port)
            self._carriers.learn(hop, decided)
            if isinstance(decided, Answered):
                return decided
            over = attempt.failed(decided)
            hops = self._carriers.next_hops(hop, decided, over.outcome, left)
        return over

    async def _invite(
        self, attempt: Attempt, hop: Hop, who: Identity, port: int
    ) -> Answered | Failed:
        config = self._config
        offer = make_offer((self._address, port), config.codecs)
        invitation = Invitation(
            request_uri=hop.request_uri,
            destination=hop.address,
            from_uri=who.from_uri,
            offer=offer,
            credentials=config.credentials,
            headers=who.headers,
            display_name=who.display_name,
            # Until the answer is durable. Should we die before, the far end gives up by itself,
            # and is not left on an open line when the call is made again.
            withhold_ack=True,
        )
        if attempt.leg is not None:
            self._legs.pop(attempt.leg.call_id, None)
        leg = Leg(self._sip.agent.invite(invitation, self._sip.now()), offer)
        attempt.leg = self._legs[leg.call_id] = leg
        if self._watch:
            self._watch.invited(attempt.order, leg.call_id)
        self._sip.flush()
        loop = asyncio.get_running_loop()
        ring_out = loop.call_later(attempt.rings_for(), self._hang_up, leg)
        try:
            return await leg.decided
        finally:
            ring_out.cancel()

    async def _end(self, leg: Leg) -> Ended:
        """Hang up if need be, and wait until the call is over for us too."""
        if not leg.ended.done():
            self._hang_up(leg)
        return await leg.ended

    def _hang_up(self, leg: Leg) -> None:
        # In a call that nobody has answered yet, the agent makes this a CANCEL.
        self._sip.agent.hang_up(leg.call_id, self._sip.now())
        self._sip.flush()

    def _receive(self, event: Event) -> None:
        leg = self._legs.get(event.call_id)
        if leg is not None:
            leg.receive(event)
        elif isinstance(event, RequestDone):
            self._carriers.receive(event)
        elif isinstance(event, Incoming):
            # A dialer calls and is not called.
            self._sip.agent.reject(event.call_id, 480, self._sip.now())
            self._sip.flush()

    async def _own_address(self) -> str:
        """The address that Via, Contact and SDP say: the one bound, or the one toward a trunk."""
        host = self._config.bind[0]
        if host not in {"0.0.0.0", "::"}:
            return host
        return address_toward(await self._carriers.any_address())

    @property
    def _sip(self) -> UdpTransport:
        assert self._transport is not None, "the dialer is not started"
        return self._transport


def _may_send(direction: Direction) -> bool:
    return direction in ("sendrecv", "sendonly")


def _is_nowhere(far: tuple[str, int]) -> bool:
    """Whether this is an address of old, which meant hold (RFC 3264 §8.4)."""
    return far[0] in ("0.0.0.0", "::") or far[1] == 0
