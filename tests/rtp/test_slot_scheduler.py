"""Which streams are sent together: those of a port, and about as many in each tick."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from bitel.rtp.sender.packet_batch import Batch, StreamRow
from bitel.rtp.sender.sendmmsg import Group, Packets, Refused, sockaddr
from bitel.rtp.sender.tick_schedule import CROWDED, STREAMS_PER_SLOT, SlotScheduler

FAR = sockaddr(socket.AF_INET, "192.0.2.1", 5000)


class Calls:
    """Streams of some ports; system calls are counted, not made."""

    def __init__(self, ports: int) -> None:
        self.groups: list[Group] = []
        self.scheduler = SlotScheduler(20, socket.AF_INET, self._transmit)
        self.where: dict[int, Batch] = {}
        self._ports = ports

    def _transmit(self, packets: Packets, groups: Sequence[Group]) -> Refused:
        self.groups.extend(groups)
        return []

    def begin(self, number: int) -> None:
        port = number % self._ports
        self.where[number] = batch = self.scheduler.choose(port)
        batch.add(StreamRow(number, port, FAR, 8, 0, 0, number, 0, 9))

    def end(self, number: int) -> None:
        self.where.pop(number).remove(number)

    def packet_time(self) -> None:
        for batch in self.scheduler.batches:
            batch.settle()
            batch.send()

    def homes(self) -> list[Batch]:
        return [self.scheduler.choose(port) for port in range(self._ports)]


@pytest.mark.parametrize("ports", [64, 256])
def test_streams_of_a_port_stay_together_while_their_number_grows(ports: int) -> None:
    calls = Calls(ports)
    streams = 10 * STREAMS_PER_SLOT
    for number in range(streams):
        calls.begin(number)
    loads = [len(batch) for batch in calls.scheduler.batches]
    assert min(loads) > STREAMS_PER_SLOT // 10
    assert max(loads) <= 2 * STREAMS_PER_SLOT + CROWDED
    calls.packet_time()
    assert sum(count for _, _, count in calls.groups) == streams
    # One system call a port would be best; streams that run stay where they are as slots are added.
    assert len(calls.groups) < 5 * ports


def test_in_the_long_run_each_port_is_one_system_call() -> None:
    calls = Calls(64)
    streams = 10 * STREAMS_PER_SLOT
    for number in range(3 * streams):
        calls.begin(number)
        if number >= streams:
            calls.end(number - streams)
    calls.packet_time()
    assert len(calls.groups) == 64
    loads = [len(batch) for batch in calls.scheduler.batches]
    assert max(loads) <= 1.25 * STREAMS_PER_SLOT


def test_a_number_that_goes_up_and_down_moves_no_port() -> None:
    calls = Calls(8)
    for number in range(STREAMS_PER_SLOT + 8):
        calls.begin(number)
    homes = calls.homes()
    assert len({id(home) for home in homes}) == 2
    for number in range(100):
        calls.end(number)
    calls.packet_time()
    assert calls.homes() == homes
    for number in range(100, STREAMS_PER_SLOT):
        calls.end(number)
    calls.packet_time()
    assert len({id(home) for home in calls.homes()}) == 1
