"""Sandbox of the worker processes: no access to files, sockets, signals and other processes.

Decoders written in C read untrusted bytes. An attacker who takes over the process can still use
only its open descriptors and its memory. There are four independent layers:

- *seccomp*: an allow-list of system calls (`seccomp(2)`), on x86-64 and arm64.
- *Landlock*: no files, TCP ports and signals to other processes (`landlock(7)`), from Linux 5.13
  on; ports from 6.7, signals from 6.12.
- another user: `nobody`, if the service runs as root.
- `no_new_privs`, and no inspection by other processes of its user (`prctl(2)`).

The service logs at its start which of them are missing. Workers with limited memory load this
module, so it must import little.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

NOBODY: Final = 65534
"""User and group without rights on Linux."""

# Of linux/prctl.h and linux/seccomp.h.
_SET_DUMPABLE, _SET_NO_NEW_PRIVS, _SET_SECCOMP = 4, 38, 22
_MODE_FILTER: Final = 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
# Of linux/filter.h: load a word of `struct seccomp_data`, compare it, mask it, return.
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_PROT_EXEC: Final = 4
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: its column in the tables below, and its number in `seccomp_data`."""

_Numbers = dict[str, tuple[int, int | None]]
"""Numbers of system calls on x86-64 and arm64, which lacks the older ones."""

COMPUTING: Final[_Numbers] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "ftruncate": (77, 46),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "set_robust_list": (273, 99),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "rseq": (334, 293),
}
"""Always allowed."""
_LOOKING_UP: Final[_Numbers] = {"stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79)}
"""Also allowed if files may be opened."""
_BOUNDED: Final[_Numbers] = {
    "open": (2, None),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "tgkill": (234, 131),
    "openat": (257, 56),
}
"""Allowed with certain arguments only."""
NEVER_NEEDED: Final[_Numbers] = {
    "socket": (41, 198),
    "link": (86, None),
    "symlink": (88, None),
    "ptrace": (101, 117),
    "mount": (165, 40),
    "keyctl": (250, 219),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
}
"""Refused to Piper, whose needed system calls are not known."""

# Of linux/landlock.h.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READING: Final = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS: Final = (13, 14, 15, 15, 16)  # by version, from 1 on: how many there are
_NET_RIGHTS: Final = 0b11  # bind and connect by TCP, from version 4 on
_SCOPES: Final = 0b11  # abstract Unix sockets and signals, from version 6 on


def enter(
    readable: Sequence[Path] = (), writable: Sequence[Path] = (), *, drop_user: bool = False
) -> None:
    """Confine this process, which must have one thread, permanently, also after exec.

    It keeps its open descriptors, and may read beneath `readable` and write beneath `writable`.
    `drop_user` changes root to `nobody`. Raises OSError if the kernel has a layer but refuses it.
    """
    _prctl(_SET_NO_NEW_PRIVS, 1)
    if landlock_version():
        _restrict_files(readable, writable)
    if drop_user and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_SET_DUMPABLE, 0)


def allow_computing_only(*, opening: bool = False) -> None:
    """Refuse all system calls except `COMPUTING` from now on, by EPERM.

    Memory can't be made executable, and only this process can be signalled. With `opening`, files
    may be opened for reading, if Landlock allows it.
    """
    if not has_seccomp():
        return
    program = _for_each(COMPUTING, _ALLOW)
    program += _if_argument("tgkill", 0, 0xFFFFFFFF, os.getpid())
    program += _if_argument("mmap", 2, _PROT_EXEC, 0)
    program += _if_argument("mprotect", 2, _PROT_EXEC, 0)
    if opening:
        program += _if_argument("openat", 2, _WRITING, 0)
        program += _if_argument("open", 1, _WRITING, 0)
        program += _for_each(_LOOKING_UP, _ALLOW)
    _install(program, otherwise=_REFUSE)


def refuse_never_needed() -> None:
    """Refuse the system calls of `NEVER_NEEDED` from now on, by EPERM."""
    if has_seccomp():
        _install(_for_each(NEVER_NEEDED, _REFUSE), otherwise=_ALLOW)


def layers() -> tuple[list[str], list[str]]:
    """The layers that are available here, and those that are not."""
    found = {
        "limits": True,
        "no_new_privs": sys.platform.startswith("linux"),
        "seccomp": has_seccomp(),
        "Landlock": landlock_version() > 0,
        "another user": os.geteuid() == 0,
    }
    return [name for name in found if found[name]], [name for name in found if not found[name]]


@lru_cache(maxsize=1)
def landlock_version() -> int:
    """The version of Landlock's ABI; 0: no Landlock."""
    if not sys.platform.startswith("linux"):
        return 0
    version = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    return max(int(version), 0)


@lru_cache(maxsize=1)
def has_seccomp() -> bool:
    """Whether system calls can be filtered."""
    if not sys.platform.startswith("linux") or platform.machine() not in _ARCHITECTURES:
        return False
    # A kernel with this mode returns EFAULT for the null pointer.
    _libc().prctl(_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


# seccomp


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """A `struct sock_filter`; `if_true` and `if_false` are numbers of instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def _number(calls: _Numbers, name: str) -> int | None:
    column, _ = _ARCHITECTURES[platform.machine()]
    return calls[name][column]


def _for_each(calls: _Numbers, action: int) -> list[bytes]:
    """Instructions that return `action` if the loaded number is that of one of the calls."""
    numbers = (_number(calls, name) for name in calls)
    return [
        instruction
        for number in numbers
        if number is not None
        for instruction in (_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, action))
    ]


def _if_argument(name: str, index: int, mask: int, wanted: int) -> list[bytes]:
    """Instructions that allow the call if argument `index`, masked, is `wanted`; else refuse it."""
    number = _number(_BOUNDED, name)
    if number is None:
        return []
    return [
        _instruction(_EQUAL, number, 0, 5),
        _instruction(_LOAD, _ARGUMENTS + 8 * index),
        _instruction(_AND, mask),
        _instruction(_EQUAL, wanted, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _REFUSE),
    ]


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _install(rules: Sequence[bytes], otherwise: int) -> None:
    _, architecture = _ARCHITECTURES[platform.machine()]
    program = [
        # The numbers differ in other architectures, such as 32-bit.
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _REFUSE),
        _instruction(_LOAD, _NUMBER),
        *rules,
        _instruction(_RETURN, otherwise),
    ]
    compiled = _Program(len(program), b"".join(program))
    _prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(compiled))


# Landlock


def _restrict_files(readable: Sequence[Path], writable: Sequence[Path]) -> None:
    version = landlock_version()
    handled = (1 << _FILE_RIGHTS[min(version, len(_FILE_RIGHTS)) - 1]) - 1
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _NET_RIGHTS)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for paths, rights in ((readable, _READING), (writable, handled & ~_EXECUTE)):
            for path in paths:
                _allow_beneath(ruleset, path, rights & handled)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_beneath(ruleset: int, path: Path, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, parent), 0)
    finally:
        os.close(parent)


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _prctl(option: int, value: int, pointer: int = 0) -> None:
    words = [ctypes.c_ulong(word) for word in (value, pointer, 0, 0)]
    if _libc().prctl(option, *words):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _syscall(number: int, *arguments: Any) -> int:
    result = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"call {number}: {os.strerror(ctypes.get_errno())}")
    return int(result)
