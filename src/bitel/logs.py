"""Logs: plain lines on stderr for a person, or JSON for a machine. No secrets, masked numbers."""

from __future__ import annotations

import io
import logging
import sys
from typing import Literal, TextIO, cast

import structlog

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
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # there is nowhere left to say so
        return len(text)


def _unbuffered(stream: TextIO) -> TextIO:
    try:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        raw,  # with `write_through`, what is written reaches it at once
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )


def configure(level: Level, json: bool) -> None:
    """Send every log line at `level` or above to stderr, also those of libraries."""
    stream = cast(TextIO, LossyStream(sys.stderr))
    numeric = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            # The default shows local variables too, and with them whatever secret they hold.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    exceptions = [structlog.processors.format_exc_info] if json else []
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=max(numeric, logging.WARNING),
        stream=stream,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
