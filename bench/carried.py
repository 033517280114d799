"""The service with SIPp as its carrier, as most benches use it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bitel.demo.stage import Stage
from tests.peers.sipp import Sipp, sipp

PATIENCE = 400  # timeout of SIPp in seconds, longer than a bench


@asynccontextmanager
async def answering(calls: int) -> AsyncIterator[Sipp]:
    """Runs SIPp, which answers this many concurrent calls and their BYE."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        async with sipp("answering", calls, Path(folder), timeout=PATIENCE) as carrier:
            yield carrier


@asynccontextmanager
async def service(
    carrier: Sipp, dialer: Mapping[str, Any], extra: str = ""
) -> AsyncIterator[Stage]:
    """Runs a service with these settings of its dialer and `extra` sections of TOML."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        trunk = f"sip:127.0.0.1:{carrier.port}"
        # The default log level.
        place = Path(folder) / "stage"
        stage = Stage(place, dialer=dialer, extra=extra, trunk=trunk, log_level="info")
        with stage:
            stage.start_service()
            yield stage
