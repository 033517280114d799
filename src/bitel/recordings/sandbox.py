"""Takes from a worker process what it does not need: files, sockets, signals, other processes.

A decoder written in C meets bytes that a stranger chose. Should these take it over, it still has
only what this module leaves it: the descriptors that it was given, memory, and its own end. Four
layers, each of which holds without the others:

- *seccomp*: an allow-list of system calls (`seccomp(2)`), on x86-64 and arm64.
- *Landlock*: no file, no TCP port, no signal to another process (`landlock(7)`), from Linux 5.13
  on; ports from 6.7, signals from 6.12.
- another user: `nobody`, where the service runs as root.
- `no_new_privs`, and a process that can't be inspected by others of its user (`prctl(2)`).

Where the kernel lacks one, the service says so at its start. This module is loaded by the workers,
whose memory is limited, so that it imports little.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

NOBODY: Final = 65534
"""The user and group without rights, on every Linux system."""

# Of linux/prctl.h and linux/seccomp.h.
_SET_DUMPABLE, _SET_NO_NEW_PRIVS, _SET_SECCOMP = 4, 38, 22
_MODE_FILTER: Final = 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
# Of linux/filter.h: load a word of `struct seccomp_data`, compare it, mask it, return.
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_PROT_EXEC: Final = 4
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Architecture(NamedTuple):
    """What seccomp calls a processor, and the column of its numbers in `_CALLS`."""

    audit: int
    column: int


_ARCHITECTURES: Final = {
    "x86_64": _Architecture(0xC000003E, 0),
    "aarch64": _Architecture(0xC00000B7, 1),
}

_CALLS: Final[dict[str, tuple[int, int | None]]] = {
    # Name: number on x86-64, and on arm64, which has no older forms of a call.
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "socket": (41, 198),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "ftruncate": (77, 46),
    "link": (86, None),
    "symlink": (88, None),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "ptrace": (101, 117),
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
    "tgkill": (234, 131),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "symlinkat": (266, 36),
    "linkat": (265, 37),
    "unshare": (272, 97),
    "set_robust_list": (273, 99),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
    "getcpu": (309, 168),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "getrandom": (318, 278),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "rseq": (334, 293),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "io_uring_setup": (425, 425),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
}

COMPUTING: Final = (
    *("read", "write", "close", "fstat", "lseek", "pread64", "pwrite64", "readv", "writev"),
    *("munmap", "brk", "mremap", "madvise", "futex", "set_robust_list", "rseq", "ftruncate"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "exit", "exit_group"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time"),
    *("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getcpu", "getrusage"),
    *("times", "getrandom", "sched_yield", "sched_getaffinity"),
)
"""Calls that a process without files may make; `mmap`, `mprotect` and `tgkill` come with bounds."""
NEVER_NEEDED: Final = (
    *("socket", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd"),
    *("link", "linkat", "symlink", "symlinkat", "mount", "unshare", "setns", "bpf", "keyctl"),
    *("perf_event_open", "userfaultfd", "io_uring_setup"),
)
"""Calls that no program that speaks a text to a file has a use for."""

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
    """Confine this process permanently, also after exec.

    It keeps its open descriptors. Beyond these it may read what is beneath `readable`, and write
    beneath `writable`. `drop_user` makes it `nobody` where it is root; it then reads only what
    everybody may. Raises OSError where the kernel refuses what it should have.

    The process must have one thread.
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
    """From now on refuse every system call but `COMPUTING`, by EPERM.

    Memory can't be made executable, and only this process can be signalled. With `opening` files
    may be opened for reading, those that Landlock allows.
    """
    if not has_seccomp():
        return
    program = [_loads(_NUMBER)]
    program += _returns_if(COMPUTING, _ALLOW)
    program += _if_argument("tgkill", 0, 0xFFFFFFFF, os.getpid())
    program += _if_argument("mmap", 2, _PROT_EXEC, 0)
    program += _if_argument("mprotect", 2, _PROT_EXEC, 0)
    if opening:
        program += _if_argument("openat", 2, _WRITING, 0)
        program += _if_argument("open", 1, _WRITING, 0)
        program += _returns_if(("stat", "lstat", "newfstatat"), _ALLOW)
    _install([*program, _returns(_REFUSE)])


def refuse_the_needless() -> None:
    """From now on refuse the system calls of `NEVER_NEEDED`, by EPERM."""
    if has_seccomp():
        _install([_loads(_NUMBER), *_returns_if(NEVER_NEEDED, _REFUSE), _returns(_ALLOW)])


def layers() -> tuple[list[str], list[str]]:
    """The layers that there are, and those that are missing."""
    found = {
        "limits": True,
        "no_new_privs": sys.platform.startswith("linux"),
        "seccomp": has_seccomp(),
        "Landlock": landlock_version() > 0,
        "another user": os.geteuid() == 0,
    }
    return [name for name, is_there in found.items() if is_there], [
        name for name, is_there in found.items() if not is_there
    ]


@lru_cache(maxsize=1)
def landlock_version() -> int:
    """The version of Landlock's interface; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    version = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    return max(int(version), 0)


@lru_cache(maxsize=1)
def has_seccomp() -> bool:
    """Whether system calls can be filtered."""
    if not sys.platform.startswith("linux") or platform.machine() not in _ARCHITECTURES:
        return False
    # The null pointer is what it complains about, where it knows the mode.
    _libc().prctl(_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


# seccomp


def _number(name: str) -> int | None:
    return _CALLS[name][_ARCHITECTURES[platform.machine()].column]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """A `struct sock_filter`."""
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def _loads(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _returns(action: int) -> bytes:
    return _instruction(_RETURN, action)


def _returns_if(names: Iterable[str], action: int) -> list[bytes]:
    """Return `action` for each of these calls; the number is loaded."""
    program = []
    for name in names:
        number = _number(name)
        if number is not None:
            program += [_instruction(_EQUAL, number, 0, 1), _returns(action)]
    return program


def _if_argument(name: str, place: int, mask: int, wanted: int) -> list[bytes]:
    """Allow a call whose argument at `place`, under `mask`, is `wanted`; refuse its others."""
    number = _number(name)
    if number is None:
        return []
    return [
        _instruction(_EQUAL, number, 0, 5),
        _loads(_ARGUMENTS + 8 * place),
        _instruction(_AND, mask),
        _instruction(_EQUAL, wanted, 0, 1),
        _returns(_ALLOW),
        _returns(_REFUSE),
    ]


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _install(program: Sequence[bytes]) -> None:
    # A call by another architecture's numbers (32-bit, x32) would mean something else.
    audit = _ARCHITECTURES[platform.machine()].audit
    whole = [_loads(_ARCHITECTURE), _instruction(_EQUAL, audit, 1, 0), _returns(_REFUSE), *program]
    compiled = _Program(len(whole), b"".join(whole))
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
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights, place)
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(place)


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
