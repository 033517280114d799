"""Tokens: which of those that were issued still open the door."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, false, insert, or_, select, update

from bitel.store.schema import project, token


def add(
    conn: Connection,
    token_id: str,
    project_id: str,
    now: float,
    expires_at: float | None = None,
) -> None:
    """Remember a token that is about to be issued; `token_id` is the `jti` of the JWT."""
    values = {"id": token_id, "project_id": project_id, "created_at": now, "expires_at": expires_at}
    conn.execute(insert(token).values(values))


def revoke(conn: Connection, token_id: str, now: float) -> bool:
    """Make a token worthless from now on. False: there is none, or it was revoked before."""
    live = (token.c.id == token_id) & token.c.revoked_at.is_(None)
    return conn.execute(update(token).where(live).values(revoked_at=now)).rowcount == 1


def is_live(conn: Connection, token_id: str, project_id: str, now: float) -> bool:
    """Whether the token is this project's and still good, and the project is not disabled."""
    wanted = {"id": token_id, "project_id": project_id, "now": now}
    return conn.execute(_LIVE, wanted).first() is not None


_LIVE = (
    select(token.c.id)
    .join(project)
    .where(
        token.c.id == bindparam("id"),
        token.c.project_id == bindparam("project_id"),
        token.c.revoked_at.is_(None),
        or_(token.c.expires_at.is_(None), token.c.expires_at > bindparam("now")),
        project.c.disabled == false(),
    )
)
