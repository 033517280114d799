"""Tests the wheel on all installed versions of Python: `python -m scripts.pythons`.

For each of python3.11 to 3.14, on PATH or in ~/.pyenv, it makes a virtual environment in
`build/pythons`, installs a wheel of this checkout by pip, and runs `bitel demo` in an empty folder.
Then it installs the locked test requirements and runs some of the tests, except on the Python of
`.venv`, on which `make test` runs all. The exit status is 1 if something failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "pythons"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = ("tests/recordings", "tests/speech", "tests/api", "tests/rtp", "tests/store")
EXTRAS = "server,postgres,speech"


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="VERSION", action="append", help="such as 3.13")
    parser.add_argument("--demo-only", action="store_true", help="run no tests")
    options = parser.parse_args()
    pythons = {
        version: python
        for version, python in find_pythons().items()
        if not options.only or version in options.only
    }
    if not pythons:
        print("none of these Pythons was found: " + ", ".join(options.only or VERSIONS))
        return 1
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        results = {
            version: _try(version, python, wheel, with_tests=not options.demo_only)
            for version, python in pythons.items()
        }
    for version in VERSIONS:
        print(f"Python {version}: {results.get(version, 'not found')}")
    return 0 if all(result.endswith("passed") for result in results.values()) else 1


def find_pythons() -> dict[str, Path]:
    """Return the installed interpreters with pip and venv, by version (`3.11`)."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in VERSIONS:
        on_path = shutil.which(f"python{version}")
        candidates = [Path(on_path)] if on_path else []
        # The one on PATH may be pyenv's shim of a version that is not active.
        candidates += sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True)
        works = next(filter(_works, candidates), None)
        if works is not None:
            found[version] = works
    return found


def build_wheel(folder: Path) -> Path:
    """Build a wheel of this checkout in `folder`."""
    _run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={folder}", ROOT],
        folder / "build.log",
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(python: Path, folder: Path, *requirements: str) -> Path:
    """Make a virtual environment with these requirements; returns its `bin`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    _run([python, "-m", "venv", folder], log)
    _run([folder / "bin" / "pip", "install", *requirements], log)
    return folder / "bin"


def run_demo(commands: Path, log: Path) -> None:
    """Run `bitel demo` of an environment in an empty folder."""
    with tempfile.TemporaryDirectory() as empty:
        _run([commands / "bitel", "demo"], log, Path(empty), _environment(commands))


def _try(version: str, python: Path, wheel: Path, *, with_tests: bool) -> str:
    """Install, run the demo and the tests; returns a summary."""
    print(f"== Python {version}: {python}", flush=True)
    log = FOLDER / f"{version}.log"
    done = []
    try:
        begun = time.monotonic()
        commands = make_environment(python, FOLDER / version, f"{wheel}[{EXTRAS}]")
        run_demo(commands, log)
        done.append(f"install and demo {time.monotonic() - begun:.0f} s")
        if with_tests and version != f"{sys.version_info[0]}.{sys.version_info[1]}":
            begun = time.monotonic()
            locked = ["--require-hashes", "-r", str(ROOT / "requirements" / "dev.txt")]
            _run([commands / "pip", "install", *locked], log)
            # `src` is not on the path, so imports come from the wheel.
            tests = ["-m", "pytest", "-q", "-n", "4", "--dist", "worksteal", *TESTS]
            _run([commands / "python", *tests], log, ROOT, _environment(commands))
            done.append(f"tests {time.monotonic() - begun:.0f} s")
    except subprocess.CalledProcessError as fault:
        print(log.read_text()[-20_000:])
        return ", ".join([*done, f"{' '.join(map(str, fault.cmd[:4]))} … failed"])
    return ", ".join(done) + " passed"


def _works(python: Path) -> bool:
    code = "import ensurepip, venv"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def _environment(commands: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # The generator of clients is installed once, beside the Python that runs this script.
    generator = Path(sys.prefix) / "generator/bin/openapi-python-client"
    path = f"{commands}:{os.environ['PATH']}"
    return {"BITEL_TEST_GENERATOR": str(generator)} | kept | {"PATH": path}


def _run(
    command: Sequence[str | Path],
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        subprocess.run(
            command, cwd=folder, env=environment, stdout=output, stderr=output, check=True
        )


if __name__ == "__main__":
    sys.exit(main())
