"""Authentication: tokens are JWTs (RFC 7519), checked against a secret and the database."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from sqlalchemy import Connection

from bitel.batcher import Batcher
from bitel.domain.ids import is_id
from bitel.errors import BitelError, SettingsError, UnauthorizedError
from bitel.recordings.files import sync
from bitel.store import tokens
from bitel.store.database import Database
from bitel.store.projects import Project

ISSUER: Final = "Bitel"
ALGORITHM: Final = "HS256"
KEY_FILE: Final = "signing.key"
KEY_BYTES: Final = 48
SHORTEST_KEY: Final = 32
"""Bytes; RFC 7518 §3.2: a key of HS256 has at least 256 bits."""
LONGEST_TOKEN: Final = 4096
_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a verified token."""

    project_id: str
    token_id: str


class TokenSigner:
    """Issues and verifies tokens. Whether a token is revoked is in the database."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._verified: dict[str, Claims] = {}

    @classmethod
    def open(cls, data_dir: Path) -> TokenSigner:
        """The signer of `data_dir`; its secret is created on first use, readable by its owner only.

        Raises SettingsError if the file can't be read or created, is too short, or is readable by
        others.
        """
        path = data_dir / KEY_FILE
        try:
            if not path.exists():
                _create_key(path)
            return cls(_read_key(path))
        except OSError as fault:
            raise SettingsError(f"the signing secret {path} can't be used: {fault}") from None

    def issue(self, project_id: str, token_id: str, expires_at: float | None = None) -> str:
        """A token of a project that expires at `expires_at` (Unix seconds), or never."""
        claims: dict[str, Any] = {
            "sub": project_id,
            "iss": ISSUER,
            "aud": ISSUER,
            "jti": token_id,
        }
        if expires_at is not None:
            claims["exp"] = int(expires_at)
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def verify(self, token: str) -> Claims:
        """The claims of `token`. Raises UnauthorizedError if it is invalid or has expired."""
        known = self._verified.get(token)
        if known is not None:
            return known
        if len(token) > LONGEST_TOKEN:
            raise UnauthorizedError(f"the token is longer than {LONGEST_TOKEN} characters")
        try:
            payload = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                audience=ISSUER,
                issuer=ISSUER,
                options={"require": ["sub", "iss", "aud", "jti"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthorizedError("the token has expired; ask for a new one") from None
        except jwt.InvalidTokenError:
            raise UnauthorizedError("the token is not one that this service issued") from None
        claims = Claims(project_id=payload["sub"], token_id=payload["jti"])
        if not is_id(claims.project_id) or not is_id(claims.token_id):
            raise UnauthorizedError("the token is not one that this service issued")
        # A token without expiry stays valid, so its signature need not be checked again.
        if "exp" not in payload and "nbf" not in payload:
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[token] = claims
        return claims


class Authenticator:
    """Finds the project of a token, for concurrent requests in one query.

    Nothing is cached, so a revoked token is refused at once.
    """

    def __init__(self, signer: TokenSigner, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives the Unix seconds for the expiry of tokens."""
        self._signer = signer
        self._database = database
        self._clock = clock
        self._batcher = Batcher(self._authenticate)

    async def authenticate(self, token: str) -> Project:
        """The project of `token`. Raises UnauthorizedError."""
        return await self._batcher.submit(self._signer.verify(token))

    async def _authenticate(self, claims: Sequence[Claims]) -> Sequence[Project | BitelError]:
        now = self._clock()
        owners = await self._database.read(lambda conn: find_owners(conn, set(claims), now))
        return [owners[each] or token_refused() for each in claims]


def find_owners(
    conn: Connection, claims: Collection[Claims], now: float
) -> dict[Claims, Project | None]:
    """The project of each token; None if the token is revoked, has expired or is unknown."""
    return {each: tokens.find_project(conn, each.token_id, each.project_id, now) for each in claims}


def token_refused() -> UnauthorizedError:
    """The error for a token with a valid signature that is not valid now."""
    return UnauthorizedError("the token is revoked, has expired or is unknown")


def bearer_token(header: str) -> str:
    """The token of an Authorization header. Raises UnauthorizedError if it has none."""
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError("the header Authorization: Bearer <token> is missing")
    return token


def _create_key(path: Path) -> None:
    """Create the secret atomically; of two processes that do so at once, the first one wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{KEY_FILE}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        sync(path.parent)
    finally:
        draft.unlink()


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise SettingsError(
                f"the signing secret {path} may be read by others (mode {mode:04o}); "
                f"run chmod 600 on it"
            )
        secret = file.read()
    if len(secret) < SHORTEST_KEY:
        raise SettingsError(
            f"the signing secret {path} is shorter than {SHORTEST_KEY} bytes; "
            f"remove it, and a new one is made that voids every token"
        )
    return secret
