"""Makes a release: changelog, version, commit, tag and packages. `python -m scripts.release 0.2.0`.

It requires a clean checkout, publishes nothing, and prints the remaining steps.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNRELEASED = "## Unreleased\n"


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout; this one by default")
    options = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date()
    try:
        release(options.root, options.version, today)
    except ReleaseError as fault:
        print(f"release: {fault}", file=sys.stderr)
        return 1
    print(f"Released {options.version}. What is left to do:")
    print("  git push --follow-tags")
    print("  python -m twine upload dist/*")
    return 0


class ReleaseError(Exception):
    """A release can't be made; nothing was changed."""


def release(root: Path, version: str, today: datetime.date) -> None:
    """Commit and tag release `version`, and build packages in `dist`. Raises ReleaseError."""
    if not re.fullmatch(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?", version):
        raise ReleaseError(f"{version!r} is no version, as in 0.2.0 or 0.2.0rc1")
    if _git(root, "status", "--porcelain"):
        raise ReleaseError("the checkout has changes that are not committed; commit them first")
    tag = f"v{version}"
    if _git(root, "tag", "--list", tag):
        raise ReleaseError(f"the tag {tag} is there already")
    changelog, project = root / "CHANGELOG.md", root / "pyproject.toml"
    changes, settings = changelog.read_text(), project.read_text()
    new_changes = with_release(changes, version, today)
    new_settings, count = re.subn(
        r'^version = ".*"$', f'version = "{version}"', settings, count=1, flags=re.MULTILINE
    )
    if count != 1:
        raise ReleaseError("pyproject.toml has no version")
    changelog.write_text(new_changes)
    project.write_text(new_settings)
    dist = root / "dist"
    for old in dist.glob("bitel-*"):
        old.unlink()
    build = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={dist}", str(root)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if built.returncode:
        changelog.write_text(changes)
        project.write_text(settings)
        raise ReleaseError(f"the packages could not be built:\n{built.stderr or built.stdout}")
    _git(root, "commit", "--quiet", "--all", "--message", f"Release {version}")
    _git(root, "tag", "--annotate", tag, "--message", f"Release {version}")


def with_release(changes: str, version: str, today: datetime.date) -> str:
    """Return the changelog with the unreleased changes under `version`. Raises ReleaseError."""
    head, found, rest = changes.partition(UNRELEASED)
    body = rest.partition("\n## ")[0]
    if not found or not re.search(r"^- ", body, re.MULTILINE):
        raise ReleaseError("CHANGELOG.md names no unreleased changes")
    return f"{head}{UNRELEASED}\n## {version} - {today.isoformat()}\n{rest}"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
