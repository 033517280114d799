"""What the sender asks of the scheduler. Each test asks in a process of its own."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitel.rtp.sender.priority import NICE, SLICE, core_for


def _in_a_process(what: str) -> str:
    script = f"import os\nfrom bitel.rtp.sender.priority import *\n{what}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may go before others")
def test_it_goes_before_others() -> None:
    assert _in_a_process("claim_a_core(); print(os.getpriority(os.PRIO_PROCESS, 0))") == str(NICE)


def test_where_nothing_is_allowed_nothing_is_said() -> None:
    refuse = "def refuse(*given): raise PermissionError\nos.setpriority = refuse\n"
    assert _in_a_process(f"{refuse}claim_a_core(); print('goes on')") == "goes on"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="only Linux has turns",
)
def test_short_turns_are_asked_for_in_the_words_of_the_kernel() -> None:
    assert _in_a_process("print(set_time_slice(0), os.getpriority(os.PRIO_PROCESS, 0))") == (
        "True 0"
    )
    if not Path("/proc/self/sched").exists():
        pytest.skip("this kernel does not show the turns that it gives")
    shown = _in_a_process("set_time_slice(0); print(open('/proc/self/sched').read())")
    found = re.search(r"se\.slice\s*:\s*(\d+)", shown)
    if found is None:
        pytest.skip("this kernel has turns of one length")
    assert int(found[1]) == SLICE


def test_another_machine_is_left_alone() -> None:
    other = "import platform; platform.machine = lambda: 'z80'\n"
    assert _in_a_process(f"{other}print(set_time_slice(0))") == "False"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which core a process runs on")
def test_as_many_senders_as_cores_have_one_each() -> None:
    cores = os.sched_getaffinity(0)
    many = len(cores)
    assert {core_for(number, many) for number in range(many)} == cores
    assert core_for(0, 2 * many) == core_for(many, 2 * many)
    assert {core_for(number, many - 1) for number in range(many - 1)} <= {None}
    core = core_for(many - 1, many)
    assert _in_a_process(f"claim_a_core({core}); print(os.sched_getaffinity(0))") == str({core})


def test_a_core_that_is_gone_is_no_reason_to_be_silent() -> None:
    script = "claim_a_core(4095); print(len(os.sched_getaffinity(0)))"
    if sys.platform != "linux":
        script = "claim_a_core(4095); print('goes on')"
    assert _in_a_process(script)
