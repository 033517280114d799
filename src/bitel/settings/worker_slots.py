"""The settings of one of several workers of a machine: ports and files of its own."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Self

from bitel.errors import SettingsError
from bitel.settings.sections import DialerSettings, Settings
from bitel.settings.values import split_address, split_public_address

MOST_WORKERS: Final = 64
"""Workers of one machine."""
PORT_STEP: Final = 2
"""SIP ports of a worker: one for UDP and TCP, and the next for TLS."""
LEAST_RTP_PORTS: Final = 4
"""RTP ports of a worker, RTCP included."""


class WorkerSlot(NamedTuple):
    """The place of a worker among those of its machine."""

    number: int = 1
    """The first is 1."""
    of: int = 1
    """Workers of the machine."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NUMBER/OF`. Raises SettingsError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise SettingsError(f"the slot {text!r} is not of the form NUMBER/OF, as in 2/4")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def suffix(self) -> str:
        """Follows the names of files in data_dir; the first worker has those of a single one."""
        return "" if self.number == 1 else f"-{self.number}"


ONLY_WORKER: Final = WorkerSlot()
"""The slot of a process that is alone on its machine."""


def settings_of(slot: WorkerSlot, settings: Settings) -> Settings:
    """The settings with the ports of the worker in the slot.

    Its SIP ports, and that of its metrics, follow those of the worker before; each has an equal
    part of the RTP ports. Raises SettingsError if there are too few ports.
    """
    if slot.of == 1:
        return settings
    changes: dict[str, Any] = {
        "dialers": [_dialer_of(slot, each, number) for number, each in enumerate(settings.dialers)]
    }
    if settings.metrics.bind:
        bind = _moved(settings.metrics.bind, slot.number - 1, "metrics.bind")
        changes["metrics"] = settings.metrics.model_copy(update={"bind": bind})
    return settings.model_copy(update=changes)


def _dialer_of(slot: WorkerSlot, dialer: DialerSettings, number: int) -> DialerSettings:
    ports = dialer.rtp_range
    each = len(ports) // slot.of // 2 * 2
    if each < LEAST_RTP_PORTS:
        raise SettingsError(
            f"dialers[{number}].rtp_ports {dialer.rtp_ports} is too narrow for {slot.of} workers; "
            f"each needs {LEAST_RTP_PORTS} ports or more"
        )
    first = ports.start + each * (slot.number - 1)
    step = PORT_STEP * (slot.number - 1)
    changes = {
        "rtp_ports": f"{first}-{first + each - 1}",
        "bind": _moved(dialer.bind, step, f"dialers[{number}].bind"),
    }
    if dialer.public_address:
        host, port = split_public_address(dialer.public_address)
        if port:
            public = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            name = f"dialers[{number}].public_address"
            changes["public_address"] = _moved(public, step, name)
    return dialer.model_copy(update=changes)


def _moved(address: str, step: int, name: str) -> str:
    """The address with a port that is higher by `step`; port 0 stays."""
    host, port = split_address(address)
    if not port:
        return address
    if port + step > 65535:
        raise SettingsError(f"{name} {address} leaves no ports above it for all workers; lower it")
    return f"[{host}]:{port + step}" if ":" in host else f"{host}:{port + step}"
