"""Places calls over SIP trunks: an INVITE, the recording as RTP once it is answered, a BYE."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import chain

import structlog

from bitel.dialer.accepted_sources import AcceptedSources
from bitel.dialer.call_attempt import CallAttempt
from bitel.dialer.call_leg import CallLeg
from bitel.dialer.call_observer import CallObserver
from bitel.dialer.caller_identity import CallerIds, Identity, identity
from bitel.dialer.config import SipTrunkConfig
from bitel.dialer.failover import Dialled, Route
from bitel.dialer.local_address import LocalAddress
from bitel.dialer.media_session import MediaSession, Patience, check_address
from bitel.dialer.number_format import NumberForm
from bitel.dialer.playlist import Playlist, PlaylistSource
from bitel.dialer.resolver import Resolver
from bitel.dialer.trunk import Trunk, shown
from bitel.dialer.trunk_monitor import RESTART_PAUSE, Passed, TrunkMonitor
from bitel.dialer.trunk_state import TrunkState
from bitel.dialing.dialer import DialRequest, OnAnswered, OnRinging, ignore_ringing
from bitel.dialing.recording_faults import RecordingFaults
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.budget import DEFAULT_HOLD, longest_call
from bitel.errors import BitelError, InvalidRequestError, NotFoundError, UnavailableError
from bitel.g711 import SAMPLE_RATE
from bitel.observability.logging import LineLimit
from bitel.rtp.streamer import NoPortError, RemoteAddressError, SenderFailedError, Streamer
from bitel.sip import (
    AgentConfig,
    Answered,
    DeliveryDoubted,
    Ended,
    Event,
    Failed,
    Incoming,
    Invitation,
    MessageDropped,
    RequestDone,
    UserAgent,
)
from bitel.sip.grammar import Address, HostPort
from bitel.sip.sdp import NegotiatedMedia, make_offer
from bitel.sip_transport.tls import TlsFileError
from bitel.sip_transport.transport import Link, SipTransport
from bitel.supervision import keep_running

__all__ = ["SipTrunkConfig", "SipTrunkDialer"]

DROPPED_PER_SECOND = 1.0
DROPPED_BURST = 20.0
"""Log lines about messages that a stranger has sent for a call."""
EXPIRES_MARGIN = 5
"""Seconds past the ring time-out after which a far end stops ringing by itself, should we be gone
(RFC 3261 §13.3.1)."""

log = structlog.get_logger(__name__)


class SipTrunkDialer:
    """A Dialer over one port for SIP and one sender process for RTP.

    `clock` gives the Unix seconds of all stored times, `system_clock` those of the dates in
    metrics. `link` is put between agent and socket in tests of lossy links.
    """

    def __init__(
        self,
        config: SipTrunkConfig,
        playlists: PlaylistSource,
        clock: Callable[[], float],
        link: Link | None = None,
        watch: CallObserver | None = None,
        targets: Resolver | None = None,
        recording_faults: RecordingFaults | None = None,
        system_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._recording_faults = recording_faults or RecordingFaults("", time.monotonic)
        self._playlists = playlists
        self._clock = clock
        self._link = link
        self._legs: dict[str, CallLeg] = {}
        self._attempts: dict[str, CallAttempt] = {}
        self._transport: SipTransport | None = None
        self._streamer = Streamer(
            config.bind[0], config.rtp_ports, processes=config.senders, receive=config.receive
        )
        self._streamer.on_failure = self._sender_failed
        self._watch = watch
        self._carriers = TrunkMonitor(config, system_clock, targets)
        self._sources = AcceptedSources(config.accept_from, self._carriers.is_of_trunk)
        self._dropped = LineLimit(DROPPED_PER_SECOND, DROPPED_BURST)
        self._numbers = NumberForm(config.number_format, config.number_rules)
        self._caller_ids = CallerIds(config.caller_pool, config.caller_ids)
        self._whereabouts = LocalAddress(
            config.bind[0], config.public_address, self._carriers.any_address
        )
        self._following: asyncio.Task[None] | None = None
        self.confirm_lease: Callable[[], Awaitable[bool]] | None = None
        """Asks whether the dialer is still this process's; set before `start`, or never."""

    @property
    def up(self) -> bool:
        """Whether SIP is spoken, and a carrier is there to speak with."""
        return self._transport is not None and self._carriers.up

    @property
    def probing(self) -> bool:
        """Whether a call placed now only tries out a trunk that has failed: one is enough."""
        return self._transport is not None and self._carriers.probing

    @property
    def paused_reason(self) -> str:
        """Why no calls are placed although the trunks answer; "" while they are."""
        return self._carriers.paused_reason

    @property
    def has_worked(self) -> bool:
        """Whether any trunk has delivered a call."""
        return self._carriers.has_worked

    def assume_worked(self) -> None:
        """Take it that the trunks have delivered calls, as an earlier process has recorded."""
        self._carriers.assume_worked()

    def assume_paused(self, reason: str) -> None:
        """Take it that the trunks refuse every call, as an earlier process has recorded; the next
        call tries one."""
        self._carriers.assume_paused(reason)

    def trunks(self) -> Sequence[TrunkState]:
        """The state of each of the carriers' addresses, from memory."""
        return self._carriers.trunks()

    @property
    def behind(self) -> float:
        """Seconds for which SIP messages have been waiting to be read; 0 while none are."""
        return 0.0 if self._transport is None else self._transport.behind

    @property
    def config(self) -> SipTrunkConfig:
        """The configuration that holds now."""
        return self._config

    @property
    def sip_address(self) -> HostPort:
        """The address and port that SIP is spoken from, once started."""
        return self._sip.local

    @property
    def streamer(self) -> Streamer:
        """The RTP side, for its figures."""
        return self._streamer

    def renew_certificate(self) -> None:
        """Read the files of the TLS certificate again, for connections from now on.

        Raises BitelError where they can't be used; then the former certificate is still shown.
        """
        if self._transport is None:
            return
        try:
            self._transport.renew_certificate()
        except TlsFileError as fault:
            raise BitelError(f"SIP can't be spoken over TLS: {fault}") from fault

    def change(self, config: SipTrunkConfig) -> None:
        """Place calls with another configuration from now on, which differs in what calls need.

        Trunks, addresses, ports, registration and the ring time-out must stay the same.
        """
        self._config = config
        self._sources.accept_from(config.accept_from)
        self._numbers = NumberForm(config.number_format, config.number_rules)
        self._caller_ids = CallerIds(config.caller_pool, config.caller_ids)

    async def start(self) -> None:
        """Bind the SIP socket and start the RTP sender; BitelError says what is in the way."""
        host, port = self._config.bind
        try:
            address = await self._whereabouts.find()
            self._transport = await SipTransport.open(
                self._config.bind,
                lambda local: UserAgent(
                    AgentConfig(
                        local=(address, self._config.public_port or local[1]),
                        t1=self._config.t1,
                        tcp_fallback=self._config.tcp_fallback,
                        send_to_source=self._config.send_to_source,
                        follow_private=self._config.follow_private,
                    ),
                    sources=self._sources,
                ),
                self._receive,
                link=self._link,
                tap=self._watch.tap if self._watch else None,
                tls=self._config.tls,
                accepts=self._sources.accepts,
            )
        except OSError as fault:
            raise BitelError(f"SIP can't be spoken from {host}:{port}: {fault}") from fault
        except TlsFileError as fault:
            raise BitelError(f"SIP can't be spoken over TLS: {fault}") from fault
        self._transport.confirm_lease = self.confirm_lease
        await self._streamer.start()
        self._carriers.start(self._transport, self._address_is_silent)
        follow = partial(self._whereabouts.follow, self._move)
        self._following = asyncio.create_task(
            keep_running("follow our address", follow, RESTART_PAUSE)
        )

    async def close(self) -> None:
        """Take registrations back, stop the sender, close the socket."""
        if self._following is not None:
            self._following.cancel()
        await self._carriers.stop()
        await self._streamer.stop()
        if self._transport is not None:
            await self._transport.close()
            self._transport = None

    async def dial(
        self, order: DialRequest, heard: OnAnswered, rang: OnRinging = ignore_ringing
    ) -> AttemptResult:
        """Make one attempt: trunk by trunk while they are in trouble, until one gives an answer."""
        attempt = CallAttempt(order, self._config.ring_timeout, self._clock, rang)
        self._attempts[order.attempt_id] = attempt
        attempted: AttemptResult | None = None
        try:
            attempted = await self._prepare_and_call(attempt, heard)
        except Exception:
            log.exception("attempt_broke", attempt=order.attempt_id, call=order.call_id)
            self._abort(attempt)
            attempted = attempt.broken()
        finally:
            if attempted is None:  # cancelled
                self._abort(attempt)
            if attempt.port is not None:
                self._streamer.release_port(attempt.port)
            if attempt.leg is not None:
                self._legs.pop(attempt.leg.call_id, None)
                attempt.leg.close()
            del self._attempts[order.attempt_id]
            if self._watch:
                self._watch.over(order, attempted)
        return attempted

    async def _prepare_and_call(self, attempt: CallAttempt, heard: OnAnswered) -> AttemptResult:
        try:
            playlists = await self._lay_out(attempt.order)
            port = attempt.port = self._streamer.open_port()
            await self._streamer.prepare(port, chain(*playlists.values()))
        except (NotFoundError, InvalidRequestError) as fault:
            # There is nothing to play, and a retry would not change that.
            return attempt.over(Outcome.MEDIA_MISMATCH, detail=str(fault))
        except (NoPortError, OSError) as fault:
            return attempt.over(Outcome.TRUNK_TROUBLE, detail=str(fault))
        except UnavailableError as fault:
            # The storage can't be reached, or there is no voice: a later attempt may succeed.
            return attempt.over(Outcome.NOT_PLACED, detail=str(fault))
        return await self._call(attempt, playlists, port, heard)

    def _abort(self, attempt: CallAttempt) -> None:
        """End the call after an error, so that no phone goes on ringing and no line stays open."""
        try:
            if attempt.talk is not None:
                attempt.talk.stop()
            if attempt.leg is not None and self._transport is not None:
                self._hang_up(attempt)
        except Exception:
            log.exception("attempt_not_aborted", attempt=attempt.order.attempt_id)

    def call_off(self, attempt_id: str) -> None:
        """CANCEL or BYE, whichever fits."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            attempt.called_off = True
            if attempt.talk is not None:
                # Also where the far end takes its time with our BYE.
                attempt.talk.stop()
            self._hang_up(attempt)

    def abandon(self, attempt_id: str) -> None:
        """As `call_off`, for an attempt that is no longer ours: an INVITE to which nothing was
        answered is not repeated, and no other is sent."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None and attempt.leg is not None:
            self._sip.agent.cancel(attempt.leg.call_id, self._sip.now(), repeat=False)
        self.call_off(attempt_id)

    async def _lay_out(self, order: DialRequest) -> Mapping[str, Playlist]:
        """What the order plays, by codec; raises as `PlaylistSource.for_order` does."""
        try:
            playlists = await self._playlists.for_order(order, self._config.codecs)
        except UnavailableError as fault:
            self._recording_faults.missed(
                order, f"{fault} ({fault.__cause__})" if fault.__cause__ else str(fault)
            )
            raise
        self._recording_faults.found(order)
        return playlists

    async def _call(
        self, attempt: CallAttempt, playlists: Mapping[str, Playlist], port: int, heard: OnAnswered
    ) -> AttemptResult:
        answered = await self._try_trunks(attempt, port)
        if isinstance(answered, AttemptResult):
            return answered
        leg = attempt.leg
        assert leg is not None, "an answer has an INVITE behind it"
        attempt.answered_at = attempt.now()
        try:
            agreed = await leg.resolved(answered.agreed)
            check_address(self._streamer, agreed)
        except RemoteAddressError as fault:
            await self._end(attempt, leg)
            return attempt.over(Outcome.MEDIA_MISMATCH, detail=str(fault), sip_code=200)
        if not await heard(attempt.answered_at):
            await self._end(attempt, leg)
            # The phone rang and was picked up: this must not happen again and again.
            return attempt.over(Outcome.RANG_THEN_FAILED, "the answer could not be recorded", 200)
        self._sip.agent.acknowledge(leg.call_id, self._sip.now())
        self._sip.flush()
        return await self._play(attempt, leg, agreed, playlists[agreed.codec_name], port)

    async def _play(
        self,
        attempt: CallAttempt,
        leg: CallLeg,
        agreed: NegotiatedMedia,
        playlist: Playlist,
        port: int,
    ) -> AttemptResult:
        """Send the clips, until they or the call are over."""
        if leg.ending.done() or attempt.called_off:
            # The call ended while the answer was made durable.
            return await self._finish(attempt, leg, played=False)
        patience = Patience(self._config.media_timeout, _longest(attempt.order, playlist))
        origin = "" if self._config.follow_private else leg.address.host
        talk = attempt.talk = MediaSession(self._streamer, patience, self._config.latch, origin)
        talk.begin(port, agreed, playlist, attempt.now() - (attempt.answered_at or attempt.now()))
        leg.follow_media(talk.follow)
        leg.ending.add_done_callback(attempt.call_is_ending)
        report = await talk.over
        attempt.stopped_at = attempt.now()
        if talk.is_unheard:
            await self._end(attempt, leg)
            return attempt.over(
                Outcome.MEDIA_MISMATCH, detail=talk.why, sip_code=200, ended_by="us"
            )
        wanted = talk.why or attempt.called_off or leg.ending.done()
        if not report.finished and not wanted:
            await self._end(attempt, leg)
            return attempt.over(Outcome.CUT_OFF, detail=report.error, sip_code=200, ended_by="us")
        # A hold, or the silence of the far end, is its own doing, whatever was played.
        if report.packets != 0 or talk.why:
            return await self._finish(attempt, leg, talk.why)
        return await self._finish(attempt, leg, report.error, played=False)

    async def _finish(
        self, attempt: CallAttempt, leg: CallLeg, detail: str = "", *, played: bool = True
    ) -> AttemptResult:
        """End the call if the far end has not, and report it as answered until then.

        Not so where we ended it with nothing `played`: that is not billed.
        """
        ended = await self._end(attempt, leg)
        outcome = Outcome.ANSWERED
        if not played and ended.by == "us":
            outcome = Outcome.CALLED_OFF if attempt.called_off else Outcome.CUT_OFF
            detail = detail or "the call was ended before anything was played"
        return attempt.over(
            outcome,
            detail=detail,
            sip_code=200,
            q850=ended.q850,
            ended_by=ended.by,
        )

    async def _try_trunks(self, attempt: CallAttempt, port: int) -> Answered | AttemptResult:
        number = self._numbers.of(attempt.order.e164)
        caller = self._caller_ids.choose(attempt.order.e164, attempt.order.call_id)
        config = self._config
        host = config.from_domain or self._whereabouts.address
        who = identity(caller, host, config.identity, config.privacy, config.user_phone)
        uri_for = partial(Trunk.uri_for, number=number, user_phone=config.user_phone)
        try:
            hops = await self._carriers.hops(uri_for)
        except OSError as fault:
            return attempt.over(Outcome.TRUNK_TROUBLE, detail=str(fault))
        passed: Passed = {}
        try:
            dialled = Dialled(attempt.order.e164, number, config.region)
            return await self._try_hops(attempt, hops, who, port, passed, dialled)
        finally:
            # A probe whose result is never known would keep the trunk from all further calls.
            self._carriers.leave(passed)

    async def _try_hops(
        self,
        attempt: CallAttempt,
        hops: list[Route],
        who: Identity,
        port: int,
        passed: Passed,
        dialled: Dialled,
    ) -> Answered | AttemptResult:
        over: AttemptResult | None = None
        while hops and attempt.rings_for():
            if attempt.called_off:
                return attempt.over(Outcome.CALLED_OFF)
            hop, *left = hops
            begun_at = self._carriers.begin(hop, passed)
            if begun_at is None:
                hops = left
                continue
            patience = self._config.trunk_timeout if left else None
            decided = await self._invite(attempt, hop, who, port, patience)
            self._carriers.learn(hop, decided)
            if isinstance(decided, Answered):
                self._carriers.record_outcome(hop, attempt.over(Outcome.ANSWERED), begun_at)
                return decided
            if decided.why == "media":
                # A 2xx that leaves nothing to play to: the carrier charges it all the same.
                attempt.answered_at = attempt.now()
            over = self._carriers.record_outcome(
                hop,
                attempt.failed(decided, hop.address),
                begun_at,
                picked_up=decided.why == "media",
            )
            hops, over = self._carriers.next_hops(hop, decided, over, left, dialled)
        return over or attempt.over(Outcome.TRUNK_TROUBLE, detail="no trunk takes calls now")

    async def _invite(
        self, attempt: CallAttempt, hop: Route, who: Identity, port: int, patience: float | None
    ) -> Answered | Failed:
        """Ring until an answer or the end of the ring time.

        A far end that sends no response at all is given up after `patience` seconds, if not None.
        """
        config = self._config
        invitation = Invitation(
            request_uri=hop.request_uri,
            destination=hop.address,
            from_uri=who.from_uri,
            offer=make_offer((self._whereabouts.address, port), config.codecs),
            credentials=config.credentials,
            trusted=self._carriers.hosts(hop.trunk) if config.credentials else frozenset(),
            headers=(
                *config.route,
                *who.headers,
                _expires(config.ring_timeout),
                *config.extra_headers,
            ),
            display_name=who.display_name,
            # Until the answer is durable. Should we die before, the far end gives up by itself,
            # and is not left on an open line when the call is made again.
            withhold_ack=True,
        )
        if attempt.leg is not None:
            self._legs.pop(attempt.leg.call_id, None)
            attempt.leg.close()
        sip = self._sip
        call_id = sip.agent.invite(invitation, sip.now())
        leg = CallLeg(call_id, hop.address, attempt.ringing, self._carriers.find_host)
        attempt.leg = self._legs[leg.call_id] = leg
        if self._watch:
            self._watch.invited(attempt.order, leg.call_id)
        sip.flush()
        loop = asyncio.get_running_loop()
        # An answer that has arrived by then wins, read or not.
        timers = [
            loop.call_later(
                attempt.rings_for(), sip.after_reading, partial(self._ring_no_more, leg)
            )
        ]
        if patience is not None:
            give_up = partial(self._give_up, leg)
            timers.append(loop.call_later(patience, sip.after_reading, give_up))
        try:
            return await leg.decided
        finally:
            for timer in timers:
                timer.cancel()

    async def _end(self, attempt: CallAttempt, leg: CallLeg) -> Ended:
        """Hang up if need be, and wait until the call is over for us too."""
        if not leg.ended.done():
            self._hang_up(attempt)
        return await leg.ended

    def _hang_up(self, attempt: CallAttempt) -> None:
        """Send BYE, or CANCEL before the answer."""
        if attempt.leg is None:
            return
        if attempt.hung_up_at is None:
            attempt.hung_up_at = attempt.now()
        sip = self._sip
        sip.agent.hang_up(attempt.leg.call_id, sip.now())
        sip.flush()

    def _ring_no_more(self, leg: CallLeg) -> None:
        # An INVITE without any response is not repeated now: a phone might begin to ring.
        sip = self._sip
        sip.agent.cancel(leg.call_id, sip.now(), repeat=False)
        sip.flush()

    def _give_up(self, leg: CallLeg) -> None:
        self._sip.agent.give_up(leg.call_id, self._sip.now())
        self._sip.flush()

    def _address_is_silent(self, address: Address) -> None:
        """Give up the INVITEs to `address` without a response, so that another is tried."""
        for leg in list(self._legs.values()):
            if leg.address == address and not leg.decided.done():
                self._sip.after_reading(partial(self._give_up, leg))

    def _receive(self, event: Event) -> None:
        if isinstance(event, DeliveryDoubted):
            self._carriers.doubt(event.destination)
            return
        if isinstance(event, MessageDropped):
            self._note_dropped(event)
        leg = self._legs.get(event.call_id)
        if leg is not None:
            leg.receive(event)
        elif isinstance(event, RequestDone):
            self._whereabouts.compare(event)
            self._carriers.receive(event)
        elif isinstance(event, Incoming):
            # A dialer calls and is not called.
            self._sip.agent.reject(event.call_id, 480, self._sip.now())
            self._sip.flush()

    def _note_dropped(self, event: MessageDropped) -> None:
        """Log a message for a running call that comes from a source which has no part in it."""
        left_out = self._dropped.take()
        if left_out is None:
            return
        log.warning(
            "sip_message_dropped",
            source=shown(event.source),
            kind="response" if event.is_response else "request",
            sip_call_id=event.call_id,
            not_logged=left_out,
        )

    @property
    def messages_dropped(self) -> tuple[int, int]:
        """SIP messages from sources that are not accepted: all, and those that name a call."""
        if self._transport is None:
            return 0, 0
        counts = self._transport.agent.counts()
        return counts.from_elsewhere, counts.from_elsewhere_for_calls

    def _sender_failed(self, error: SenderFailedError) -> None:
        log.error(
            "rtp_sender_failed",
            fault=str(error),
            pid=error.pid,
            status=error.status,
            streams=error.streams,
        )

    def _move(self, address: str) -> None:
        """Use another address of ours: for new calls, and in registrations."""
        agent = self._sip.agent
        agent.move((address, agent.config.local[1]))
        self._carriers.move()

    @property
    def _sip(self) -> SipTransport:
        assert self._transport is not None, "the dialer is not started"
        return self._transport


def _expires(ring_timeout: float) -> tuple[str, str]:
    return ("Expires", str(math.ceil(ring_timeout) + EXPIRES_MARGIN))


def _longest(order: DialRequest, playlist: Playlist) -> int:
    """Seconds after the answer at which a call is ended; never before it has played everything."""
    seconds = sum(clip.size for clip in playlist) / SAMPLE_RATE
    hold = 0 if order.longest_seconds else DEFAULT_HOLD
    return max(order.longest_seconds, longest_call(seconds, hold))
