"""Runs the tests in tests/peers and writes docs/interop.md: `python -m scripts.interop_docs`.

`make peers` installs all stacks first, which are required. Arguments are passed to pytest; the page
is written only if every case was run.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.peers.interop import OUTPUT, STACKS, Case, Result, read, scenario_cases

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "interop.md"

HEAD = """# Interoperability

What other SIP stacks do in a call that bitel places, with the RFC section, and the result of the
last run. Each row is one or more tests in `tests/peers`. They place calls with the dialer or with
the whole service, over sockets, and check the outcome and the bill of each call; most also compare
the audio that the other side received with the recording.

`make peers` installs the stacks (as root, on Debian or Ubuntu), runs the tests and writes this
page; a test checks that it lists all of them. `make test` runs those whose stacks are installed.
"""

TABLE = "| what the peer does | RFC section | result |\n|---|---|---|"

RESULTS = {True: "passed", False: "**failed**", None: "not run"}


def render(results: Iterable[Result], versions: dict[str, str]) -> str:
    """Return the page: a section per stack, with its version."""
    parts = [HEAD.rstrip()]
    found = sorted(results)
    for stack in STACKS.values():
        parts += ["", f"## {stack} {versions.get(stack, '')}".rstrip(), "", TABLE]
        parts += [
            f"| {_cell(case.case)} | {case.rfc} | {RESULTS[passed]} |"
            for case, passed in found
            if case.stack == stack
        ]
    return "\n".join(parts) + "\n"


def cases_of(page: str) -> list[Case]:
    """Return the cases listed in a page."""
    cases, stack = [], ""
    for line in page.splitlines():
        if line.startswith("## "):
            stack = next(name for name in STACKS.values() if line.startswith(f"## {name}"))
        elif line.startswith("| ") and line not in TABLE:
            case, rfc, _ = line.strip("| ").replace("\\|", "\0").split(" | ")
            cases.append(Case(stack, case.replace("\0", "|"), rfc))
    return cases


def collect() -> list[Case]:
    """Return all cases, without running them."""
    _, results = _pytest("--collect-only", "-q", "tests/peers")
    return sorted({result.case for result in results}.union(scenario_cases()))


def run(arguments: Sequence[str]) -> tuple[int, list[Result]]:
    """Run the tests; a missing stack fails. Returns pytest's exit status and the results."""
    options = ["-n", "4", "--dist", "worksteal", *arguments]
    return _pytest(*options, "tests/peers", BITEL_TEST_PEERS="required")


def _pytest(*arguments: str, **environment: str) -> tuple[int, list[Result]]:
    with tempfile.TemporaryDirectory(prefix="bitel-interop-") as folder:
        output = Path(folder) / "results.json"
        # An empty -m includes the slow tests.
        command = [sys.executable, "-m", "pytest", "-m", "", "-p", "tests.peers.interop"]
        quiet = subprocess.DEVNULL if "--collect-only" in arguments else None
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment, OUTPUT: str(output)},
            stdout=quiet,
            check=False,
        )
        if not output.exists():
            raise SystemExit(f"pytest wrote no results; its exit status is {done.returncode}")
        return done.returncode, read(output)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _versions() -> dict[str, str]:
    """The versions of the installed stacks."""
    from tests.peers import asterisk, pjsua2_phone

    return {
        STACKS["asterisk"]: asterisk.version().removeprefix("Asterisk "),
        STACKS["pjsua2"]: pjsua2_phone.version(),
        STACKS["baresip"]: f"(baresip-python {importlib.metadata.version('baresip-python')})",
        STACKS["kamailio"]: _printed("kamailio", "-v").split()[2],
        STACKS["sipp"]: _printed("sipp", "-v").split("SIPp ")[1].split("-")[0].removeprefix("v"),
    }


def _printed(program: str, option: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin") or program
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def main() -> int:
    """Run the tests, and write the page if every case was run."""
    status, results = run(sys.argv[1:])
    if {result.case for result in results} == set(collect()):
        PAGE.write_text(render(results, _versions()))
    return status


if __name__ == "__main__":
    sys.exit(main())
