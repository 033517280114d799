"""A process that places a call and is stopped by SIGSTOP, as by an operator or with its machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bitel.sip.message import Request, parse
from tests.support.sip_bench import ANSWER, reply

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="/proc says whether a process is stopped"
)
T1 = 0.05
TIMER_B = 64 * T1
PAUSE = 1.8
"""Seconds; enough to be noticed (PAUSE_NOTICED + LONGEST_TIMER), and before timer B."""
SHORT_PAUSE = 0.6
"""Seconds; not enough for that."""
PLACES_A_CALL = """
import asyncio, sys, uvloop
from bitel.sip import AgentConfig, Answered, Failed, Invitation, UserAgent, make_offer
from bitel.sip.grammar import Address
from bitel.sip_transport.transport import SipTransport

port, t1, loop, lease = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]

async def confirm():
    return lease == "kept"

async def main():
    over = asyncio.get_running_loop().create_future()
    transport = SipTransport(
        ("127.0.0.1", 0),
        lambda local: UserAgent(AgentConfig(local, t1=t1)),
        lambda event: isinstance(event, (Answered, Failed)) and over.set_result(event),
        confirm_lease=confirm,
    )
    print(transport.local[1], flush=True)
    offer = make_offer(("127.0.0.1", 30000))
    far = Address("127.0.0.1", port)
    transport.agent.invite(Invitation("sip:1@far", far, "sip:us@h", offer), transport.now())
    transport.flush()
    event = await over
    print(type(event).__name__, getattr(event, "why", ""), flush=True)
    await transport.close()

(uvloop.run if loop == "uvloop" else asyncio.run)(main())
"""


class Call:
    """A process that places a call to a socket of ours."""

    def __init__(self, loop: str, lease: str = "kept") -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        port = self.sock.getsockname()[1]
        words = (str(port), str(T1), loop, lease)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLACES_A_CALL, *words], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def invites(self, wait: float = 0.001) -> list[Request]:
        """Those that came since the last time; waits up to `wait` seconds for a first."""
        found: list[Request] = []
        self.sock.settimeout(wait)
        while True:
            try:
                data, source = self.sock.recvfrom(65536)
            except TimeoutError:
                return found
            if source != self.address:
                continue  # RTCP of another test, whose RTP port was the one below this
            message = parse(data)
            self.sock.settimeout(0.001)
            if isinstance(message, Request) and message.method == "INVITE":
                found.append(message)

    def stop(self) -> Request:
        """Stop it once its INVITE is out, which is returned; what came until then is read."""
        (invite, *_) = self.invites(10)
        self.process.send_signal(signal.SIGSTOP)
        while not _is_stopped(self.process.pid):
            time.sleep(0.001)
        self.invites()
        return invite

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def result(self) -> str:
        """What became of the call, once it is over."""
        out, _ = self.process.communicate(timeout=20)
        return out.strip()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def place() -> Iterator[Callable[..., Call]]:
    with ExitStack() as undo:

        def place(loop: str, lease: str = "kept") -> Call:
            call = Call(loop, lease)
            undo.callback(call.sock.close)
            undo.enter_context(call.process)
            undo.callback(call.process.kill)
            return call

        yield place


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
Place = Callable[..., Call]


@LOOPS
def test_an_invite_whose_time_passed_is_not_sent_again(place: Place, loop: str) -> None:
    call = place(loop)
    call.stop()
    time.sleep(1.5 * TIMER_B)
    call.go_on()
    assert call.result() == "Failed timeout"
    assert call.invites() == []


@LOOPS
def test_a_response_that_came_during_a_short_stop_ends_the_repeats(place: Place, loop: str) -> None:
    """Timer A is due meanwhile, and late by less than what counts as a pause."""
    call = place(loop)
    invite = call.stop()
    call.sock.sendto(reply(invite, 180).encode(), call.address)
    time.sleep(SHORT_PAUSE)
    call.go_on()
    assert call.invites(2 * SHORT_PAUSE) == []
    call.sock.sendto(reply(invite, 200, ANSWER).encode(), call.address)
    assert call.result() == "Answered"


@LOOPS
def test_an_answer_that_came_meanwhile_counts(place: Place, loop: str) -> None:
    call = place(loop)
    invite = call.stop()
    for _ in range(200):
        call.sock.sendto(b"\r\n\r\n", call.address)
    call.sock.sendto(reply(invite, 200, ANSWER).encode(), call.address)
    time.sleep(1.5 * TIMER_B)
    call.go_on()
    assert call.result() == "Answered"
    assert call.invites() == []


@LOOPS
@pytest.mark.parametrize("lease", ["kept", "lost"])
def test_before_its_time_it_is_sent_again_only_with_the_lease(
    place: Place, loop: str, lease: str
) -> None:
    call = place(loop, lease)
    call.stop()
    time.sleep(PAUSE)
    call.go_on()
    assert call.result() == "Failed timeout"
    assert bool(call.invites()) is (lease == "kept")
