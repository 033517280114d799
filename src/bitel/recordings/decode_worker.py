"""The process that meets a stranger's file: `python -m bitel.recordings.decode_worker`.

It gets the file and those that it writes as open descriptors. Before it looks at the file it takes
its limits upon itself and enters the sandbox: whatever the file makes FFmpeg do, no other file, no
socket and no process can be reached from here. It ends with a `Verdict` as its exit status.
"""

from __future__ import annotations

import errno
import os
import resource
import sys

from bitel.recordings import sandbox
from bitel.recordings.rlimits import confine
from bitel.recordings.verdict import Verdict


def main(arguments: list[str]) -> int:
    """Decode the descriptor `source` into `alaw` and `ulaw`; the limits follow as numbers."""
    source, alaw, ulaw, max_samples, cpu_seconds, memory_bytes, wall_seconds = arguments
    confine(
        cpu_seconds=int(cpu_seconds),
        memory_bytes=int(memory_bytes),
        wall_seconds=float(wall_seconds),
        file_bytes=int(max_samples) + 1,
    )
    try:
        return _decode_files(int(source), int(alaw), int(ulaw), int(max_samples))
    except MemoryError:
        return Verdict.OUT_OF_MEMORY
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Verdict.NO_ROOM
        raise


def _decode_files(source: int, alaw: int, ulaw: int, max_samples: int) -> int:
    # Imported under the limits, and before the right to open files is given up.
    from bitel.recordings.transcoding import transcode

    # A worker that was killed before this one may have used the same descriptors.
    os.lseek(source, 0, os.SEEK_SET)
    for written in (alaw, ulaw):
        os.lseek(written, 0, os.SEEK_SET)
        os.ftruncate(written, 0)
    with (
        os.fdopen(source, "rb", buffering=0) as media,
        os.fdopen(alaw, "wb") as alaw_file,
        os.fdopen(ulaw, "wb") as ulaw_file,
    ):
        sandbox.enter(drop_user=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        sandbox.allow_computing_only()
        return transcode(media, alaw_file, ulaw_file, max_samples)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
