"""Logging to stderr, as plain lines or JSON, with rate limits and masked numbers."""

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
    """Writes lines to another stream, and drops those that fail.

    A full disk must not stop the service. A stream with a file descriptor is written without a
    buffer, which could fail at exit.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = _unbuffered(stream)

    def write(self, text: str) -> int:
        """Write `text` if possible; returns its length."""
        with suppress(OSError, ValueError):  # errors of the log can't be logged
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
    """Token bucket for log lines that anyone on the network can cause."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._bucket = TokenBucket(per_second, burst, time.monotonic())
        self._left_out = 0

    def take(self) -> int | None:
        """Return the number of lines suppressed before this one, or None to suppress this one."""
        if self._bucket.take(time.monotonic()):
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


RECORDS_PER_SECOND: Final = 20.0
RECORD_BURST: Final = 200.0
"""Limit of records of the standard library, for each logger and level."""


class LimitRecords(logging.Filter):
    """Limits the records of each logger and level; the next one says how many were left out.

    Libraries write a record for each malformed request or message.
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
    """Write log lines from `level` on to stderr.

    Records of the standard library's logging, Python's warnings and, with `json`, uncaught
    exceptions are written in the same form.
    """
    stream = cast(TextIO, LossyStream(sys.stderr))
    numeric = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        processors.JSONRenderer(ensure_ascii=False)
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            # The default prints local variables, which may hold secrets.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    exceptions = [processors.format_exc_info] if json else []
    stamp = processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(
        processors=[processors.add_log_level, stamp, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        # A cached logger would keep its first level.
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
        _log_uncaught_exceptions()


def _log_uncaught_exceptions() -> None:
    # Python would write a traceback, which is not JSON.
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
    """Return `text` with every run of five or more digits masked, also with separators."""
    return _LONG_NUMBER.sub(lambda match: masked(match[0]), text)
