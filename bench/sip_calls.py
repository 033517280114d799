"""Measures the calls per second of the SIP user agent alone, on one core.

    python -m bench.sip_calls [--calls N] [--profile]

Each call is INVITE, 100, 180, 200, ACK, BYE, 200. The time to make the responses is not counted.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from dataclasses import dataclass

from bitel.sip import Address, AgentConfig, Answered, Ended, Invitation, UserAgent, make_offer

FAR = Address("127.0.0.1", 5080)
ANSWER = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio 40000 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\n"
    "a=fmtp:101 0-16\r\na=ptime:20\r\na=sendrecv\r\n"
)


@dataclass(frozen=True, slots=True)
class Result:
    calls: int
    cpu_seconds: float

    @property
    def calls_per_second(self) -> float:
        return self.calls / self.cpu_seconds


def response(request: bytes, code: str, body: str = "") -> bytes:
    """Returns a response of the remote to `request`."""
    lines = request.decode().split("\r\n")
    kept = [
        line + (";tag=far" if line.startswith("To:") and ";tag=" not in line else "")
        for line in lines
        if line.startswith(("Via:", "From:", "To:", "Call-ID:", "CSeq:"))
    ]
    more = ["Contact: <sip:far@127.0.0.1:5080>", "Server: far end 1.0", "Allow: INVITE, ACK, BYE"]
    if body:
        more.append("Content-Type: application/sdp")
    head = [f"SIP/2.0 {code}", *kept, *more, f"Content-Length: {len(body)}"]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def run(calls: int) -> Result:
    """Places `calls` calls in sequence; only the agent's time counts."""
    agent = UserAgent(AgentConfig(("127.0.0.1", 5060)))
    offer = make_offer(("127.0.0.1", 30000))
    spent = 0.0
    now = 0.0
    for number in range(calls):
        now += 0.001
        invitation = Invitation(
            f"sip:+98912{number:07}@127.0.0.1:5080", FAR, "sip:bitel@127.0.0.1", offer
        )
        started = time.process_time()
        call_id = agent.invite(invitation, now)
        ((invite, _),) = agent.datagrams_to_send()
        spent += time.process_time() - started
        answers = [
            response(invite, "100 Trying"),
            response(invite, "180 Ringing"),
            response(invite, "200 OK", ANSWER),
        ]
        started = time.process_time()
        for answer in answers:
            agent.receive_datagram(answer, FAR, now)
            agent.next_timer()
        events = [agent.next_event(), agent.next_event()]
        agent.hang_up(call_id, now)
        _ack, (bye, _) = agent.datagrams_to_send()
        spent += time.process_time() - started
        last = response(bye, "200 OK")
        started = time.process_time()
        agent.receive_datagram(last, FAR, now)
        ended = agent.next_event()
        agent.handle_timer(now)
        spent += time.process_time() - started
        if not (isinstance(events[1], Answered) and isinstance(ended, Ended)):
            raise SystemExit(f"call {number} went wrong: {events}, {ended}")
    return Result(calls, spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(run, options.calls)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    result = run(options.calls)
    print(
        f"{result.calls} calls, {result.cpu_seconds:.2f} s of CPU: "
        f"{result.calls_per_second:,.0f} calls per CPU second, "
        f"{1e6 / result.calls_per_second:.0f} µs a call"
    )


if __name__ == "__main__":
    main()
