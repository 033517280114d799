"""Machines in network namespaces: what reaches another one, and what a cut drops and shows."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.network import Machine, Namespaces
from tests.chaos.wire import Capture
from tests.support.network_namespace import need_network_namespaces
from tests.support.waiting import wait_until

PORT = 5060
CUT = 3.0
_numbers = itertools.count()
MESSAGE = (
    b"%b sip:09121234567@10.77.2.2 SIP/2.0\r\nVia: SIP/2.0/UDP x;branch=z9hG4bK1\r\n"
    b"Call-ID: c1\r\nCSeq: 1 %b\r\n\r\n"
)


@pytest.fixture
def network() -> Iterator[Namespaces]:
    need_network_namespaces()
    made = Namespaces()
    yield made
    made.close()


def opened(machine: Machine) -> socket.socket:
    with machine.entered():
        endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        endpoint.bind((machine.address, PORT))
    endpoint.settimeout(0.2)
    return endpoint


def arrives(sender: socket.socket, receiver: socket.socket) -> bool:
    data = str(next(_numbers)).encode()
    sender.sendto(data, receiver.getsockname())
    try:
        while receiver.recv(2048) != data:
            pass  # an earlier one, which was late
    except TimeoutError:
        return False
    return True


def test_a_cut_drops_both_ways_between_two_machines_and_no_other(network: Namespaces) -> None:
    one, two, three = (network.machine(name) for name in ("one", "two", "three"))
    with opened(one) as first, opened(two) as second, opened(three) as third:
        assert arrives(first, second)
        cutting = threading.Thread(target=network.cut, args=(one, two, CUT))
        cutting.start()
        wait_until(lambda: not arrives(first, second))
        assert not arrives(second, first)
        assert arrives(first, third)
        cutting.join()
        assert arrives(first, second)


def test_a_link_that_is_down_cuts_a_machine_off_from_all(network: Namespaces) -> None:
    one, two, three = (network.machine(name) for name in ("one", "two", "three"))
    with opened(one) as first, opened(two) as second, opened(three) as third:
        falling = threading.Thread(target=network.take_down, args=(one, CUT))
        falling.start()
        wait_until(lambda: not arrives(first, second))
        assert not arrives(first, third)
        assert arrives(second, third)
        falling.join()
        assert arrives(first, second)


def test_networks_with_the_same_addresses_exist_at_once(network: Namespaces) -> None:
    one, two = network.machine("one"), network.machine("two")
    other = Namespaces()
    third = other.machine("one")
    try:
        with opened(one) as first, opened(two) as second, opened(third) as apart:
            assert third.address == one.address
            assert arrives(first, second)
            assert not arrives(second, apart)
    finally:
        other.close()


def test_the_capture_sees_what_a_cut_drops_on_its_way_from_a_worker_only(
    network: Namespaces,
) -> None:
    worker, carrier = network.machine("worker"), network.machine("carrier")
    capture = Capture({worker.name: worker.port}, PORT)
    with opened(worker) as first, opened(carrier) as second:
        first.sendto(MESSAGE % (b"INVITE", b"INVITE"), second.getsockname())
        cutting = threading.Thread(target=network.cut, args=(worker, carrier, CUT))
        cutting.start()
        wait_until(lambda: not arrives(first, second))
        second.sendto(b"SIP/2.0 180 x\r\nCSeq: 1 INVITE\r\n\r\n", first.getsockname())
        first.sendto(MESSAGE % (b"BYE", b"BYE"), second.getsockname())
        cutting.join()
        second.sendto(b"SIP/2.0 200 x\r\nCSeq: 2 BYE\r\n\r\n", first.getsockname())
        wait_until(lambda: len(capture.datagrams) >= 3)
    capture.close()
    assert [(each.start, each.was_sent, each.number) for each in capture.datagrams] == [
        ("INVITE", True, "9121234567"),
        ("BYE", True, "9121234567"),
        ("200", False, ""),
    ]
