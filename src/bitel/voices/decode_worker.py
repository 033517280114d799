"""The process that meets a stranger's file: `python -m bitel.voices.decode_worker`.

It takes its limits upon itself before it looks at the file, opens the three files it needs and
then gives up the right to open any more: whatever the file talks FFmpeg into, no other file and
no socket can be reached from here. It ends with a `Verdict` as its exit status.
"""

from __future__ import annotations

import errno
import resource
import sys
from pathlib import Path

from bitel.voices.confinement import confine
from bitel.voices.verdict import ALAW_NAME, ULAW_NAME, Verdict


def main(arguments: list[str]) -> int:
    """Decode `source` into the folder `into`; the limits follow as numbers."""
    source, into, max_samples, cpu_seconds, memory_bytes, wall_seconds = arguments
    confine(
        cpu_seconds=int(cpu_seconds),
        memory_bytes=int(memory_bytes),
        wall_seconds=float(wall_seconds),
        file_bytes=int(max_samples) + 1,
    )
    try:
        return _decode_files(Path(source), Path(into), int(max_samples))
    except MemoryError:
        return Verdict.OUT_OF_MEMORY
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Verdict.NO_ROOM
        raise


def _decode_files(source: Path, into: Path, max_samples: int) -> int:
    # Imported under the limits, and before the right to open files is given up.
    from bitel.voices.transcoding import transcode

    with (
        source.open("rb", buffering=0) as media,
        (into / ALAW_NAME).open("wb") as alaw,
        (into / ULAW_NAME).open("wb") as ulaw,
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return transcode(media, alaw, ulaw, max_samples)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
