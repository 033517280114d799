"""Logs: plain lines on stderr for a person, or JSON for a machine. No secrets, masked numbers."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, TextIO, cast

import structlog
from structlog import processors, stdlib

from bitel.domain.phone_numbers import masked
from bitel.token_bucket import TokenBucket

Level = Literal["debug", "info", "warning", "error"]


class LossyStream(io.TextIOBase):
    """Writes lines to another stream, and drops those that it can't take.

    A log on a full disk must not be what ends the work that is logged. Where the other stream has a
    file descriptor it is written to without a buffer, so that nothing is left to fail at the exit.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = _unbuffered(stream)

    def write(self, text: str) -> int:
        """Write `text`, if that can be done; its length."""
        with suppress(OSError, ValueError):  # there is no other place to report it
            self._stream.write(text)
            self._stream.flush()
        return len(text)


def _unbuffered(stream: TextIO) -> TextIO:
    try:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):
        return stream
    # With `write_through`, each write reaches the descriptor at once.
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


class LineLimit:
    """A token bucket for log lines that anybody on the network can cause.

    `take` returns how many lines were suppressed since the last one, or None to suppress this one.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self._bucket = TokenBucket(per_second, burst, time.monotonic())
        self._left_out = 0

    def take(self) -> int | None:
        """Count one line; see the class."""
        if self._bucket.take(time.monotonic()):
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


RECORDS_PER_SECOND: Final = 20.0
RECORD_BURST: Final = 200.0
"""Records of the standard library that are written, of each logger and level."""


class LimitRecords(logging.Filter):
    """Limits the records of each logger and level; the next one says how many were left out.

    For the records of libraries, which write one for each malformed request or message.
    """

    def __init__(self) -> None:
        super().__init__()
        self._limits: defaultdict[tuple[str, int], LineLimit] = defaultdict(
            lambda: LineLimit(RECORDS_PER_SECOND, RECORD_BURST)
        )

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write `record`."""
        left_out = self._limits[record.name, record.levelno].take()
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} lines before it were left out)"
            record.args = None
        return left_out is not None


def configure(level: Level, json: bool) -> None:
    """Send every log line at `level` or above to stderr, also those of libraries.

    Records of the standard library, Python's warnings and, with `json`, exceptions that end a
    thread or the process are written in the same form as our own lines.
    """
    stream = cast(TextIO, LossyStream(sys.stderr))
    numeric = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        processors.JSONRenderer(ensure_ascii=False)
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            # The default shows local variables too, and with them whatever secret they hold.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    exceptions = [processors.format_exc_info] if json else []
    stamp = processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(
        processors=[processors.add_log_level, stamp, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        # A cached logger would keep the level that it was first used at.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(LimitRecords())
    without_meta = stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        stdlib.ProcessorFormatter(
            foreign_pre_chain=[stdlib.add_log_level, stdlib.add_logger_name, stamp],
            processors=[without_meta, *exceptions, renderer],
        )
    )
    logging.basicConfig(level=max(numeric, logging.WARNING), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if json:
        _log_what_ends_a_thread()


def _log_what_ends_a_thread() -> None:
    # Python would write a traceback of many lines, which are no JSON.
    log = structlog.get_logger(__name__)

    def of_process(
        kind: type[BaseException], fault: BaseException, trace: TracebackType | None
    ) -> None:
        log.critical("process_broke", exc_info=(kind, fault, trace))

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            name = args.thread.name if args.thread else ""
            fault = (args.exc_type, args.exc_value, args.exc_traceback)
            log.error("thread_broke", thread=name, exc_info=fault)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        log.error("exception_ignored", where=args.err_msg or "", exc_info=args.exc_value or True)

    sys.excepthook = of_process
    threading.excepthook = of_thread
    sys.unraisablehook = unraisable


_LONG_NUMBER: Final = re.compile(r"\d(?:[\s().\-/]{0,3}\d){4,}")


def without_numbers(text: str) -> str:
    """`text` with every run of five digits or more masked, whatever stands between the digits."""
    return _LONG_NUMBER.sub(lambda match: masked(match[0]), text)
