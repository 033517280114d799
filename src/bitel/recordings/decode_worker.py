"""The worker process that decodes a file: `python -m bitel.recordings.decode_worker`.

It inherits the input and output files as descriptors. Before it reads the file it limits its
resources and enters the sandbox, so that a malicious file can't make FFmpeg access other files,
sockets or processes. Its exit status is a `Verdict`.
"""

from __future__ import annotations

import errno
import os
import resource
import sys

from bitel.recordings import sandbox
from bitel.recordings.limits import Verdict, confine, rewind


def main(arguments: list[str]) -> int:
    """Decode the descriptor `source` into `alaw` and `ulaw`; the limits follow as numbers."""
    source, alaw, ulaw, max_samples = map(int, arguments[:4])
    confine(*arguments[4:], file_bytes=max_samples + 1)
    try:
        return _decode_files(source, alaw, ulaw, max_samples)
    except MemoryError:
        return Verdict.OUT_OF_MEMORY
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Verdict.NO_ROOM
        raise


def _decode_files(source: int, alaw: int, ulaw: int, max_samples: int) -> int:
    # Imported under the limits, but before the sandbox forbids opening files.
    from bitel.recordings.transcoding import transcode

    os.lseek(source, 0, os.SEEK_SET)
    rewind((alaw, ulaw))
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
