"""API tokens that were issued, and whether each is still valid."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, false, insert, or_, select, update

from bitel.store.projects import PROJECT_COLUMNS, Project
from bitel.store.schema import project, token
from bitel.store.sql_batch import matches


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token that was issued. Times are Unix seconds; None: never."""

    id: str
    created_at: float
    expires_at: float | None
    """By the system clock, as in the token itself."""
    revoked_at: float | None


def listing(conn: Connection, project_id: str) -> list[TokenRow]:
    """The project's tokens, the oldest first."""
    columns = (token.c.id, token.c.created_at, token.c.expires_at, token.c.revoked_at)
    rows = conn.execute(
        select(*columns).where(token.c.project_id == project_id).order_by(token.c.id)
    )
    return [TokenRow(**row._mapping) for row in rows]


def add(
    conn: Connection, token_id: str, project_id: str, now: float, expires_at: float | None = None
) -> None:
    """Store a token that is about to be issued; `token_id` is the `jti` of the JWT."""
    values = {"id": token_id, "project_id": project_id, "created_at": now, "expires_at": expires_at}
    conn.execute(insert(token).values(values))


def revoke(conn: Connection, token_id: str, now: float) -> bool:
    """Revoke a token from now on. False: there is none, or it was revoked before."""
    live = (token.c.id == token_id) & token.c.revoked_at.is_(None)
    return conn.execute(update(token).where(live).values(revoked_at=now)).rowcount == 1


_VALID = (
    select(*PROJECT_COLUMNS)
    .join(token)
    .where(
        *matches(token.c.id, token.c.project_id),
        token.c.revoked_at.is_(None),
        or_(token.c.expires_at.is_(None), token.c.expires_at > bindparam("now")),
        project.c.disabled == false(),
        project.c.deleted_at.is_(None),
    )
)


def find_project(conn: Connection, token_id: str, project_id: str, now: float) -> Project | None:
    """The project, where the token is its and valid at `now`, and it is not disabled."""
    wanted = {"id": token_id, "project_id": project_id, "now": now}
    row = conn.execute(_VALID, wanted).one_or_none()
    return Project(**row._mapping) if row else None
