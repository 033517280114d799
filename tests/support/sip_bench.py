"""A far end under the test's hand: an agent with a clock of its own, and messages written as text.

Nothing here uses the agent's own writer, so that a mistake in that can't hide itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from bitel.sip import AgentConfig, Answered, Event, Invitation, UserAgent, make_offer
from bitel.sip.grammar import Address, HostPort
from bitel.sip.message import Message, Request, Response, parse
from bitel.sip.source_filter import SourcePolicy

US: HostPort = ("192.0.2.1", 5060)
FAR = Address("192.0.2.9", 5060)
OFFER = make_offer(("192.0.2.1", 30000), session_id=7)
ANSWER = (
    "v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n"
    "m=audio 40000 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\n"
    "a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=sendrecv\r\n"
)
INVITATION = Invitation("sip:+989121234567@192.0.2.9", FAR, "sip:bitel@192.0.2.1", OFFER)


@dataclass
class Sent:
    """One datagram that the agent sent."""

    at: float
    data: bytes
    destination: Address
    message: Message = field(init=False)

    def __post_init__(self) -> None:
        self.message = parse(self.data)

    @property
    def request(self) -> Request:
        assert isinstance(self.message, Request), self.data
        return self.message

    @property
    def response(self) -> Response:
        assert isinstance(self.message, Response), self.data
        return self.message

    @property
    def name(self) -> str:
        """The method of a request, the status of a response with its method."""
        if isinstance(self.message, Request):
            return self.message.method
        assert isinstance(self.message, Response)
        return f"{self.message.code} {self.message.cseq_method}"


class Bench:
    """An agent, its clock, and all that it has said."""

    def __init__(
        self,
        config: AgentConfig | None = None,
        seed: int = 1,
        sources: SourcePolicy | None = None,
    ) -> None:
        self.agent = UserAgent(config or AgentConfig(US), random.Random(seed), sources)
        self.now = 0.0
        self._sent: list[Sent] = []
        self._events: list[Event] = []
        self.last_data = b""
        """The datagram that was sent last."""

    def collect(self) -> None:
        self._sent += [Sent(self.now, d, to) for d, to in self.agent.datagrams_to_send()]
        self.last_data = self._sent[-1].data if self._sent else self.last_data
        while (event := self.agent.next_event()) is not None:
            self._events.append(event)

    def receive(self, data: str | bytes, source: Address = FAR) -> None:
        raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        self.agent.receive_datagram(raw, source, self.now)
        self.collect()

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at each timer."""
        self.collect()
        end = self.now + seconds
        while (due := self.agent.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.agent.handle_timer(self.now)
            self.collect()
        self.now = end

    def sleep(self, seconds: float) -> None:
        """Let time pass unseen, as in a process that is stopped; then every timer that is due."""
        self.collect()
        self.now += seconds
        self.agent.handle_timer(self.now)
        self.collect()

    def run_out(self, limit: float = 1000.0) -> None:
        """Let time pass until nothing is left to wait for."""
        self.advance(limit)
        assert self.agent.idle(), self.agent.counts()

    def sent(self) -> list[Sent]:
        """What was sent since the last time."""
        self.collect()
        sent, self._sent = self._sent, []
        return sent

    def names(self) -> list[str]:
        return [sent.name for sent in self.sent()]

    def one(self, name: str) -> Sent:
        """The only datagram sent since the last time, which must be a `name`."""
        (only,) = self.sent()
        assert only.name == name, only.data
        return only

    def events(self) -> list[Event]:
        self.collect()
        events, self._events = self._events, []
        return events

    def invite(self, invitation: Invitation = INVITATION) -> tuple[str, Request]:
        call_id = self.agent.invite(invitation, self.now)
        return call_id, self.one("INVITE").request


def reply(
    request: Request,
    code: int,
    body: str = "",
    *,
    tag: str = "far",
    headers: tuple[str, ...] = ("Contact: <sip:far@192.0.2.9:5060>",),
    phrase: str = "Phrase",
) -> str:
    """A far end's response to one of the agent's requests."""
    to = request.header("to")
    if code > 100 and not request.to_tag:
        to += f";tag={tag}"
    lines = [
        f"SIP/2.0 {code} {phrase}",
        *(f"Via: {via}" for via in request.headers["via"]),
        f"From: {request.header('from')}",
        f"To: {to}",
        f"Call-ID: {request.call_id}",
        f"CSeq: {request.cseq} {request.cseq_method}",
        *headers,
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def request(
    method: str,
    uri: str = "sip:09121234567@192.0.2.1",
    body: str = "",
    *,
    branch: str = "z9hG4bKone",
    call_id: str = "call-1",
    cseq: int = 1,
    cseq_method: str = "",
    from_tag: str = "caller",
    to_tag: str = "",
    via: str = "SIP/2.0/UDP 192.0.2.9:5060;rport",
    headers: tuple[str, ...] = ("Contact: <sip:caller@192.0.2.9:5060>",),
) -> str:
    """A request that a far end makes."""
    lines = [
        f"{method} {uri} SIP/2.0",
        f"Via: {via};branch={branch}",
        "Max-Forwards: 70",
        f"From: <sip:caller@192.0.2.9>;tag={from_tag}",
        f"To: <{uri}>" + (f";tag={to_tag}" if to_tag else ""),
        f"Call-ID: {call_id}",
        f"CSeq: {cseq} {cseq_method or method}",
        *headers,
        *(["Content-Type: application/sdp"] if body else []),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def answered(
    *headers: str, source: Address = FAR, bench: Bench | None = None, **invitation: object
) -> tuple[Bench, str, Request]:
    """A call of ours that was answered: its bench, call id and INVITE. The ACK is still to be taken
    from the bench.

    `headers` are those of the 2xx from `source`, a Contact by default; `invitation` replaces fields
    of `INVITATION`.
    """
    bench = bench or Bench()
    call_id, invite = bench.invite(INVITATION._replace(**invitation))  # type: ignore[arg-type]
    contact = ("Contact: <sip:far@192.0.2.9>",)
    bench.receive(reply(invite, 200, ANSWER, headers=headers or contact), source)
    assert [type(event) for event in bench.events()] == [Answered]
    return bench, call_id, invite


def reliable(
    invite: Request,
    code: int,
    rseq: object,
    body: str = "",
    tag: str = "far",
    contact: str = "Contact: <sip:far@192.0.2.9:5060>",
) -> str:
    """A reliable provisional response to our `invite` (RFC 3262)."""
    headers = (contact, "Require: 100rel", f"RSeq: {rseq}")
    return reply(invite, code, body, tag=tag, headers=headers)


def with_content_type(message: str, content_type: str, *more: str) -> str:
    """The message with another type of its body, and `more` headers."""
    headers = "\r\n".join((f"Content-Type: {content_type}", *more))
    return message.replace("Content-Type: application/sdp", headers)


def within(invite: Request, method: str, cseq: int, body: str = "", **more: object) -> str:
    """A request that the callee of our `invite` makes within the dialog (its tag is "far")."""
    return request(
        method,
        "sip:192.0.2.1:5060",
        body,
        branch=f"z9hG4bK{method}{cseq}",
        call_id=invite.call_id,
        cseq=cseq,
        from_tag="far",
        to_tag=invite.from_tag,
        **more,  # type: ignore[arg-type]
    )
