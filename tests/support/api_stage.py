"""The API over an empty database, with one project that has a token and a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from fastapi import FastAPI
from sqlalchemy import Connection, func, select

from bitel.api import signing_keys
from bitel.api.app import ApiContext, build_app
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_id
from bitel.domain.pricing import Bill
from bitel.domain.retry import Finish
from bitel.recordings.storage import VoiceStore
from bitel.settings import Settings
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from bitel.store import claims, projects, recordings, recovery, settling, tokens
from bitel.store.claims import Claim
from bitel.store.database import Database
from bitel.store.leases import Lease, Slot
from bitel.store.projects import Project
from bitel.store.schema import call
from bitel.store.settling import Settlement
from tests.support import factories

if TYPE_CHECKING:
    from tests.support.clocks import FakeClock

T = TypeVar("T")


@dataclass
class Stage:
    """An application, and short words for what tests do with it."""

    parts: ApiContext
    app: FastAPI
    clock: FakeClock
    project_id: str
    token_id: str
    token: str
    recording_id: str
    rung: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, database: Database, clock: FakeClock, data_dir: Path, **settings: Any) -> Stage:
        rung: list[str] = []
        dialers = [{"id": name, "trunks": ["sip:127.0.0.1:5060"]} for name in ("main", "spare")]
        for number, dialer in enumerate(dialers):
            dialer["bind"] = f"127.0.0.1:{5070 + number}"
        parts = ApiContext(
            settings=Settings(data_dir=data_dir, **{"dialers": dialers, **settings}),
            database=database,
            voices=VoiceStore.open("", data_dir),
            speech=SpeechLibrary(data_dir / "speech", SpeechOptions()),
            tokens=signing_keys.open_signer(database, data_dir, "", clock),
            clock=clock,
            system_clock=clock,
            monotonic=clock,
            on_placed=rung.append,
        )
        project = database.write_now(lambda conn: projects.create(conn, "shop", clock()))
        stage = cls(parts, build_app(parts), clock, project.id, "", "", "", rung)
        stage.token_id, stage.token = stage.new_token(project.id)
        stage.recording_id = stage.new_recording(project.id)
        return stage

    def do(self, work: Callable[[Connection], T]) -> T:
        return self.parts.database.write_now(work)

    def new_project(self, name: str) -> str:
        return self.do(lambda conn: projects.create(conn, name, self.clock())).id

    def new_token(self, project_id: str, expires_at: float | None = None) -> tuple[str, str]:
        token_id = new_id(self.clock())
        self.do(lambda conn: tokens.add(conn, token_id, project_id, self.clock(), expires_at))
        return token_id, self.parts.tokens.issue(project_id, token_id, expires_at)

    def new_recording(self, project_id: str, seconds: float = 1.0) -> str:
        return self.do(
            lambda conn: factories.make_recording(
                conn, project_id, self.clock(), duration=seconds, size=9
            )
        ).id

    def remove_recording(self, conn: Connection) -> None:
        recordings.remove(conn, self.project_id, self.recording_id, self.clock())

    def set_balance(self, amount: str) -> None:
        self.do(
            lambda conn: projects.set_balance(conn, self.project_id, Decimal(amount), self.clock())
        )

    def change(self, **changes: Any) -> None:
        """Change the project."""
        self.do(lambda conn: projects.change(conn, self.project_id, **changes))

    def project(self) -> Project:
        found = self.do(lambda conn: projects.by_id(conn, self.project_id))
        assert found is not None
        return found

    def rows(self) -> list[Any]:
        """The calls as they are stored, in the order of their ids."""
        return self.do(lambda conn: list(conn.execute(select(call).order_by(call.c.id))))

    def take(self, limit: int = 1000) -> tuple[Lease, list[Claim]]:
        """Claim what is due at the first dialer, as its dispatcher would."""
        now = self.clock()
        lease, _ = self.do(lambda conn: recovery.take_over(conn, Slot("main"), "w", now, 77.0))
        return lease, self.do(lambda conn: claims.claim(conn, lease, limit, now))

    def answer(self, lease: Lease, taken: list[Claim], price: str = "0", seconds: int = 12) -> None:
        """End claimed attempts as answered calls of that price."""
        now = self.clock()
        done = AttemptResult(Outcome.ANSWERED, now, now + seconds, answered_at=now)
        ends = [
            Settlement(one.attempt_id, one.call_id, done, Finish(CallStatus.NORMAL),
                       Bill(seconds, Decimal(price)))
            for one in taken
        ]  # fmt: skip
        self.do(lambda conn: settling.settle(conn, lease, ends, now + seconds))

    def queued(self) -> int:
        count: int = self.do(lambda conn: conn.execute(select(func.count(call.c.id))).scalar_one())
        return count

    def client(self, token: str | None = None, url: str = "http://bitel") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app) if url == "http://bitel" else None
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.AsyncClient(transport=transport, base_url=url, headers=headers, timeout=20)

    def body(self, **changes: Any) -> dict[str, Any]:
        return {"phoneNumber": "0912 123 4567", "voiceId": self.recording_id, **changes}

    def leftovers(self) -> list[Path]:
        """Files of recordings, whole or partial."""
        data_dir = self.parts.settings.data_dir
        folders = (data_dir / "incoming", data_dir / "voices")
        return [path for folder in folders for path in folder.rglob("*")]
