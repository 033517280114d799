"""The dependencies of the API application."""

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


@dataclass(slots=True)
class ApiContext:
    """What the routes and services work with; one per application."""

    settings: Settings
    """Replaced by a reload, so read it at each use."""
    database: Database
    voices: VoiceStore
    speech: SpeechLibrary
    tokens: TokenSigner
    find_key: Callable[[str], Awaitable[bool]] | None = None
    """Looks for a key of tokens in the database, see `auth.Authenticator`; None: nowhere."""
    live_processes: Callable[[], int] = lambda: 1
    """How many processes answer the API and share its rate limits."""
    clock: Callable[[], float] = time.time
    """Unix seconds of stored times; steps of the system clock do not affect it."""
    date: Callable[[float], float] = float
    """What the system clock showed at a stored time, for the dates of answers."""
    system_clock: Callable[[], float] = time.time
    """Unix seconds for the expiry of tokens."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds for rate limits."""
    on_placed: Callable[[str], None] = lambda dialer_id: None
    """Called with a dialer's id after calls for it are committed, to wake its dispatcher."""
    on_texts_placed: Callable[[], None] = lambda: None
    """Called after calls with texts of their own are committed, to wake their renderer."""
    metrics: Callable[[], Awaitable[bytes]] | None = None
    """The page of `/metrics`; None if there is none."""
    ready: Callable[[], Awaitable[str]] | None = None
    """Why the service is not ready, for `/readyz`; empty if it is. None: always ready."""
    ready_notes: Callable[[], dict[str, Any]] = dict
    """Further fields of the answer of `/readyz`."""

    @property
    def incoming(self) -> Path:
        """The folder of uploads that are being received and decoded."""
        return self.settings.data_dir / "incoming"


def context_of(request: Request) -> ApiContext:
    """The context of the request's application."""
    context: ApiContext = request.app.state.context
    return context
