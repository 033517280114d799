"""What the API is built from."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from bitel.api.auth import TokenSigner
from bitel.recordings.storage import VoiceStore
from bitel.settings import Settings
from bitel.speech.library import SpeechLibrary
from bitel.store.database import Database


def _wake_nothing(dialer_id: str) -> None:
    pass


@dataclass(slots=True)
class ApiContext:
    """The parts that the routes work with; one set per application."""

    settings: Settings
    """Replaced when the settings are read again, so ask for it at each use."""
    database: Database
    voices: VoiceStore
    speech: SpeechLibrary
    tokens: TokenSigner
    clock: Callable[[], float] = time.time
    """Unix seconds of everything that is stored, which no step of the system clock moves."""
    date: Callable[[float], float] = float
    """What the system clock showed at a stored time, for the dates of answers."""
    system_clock: Callable[[], float] = time.time
    """Unix seconds by which tokens expire."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds by which limits per minute are counted."""
    on_placed: Callable[[str], None] = _wake_nothing
    """Called with a dialer's id after calls for it are committed, to wake its dispatcher."""
    metrics: Callable[[], Awaitable[bytes]] | None = None
    """The page of `/metrics`; None: there is none."""
    ready: Callable[[], Awaitable[str]] | None = None
    """Why `/readyz` says no; empty: it says yes. None: it always says yes."""
    ready_notes: Callable[[], dict[str, Any]] = dict
    """What `/readyz` says beside that."""

    @property
    def incoming(self) -> Path:
        """The folder that holds uploads while they are received and decoded."""
        return self.settings.data_dir / "incoming"


def context_of(request: Request) -> ApiContext:
    """The context of the application that `request` reached."""
    context: ApiContext = request.app.state.context
    return context
