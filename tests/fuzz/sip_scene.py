"""Calls in every phase, and the messages that could come to them: what is mutated and fed."""

from __future__ import annotations

import random
from dataclasses import replace

from bitel.sip import (
    AgentConfig,
    Credentials,
    Incoming,
    Invitation,
    OutgoingRequest,
    SessionDescription,
    UserAgent,
    make_answer,
    make_offer,
)
from bitel.sip.message import Request, parse
from tests.support.sip_bench import ANSWER, FAR, US, reply, request, within

SPLICES = [
    *(b"\r\n", b"\0", b"\r", b"\n ", b":", b";", b",", b'"', b"<", b">", b"\\", b"=", b" "),
    *(b"\xff\xfe", b"%", b"sip:", b"[", b"]", b"@", b"tag=", b";lr", b"-1", b"4294967296"),
    *("١".encode(), b"a" * 3000, b"Require: x\r\n", b"Via: SIP/2.0/UDP h\r\n", b"t: x\r\n"),
    *(b"INVITE", b"ACK", b"BYE", b"CANCEL", b"UPDATE", b"OPTIONS", b"SIP/2.0 200 OK"),
    *(b"Reason: Q.850;cause=999\r\n", b"m=audio 0 RTP/AVP 8\r\n", b"c=IN IP4 0.0.0.0\r\n"),
    *(b"--b\r\n", b"--b--", b"Content-Disposition: x;handling=required\r\n", b"a=maxptime:1\r\n"),
    *(b"c=IN IP4 media.example\r\n", b"m=audio 9 RTP/AVP 98\r\n", b"a=rtpmap:98 PCMA/8000\r\n"),
]


PARTS = (
    f"--b\r\nContent-Type: application/sdp\r\n\r\n{ANSWER}\r\n--b\r\n"
    "Content-Type: multipart/mixed;boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n"
)


def in_multipart(message: str) -> str:
    return message.replace("application/sdp", "multipart/mixed;boundary=b", 1)


class Scene:
    """An agent with calls in every phase, and the messages that could come to them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.agent = UserAgent(
            AgentConfig(US, max_server_transactions=50, max_early_calls=10), random.Random(5)
        )
        self.messages: list[bytes] = []
        self.invite(answered=False)
        self.invite(answered=True)
        ended = self.invite(answered=True)
        self.agent.hang_up(ended.call_id, 0.0)
        bye = self.last_request()
        self.add(reply(bye, 401, headers=('WWW-Authenticate: Digest realm="r", nonce="n"',)))
        self.add(reply(bye, 200))
        canceled = self.invite(answered=False)
        self.give(reply(canceled, 180))
        self.agent.cancel(canceled.call_id, 0.0)
        self.add(reply(self.last_request(), 200))
        self.add(reply(canceled, 487))
        self.reliable()
        self.refreshing()
        self.outside()
        self.callee()

    def give(self, text: str) -> None:
        self.agent.receive_datagram(text.encode(), FAR, self.now)

    def add(self, text: str) -> None:
        self.messages.append(text.encode())

    def last_request(self) -> Request:
        message = parse(self.agent.datagrams_to_send()[-1][0])
        assert isinstance(message, Request)
        return message

    def invite(self, *, answered: bool) -> Request:
        self.agent.invite(
            Invitation(
                "sip:1@192.0.2.9",
                FAR,
                "sip:us@192.0.2.1",
                make_offer(("192.0.2.1", 30000), session_id=7),
                Credentials("u", "p"),
            ),
            self.now,
        )
        invite = self.last_request()
        routes = ("Contact: <sip:far@192.0.2.9>", "Record-Route: <sip:192.0.2.9;lr>, <sip:p>")
        if answered:
            self.give(reply(invite, 200, ANSWER, headers=routes))
        self.add(reply(invite, 183, ANSWER))
        self.add(reply(invite, 200, ANSWER, headers=routes))
        self.add(in_multipart(reply(invite, 200, PARTS, headers=routes)))
        self.add(in_multipart(within(invite, "UPDATE", 9, PARTS)))
        self.add(reply(invite, 486, headers=("Reason: Q.850;cause=17",)))
        challenge = 'Proxy-Authenticate: Digest realm="r", nonce="n", qop="auth,auth-int"'
        self.add(reply(invite, 407, headers=(challenge,)))
        for number, method in enumerate(("INVITE", "UPDATE", "ACK", "OPTIONS", "BYE")):
            self.add(within(invite, method, number + 1, ANSWER))
        return invite

    def reliable(self) -> None:
        """A call that rings with PRACKs under way."""
        invite = self.invite(answered=False)
        for rseq in (1, 2, 3):
            headers = ("Require: 100rel", f"RSeq: {rseq}", "Contact: <sip:far@192.0.2.9>")
            self.give(reply(invite, 183, ANSWER, headers=headers))
            self.add(reply(invite, 183, ANSWER, headers=headers))
            self.add(reply(self.last_request(), 200))
        for rseq in (4, 5):
            headers = ("Require: 100rel", f"RSeq: {rseq}", "Contact: <sip:far@192.0.2.9>")
            self.add(reply(invite, 180, headers=headers))
        self.add(reply(invite, 200))
        self.add(reply(invite, 422, headers=("Min-SE: 3600",)))
        self.add(reply(invite, 302, headers=("Contact: <sip:a@h>;q=0.5", "Retry-After: 9")))

    def refreshing(self) -> None:
        """Calls whose session timer has just had them send an UPDATE and a re-INVITE."""
        calls = []
        for allow in ("Allow: UPDATE", "Allow: BYE"):
            invite = self.invite(answered=False)
            timer = ("Session-Expires: 90;refresher=uac", allow)
            self.give(reply(invite, 200, ANSWER, headers=timer))
            calls.append(invite)
        self.agent.datagrams_to_send()
        self.now = 45.0
        self.agent.handle_timer(self.now)
        for data, _ in self.agent.datagrams_to_send():
            message = parse(data)
            if isinstance(message, Request) and "session-expires" in message.headers:
                self.add(reply(message, 200, ANSWER, headers=("Session-Expires: 90",)))
                for code in (422, 491, 500, 481):
                    self.add(reply(message, code, headers=("Min-SE: 300",)))
        for invite in calls:
            headers = ("Supported: timer", "Session-Expires: 90;refresher=uas")
            self.add(within(invite, "UPDATE", 7, headers=headers))

    def outside(self) -> None:
        """A ping and a registration under way."""
        ping = OutgoingRequest("OPTIONS", "sip:h", FAR, "sip:us@h", "sip:h")
        register = replace(ping, method="REGISTER", credentials=Credentials("u", "p"))
        for order in (ping, register):
            self.agent.request(order, self.now)
            sent = self.last_request()
            self.add(reply(sent, 200))
            self.add(reply(sent, 401, headers=('WWW-Authenticate: Digest realm="r", nonce="n"',)))

    def callee(self) -> None:
        offer = SessionDescription.parse(ANSWER.encode())
        for number in range(3):
            branch, call_id = f"z9hG4bK{number}", f"call-{number}"
            text = request("INVITE", body=ANSWER, branch=branch, call_id=call_id)
            self.give(text)
            self.add(text)
            self.add(request("CANCEL", branch=branch, call_id=call_id))
            self.add(request("ACK", branch=branch, call_id=call_id))
        self.agent.accept(
            "call-1", make_answer(offer, ("192.0.2.1", 40000), session_id=7), self.now
        )
        self.agent.reject("call-2", 486, self.now)
        for method in ("OPTIONS", "REGISTER", "BYE"):
            self.add(request(method))

    def take_all(self) -> None:
        self.agent.datagrams_to_send()
        while (event := self.agent.next_event()) is not None:
            if isinstance(event, Incoming):
                hash(event)


def finish(scene: Scene) -> None:
    """Hang everything up; with nobody answering, all of it must end by its timers."""
    agent = scene.agent
    for call_id in list(agent._calls.running):
        agent.hang_up(call_id, scene.now)
    for _ in range(5000):
        due = agent.next_timer()
        if due is None:
            break
        scene.now = max(scene.now, due)
        agent.handle_timer(scene.now)
        scene.take_all()
        # A call of ours that waits for a first 1xx to cancel is ended by timer B.
        for call_id in list(agent._calls.running):
            agent.hang_up(call_id, scene.now)
    assert agent.idle(), agent.counts()
