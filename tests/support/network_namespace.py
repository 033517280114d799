"""A network of its own for a test: addresses that this machine does not have, on its loopback."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Sequence

from tests.support.prerequisites import need

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def need_network_namespaces() -> None:
    """The right to make a network namespace, and `ip` to give it addresses."""
    done = subprocess.run(
        ["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, text=True
    )
    need(done.returncode == 0, f"network namespaces can't be made here ({done.stderr.strip()})")


def run_with_addresses(addresses: Sequence[str], test: Callable[[], Awaitable[None]]) -> None:
    """Run `test` in a thread, and with processes, that have these IPv4 addresses beside 127.0.0.1
    and no other network."""
    faults: list[BaseException] = []

    def work() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_NEW_NETWORK):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            _ip("link", "set", "lo", "up")
            for address in addresses:
                _ip("address", "add", f"{address}/32", "dev", "lo")
            asyncio.run(_run(test))
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]


async def _run(test: Callable[[], Awaitable[None]]) -> None:
    await test()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
