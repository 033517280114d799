from __future__ import annotations

import socket
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.port_pool import REST, RETRY_TAKEN, NoPortError, PortPool
from tests.support.clocks import FakeClock
from tests.support.free_ports import free_range

HOST = "127.0.0.1"


def test_own_ports_while_there_are_free_ones_then_the_least_shared() -> None:
    pool = PortPool(HOST, free_range(3))
    lent = [pool.open() for _ in range(8)]
    assert len(set(lent[:3])) == 3
    assert sorted(Counter(lent).values()) == [2, 3, 3]
    assert all(port % 2 == 0 for port in lent)
    pool.close()


def test_new_ports_are_taken_from_the_first_on_and_then_from_the_lowest() -> None:
    ports = free_range(4)
    pool = PortPool(HOST, ports, first=2)
    lent = [pool.open() for _ in range(4)]
    assert lent == [ports[4], ports[6], ports[0], ports[2]]
    pool.close()


def test_a_released_port_rests_while_others_are_free() -> None:
    clock = FakeClock(100.0)
    pool = PortPool(HOST, free_range(3), clock=clock)
    first = pool.open()
    pool.release(first)
    second = pool.open()
    assert second != first
    clock.now += REST
    assert pool.open() == first  # rested: no new socket is needed
    third = pool.open()
    assert third not in (first, second)
    pool.release(second)
    assert pool.open() == second  # still resting, and better than sharing
    pool.close()


def test_a_port_that_another_program_holds_is_skipped_and_tried_again_later() -> None:
    ports = free_range(2)
    clock = FakeClock(100.0)
    pool = PortPool(HOST, ports, clock=clock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, ports.start))
        assert [pool.open() for _ in range(2)] == [ports.start + 2] * 2
    assert pool.open() == ports.start + 2
    clock.now += RETRY_TAKEN
    assert pool.open() == ports.start
    pool.close()


def test_no_port_at_all() -> None:
    ports = free_range(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, ports.start))
        with pytest.raises(NoPortError, match=f"{ports.start}-{ports.stop - 1}"):
            PortPool(HOST, ports).open()


def test_at_most_so_many_sockets() -> None:
    pool = PortPool(HOST, free_range(4), max_sockets=2)
    assert len({pool.open() for _ in range(6)}) == 2
    pool.close()


def test_what_is_not_lent_is_neither_released_nor_used() -> None:
    pool = PortPool(HOST, free_range(1))
    port = pool.open()
    pool.release(port)
    with pytest.raises(ValueError, match=str(port)):
        pool.release(port)
    with pytest.raises(ValueError, match=str(port)):
        pool.sockets(port)[0]
    pool.close()


def test_what_arrives_is_dropped_by_the_kernel() -> None:
    pool = PortPool(HOST, free_range(1))
    bound = pool.sockets(pool.open())[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as callee:
        callee.connect(bound.getsockname())
        for _ in range(10):
            callee.send(bytes(172))  # and no "port unreachable" comes back
    with pytest.raises(BlockingIOError):
        bound.recv(1)
    pool.close()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.none(), st.integers(0, 30), st.floats(0, 10)), max_size=60))
def test_ports_are_shared_evenly_whatever_happens(steps: list[int | float | None]) -> None:
    clock = FakeClock(100.0)
    pool = PortPool(HOST, free_range(4), clock=clock)
    lent: list[int] = []
    for step in steps:
        if step is None:
            before = Counter(lent)
            port = pool.open()
            assert before[port] == min(before[p] for p in {*before, port})
            if before[port]:
                assert len(before) == 4
            lent.append(port)
        elif isinstance(step, int):
            if lent:
                pool.release(lent.pop(step % len(lent)))
        else:
            clock.now += step
    pool.close()


def test_a_pool_that_listens_binds_the_port_above_for_rtcp() -> None:
    while True:
        ports = free_range(2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            try:
                other.bind((HOST, ports.start + 1))  # another program has the first companion
            except OSError:
                continue
            pool = PortPool(HOST, ports, receive=True)
            try:
                port = pool.open()
            except NoPortError:
                continue
            break
    assert port == ports.start + 2
    companion = pool.sockets(port)[1]
    assert companion is not None
    assert companion.getsockname() == (HOST, port + 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as freed:
        freed.bind((HOST, ports.start))  # half a pair is given back
    pool.close()
    assert companion.fileno() == -1


def test_a_port_without_one_above_it_in_the_range_is_lent_without_rtcp() -> None:
    start = free_range(1).start
    pool = PortPool(HOST, range(start, start + 1), receive=True)
    assert pool.open() == start
    assert pool.sockets(start)[1] is None
    pool.close()


def test_a_pool_that_only_sends_has_no_companions() -> None:
    pool = PortPool(HOST, free_range(1))
    assert pool.sockets(pool.open())[1] is None
    pool.close()
