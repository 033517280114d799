"""What a test needs of the machine beside Python.

Where it is missing, the test is skipped and says what is missing. In CI (the environment variable
`CI`), and for root on Linux, as in a container, the test fails instead: what is missing there was
forgotten, and nobody reads the skips of a run that passes.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys

import pytest


def need(present: bool, missing: str) -> None:
    """Skip or fail the test unless `present`; `missing` says what is not there."""
    if present:
        return
    if os.environ.get("CI") or (sys.platform == "linux" and os.geteuid() == 0):
        pytest.fail(f"this test can't run here: {missing}", pytrace=False)
    pytest.skip(missing)


def need_peer(present: bool, missing: str) -> None:
    """A peer that `scripts/peers` installs: skip the test without it, or fail in `make peers`."""
    if not present and os.environ.get("BITEL_TEST_PEERS") == "required":
        pytest.fail(f"this test can't run here: {missing}", pytrace=False)
    if not present:
        pytest.skip(missing)


def need_openssl() -> None:
    """The command that makes keys and certificates."""
    need(shutil.which("openssl") is not None, "openssl is not installed, which makes certificates")


def need_raw_sockets() -> None:
    """The right to send packets with any header."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    except OSError as fault:
        need(False, f"raw sockets are not allowed here ({fault})")


def need_ipv6() -> None:
    """A loopback interface that has IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError as fault:
        need(False, f"this machine has no IPv6 address of its own ({fault})")
