"""The machines of a run: network namespaces behind a router, or all on this machine's loopback.

A router of its own joins the namespaces, each by a veth pair and a subnet of two addresses. It lies
in a namespace too, which the run's own process enters, so several runs may use the same addresses
and the machine's own network stays as it is. The namespaces have no names: open files and their
processes hold them, and they are gone with these. A router and not a bridge, because it can drop
what two machines send each other without a word to either (`ip rule ... blackhole`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.chaos.processes import wait_for
from tests.chaos.relay import Relay
from tests.chaos.storage import PostgresStorage
from tests.chaos.wire import Capture

_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_OWN: Final = "/proc/thread-self/ns/net"
_ROUTER: Final = "10.77.0.1"
"""The address of the run's own process."""


@dataclass(frozen=True)
class Machine:
    """A place where processes run: this machine, by its loopback."""

    name: str
    address: str = "127.0.0.1"
    port: str = ""
    """The router's network interface to it; empty where there is none."""

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Within it, this thread begins processes and opens sockets on the machine."""
        return contextlib.nullcontext()


class Network(Protocol):
    """What joins machines, and cuts them off."""

    address: str
    """Where the machines reach the run's own process."""
    is_separate: bool
    """Whether machines have addresses of their own."""
    faults: frozenset[str]
    """Those of "link-down", "db-cut" and "carrier-cut" that can be injected."""

    def machine(self, name: str) -> Machine:
        """Add a machine."""
        ...

    def database_url(self, machine: Machine, storage: PostgresStorage) -> str:
        """The setting `database_url` of a machine."""
        ...

    def cut(self, machine: Machine, other: Machine, seconds: float) -> None:
        """Drop all that two machines send each other; blocks for so long."""
        ...

    def take_down(self, machine: Machine, seconds: float) -> None:
        """Take a machine's link down; blocks for so long."""
        ...

    def capture(self, workers: Sequence[Machine], carrier_port: int) -> Capture | None:
        """Begin to capture the SIP datagrams of workers; None where that is not possible."""
        ...

    def close(self) -> None:
        """Remove what was made."""
        ...


def new_network(on_loopback: bool = False) -> Network:
    """Namespaces where they can be made and are wanted, else the loopback of this machine."""
    if not on_loopback:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return Namespaces()
    return Loopback()


@dataclass(frozen=True)
class Namespace(Machine):
    """A machine in a network namespace."""

    descriptor: int = -1
    """The open file that holds the namespace."""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        own = os.open(_OWN, os.O_RDONLY)
        try:
            _set_namespace(self.descriptor)
            try:
                yield
            finally:
                _set_namespace(own)
        finally:
            os.close(own)


class Namespaces:
    """Machines in namespaces of their own. The thread that makes it becomes the router."""

    address = _ROUTER
    is_separate = True
    faults = frozenset({"link-down", "db-cut", "carrier-cut"})

    def __init__(self) -> None:
        """OSError or CalledProcessError where the rights or `ip` are missing."""
        self._machines: list[Namespace] = []
        self._before = os.open(_OWN, os.O_RDONLY)
        try:
            _new_namespace()
            _ip("link", "set", "lo", "up")
            _ip("address", "add", f"{_ROUTER}/32", "dev", "lo")
            # Whether rules that drop can be made shows here, not in the middle of a run.
            _ip("rule", "add", "from", "10.77.255.1", "to", "10.77.255.2", "blackhole")
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        except BaseException:
            self.close()
            raise

    def machine(self, name: str) -> Machine:
        number = len(self._machines) + 1
        router, address = f"10.77.{number}.1", f"10.77.{number}.2"
        machine = Namespace(name, address, f"port{number}", _separate_namespace())
        self._machines.append(machine)
        inside = f"/proc/{os.getpid()}/fd/{machine.descriptor}"
        ethernet = f"02:00:00:00:00:{number:02x}"
        link = ("type", "veth", "peer", "name", "eth0", "netns", inside)
        _ip("link", "add", machine.port, "address", ethernet, *link)
        _ip("address", "add", f"{router}/30", "dev", machine.port)
        _ip("link", "set", machine.port, "up")
        with machine.entered():
            _ip("link", "set", "lo", "up")
            _ip("address", "add", f"{address}/30", "dev", "eth0")
            _ip("link", "set", "eth0", "up")
            _ip("route", "add", "default", "via", router)
            # Without it, the kernel keeps what is sent while the link is down until it has found
            # the router again, and then sends up to three seconds of it at once.
            _ip("neighbour", "add", router, "lladdr", ethernet, "dev", "eth0", "nud", "permanent")
        return machine

    def database_url(self, machine: Machine, storage: PostgresStorage) -> str:
        return storage.url

    def cut(self, machine: Machine, other: Machine, seconds: float) -> None:
        ways = ((machine.address, other.address), (other.address, machine.address))
        rules = [("from", sender, "to", receiver, "blackhole") for sender, receiver in ways]
        for rule in rules:
            _ip("rule", "add", *rule)
        time.sleep(seconds)
        for rule in rules:
            _ip("rule", "del", *rule)

    def take_down(self, machine: Machine, seconds: float) -> None:
        _ip("link", "set", machine.port, "down")
        time.sleep(seconds)
        _ip("link", "set", machine.port, "up")
        with machine.entered():
            # The kernel may take a second until it sends through the link again.
            wait_for(lambda: "state UP" in _ip("link", "show", "eth0"), 5.0)

    def capture(self, workers: Sequence[Machine], carrier_port: int) -> Capture | None:
        return Capture({each.name: each.port for each in workers}, carrier_port)

    def close(self) -> None:
        for machine in self._machines:
            os.close(machine.descriptor)
        self._machines.clear()
        try:
            _set_namespace(self._before)
        finally:
            os.close(self._before)


class Loopback:
    """All machines on this one; only the ways to the database can be cut, by relays."""

    address = "127.0.0.1"
    is_separate = False
    faults = frozenset({"db-cut"})

    def __init__(self) -> None:
        self._relays: dict[str, Relay] = {}

    def machine(self, name: str) -> Machine:
        return Machine(name)

    def database_url(self, machine: Machine, storage: PostgresStorage) -> str:
        relay = self._relays[machine.name] = Relay(Path(storage.socket_folder))
        return storage.url.replace(storage.socket_folder, str(relay.folder))

    def cut(self, machine: Machine, other: Machine, seconds: float) -> None:
        self._relays[machine.name].cut(seconds)

    def take_down(self, machine: Machine, seconds: float) -> None:
        raise NotImplementedError

    def capture(self, workers: Sequence[Machine], carrier_port: int) -> Capture | None:
        return None

    def close(self) -> None:
        for relay in self._relays.values():
            relay.close()


def _separate_namespace() -> int:
    """A new network namespace that this thread is not in; the file that holds it."""
    own = os.open(_OWN, os.O_RDONLY)
    try:
        _new_namespace()
        try:
            return os.open(_OWN, os.O_RDONLY)
        finally:
            _set_namespace(own)
    finally:
        os.close(own)


def _new_namespace() -> None:
    _checked(ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK))


def _set_namespace(descriptor: int) -> None:
    _checked(ctypes.CDLL(None, use_errno=True).setns(descriptor, _NEW_NETWORK))


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout
