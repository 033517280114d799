"""Authentication: tokens are JWTs (RFC 7519), checked against a key and the database.

`signing_keys` stores the keys.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from sqlalchemy import Connection

from bitel.batcher import Batcher
from bitel.domain.ids import is_id
from bitel.errors import BitelError, UnauthorizedError
from bitel.store import tokens
from bitel.store.database import Database
from bitel.store.projects import Project

ISSUER: Final = "Bitel"
ALGORITHM: Final = "HS256"
SHORTEST_KEY: Final = 32
"""Bytes; RFC 7518 §3.2: a key of HS256 has at least 256 bits."""
LONGEST_TOKEN: Final = 4096
_REMEMBERED: Final = 4096
_NOT_OURS: Final = "the token is not one that this service issued"


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a verified token."""

    project_id: str
    token_id: str


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens."""

    id: str
    """The `kid` of its tokens."""
    secret: bytes = field(repr=False)
    retired_at: float | None = None
    """Unix seconds by the system clock from which on its tokens are refused; None: it is in use."""


class UnknownKeyError(UnauthorizedError):
    """The token names a key that this process does not know, or not yet."""

    def __init__(self, key_id: str) -> None:
        super().__init__(_NOT_OURS)
        self.key_id = key_id


class TokenSigner:
    """Issues and verifies tokens. Whether a token is revoked is in the database.

    Args:
        keys: the newest first; the first one that is in use signs.
        clock: gives the Unix seconds of the system clock.
    """

    def __init__(self, keys: Sequence[SigningKey], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.keys = keys

    @property
    def keys(self) -> Sequence[SigningKey]:
        """The keys whose tokens are accepted."""
        return self._keys

    @keys.setter
    def keys(self, keys: Sequence[SigningKey]) -> None:
        self._keys = tuple(keys)
        self._by_id = {key.id: key for key in keys}
        self._verified: dict[str, tuple[Claims, SigningKey]] = {}

    def has_key(self, key_id: str) -> bool:
        """Whether tokens of that key are accepted."""
        return key_id in self._by_id

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
        key = next(key for key in self._keys if key.retired_at is None)
        return jwt.encode(claims, key.secret, algorithm=ALGORITHM, headers={"kid": key.id})

    def verify(self, token: str) -> Claims:
        """The claims of `token`.

        Raises UnauthorizedError if it is invalid, has expired or its key is retired, and its
        subclass UnknownKeyError if it names an unknown key.
        """
        if (known := self._verified.get(token)) is not None:
            claims, key = known
            self._check_in_use(key)
            return claims
        if len(token) > LONGEST_TOKEN:
            raise UnauthorizedError(f"the token is longer than {LONGEST_TOKEN} characters")
        payload, key = self._decode(token)
        self._check_in_use(key)
        claims = Claims(project_id=payload["sub"], token_id=payload["jti"])
        if not is_id(claims.project_id) or not is_id(claims.token_id):
            raise UnauthorizedError(_NOT_OURS)
        # A token without expiry stays valid, so its signature need not be checked again.
        if "exp" not in payload and "nbf" not in payload:
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[token] = claims, key
        return claims

    def _decode(self, token: str) -> tuple[dict[str, Any], SigningKey]:
        """The payload of a token, and the key that signed it."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except jwt.InvalidTokenError:
            raise UnauthorizedError(_NOT_OURS) from None
        if key_id is None:
            keys = self._keys  # earlier versions wrote none
        elif (key := self._by_id.get(key_id)) is not None:
            keys = (key,)
        else:
            raise UnknownKeyError(key_id)
        for key in keys:
            try:
                return _payload(token, key.secret), key
            except jwt.ExpiredSignatureError:
                raise UnauthorizedError("the token has expired; ask for a new one") from None
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidTokenError:
                break
        raise UnauthorizedError(_NOT_OURS)

    def _check_in_use(self, key: SigningKey) -> None:
        if key.retired_at is not None and key.retired_at <= self.clock():
            raise UnauthorizedError("the key that signed the token is retired; ask for a new one")


def _payload(token: str, secret: bytes) -> dict[str, Any]:
    return jwt.decode(
        token,
        secret,
        algorithms=[ALGORITHM],
        audience=ISSUER,
        issuer=ISSUER,
        options={"require": ["sub", "iss", "aud", "jti"]},
    )


class Authenticator:
    """Finds the project of a token, for concurrent requests in one query.

    Nothing is cached, so a revoked token is refused at once.
    """

    def __init__(
        self,
        signer: TokenSigner,
        database: Database,
        clock: Callable[[], float],
        find_key: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        """`clock` gives the Unix seconds for the expiry of tokens.

        `find_key` looks for a key that the signer does not know, and returns whether it does then.
        """
        self._signer = signer
        self._database = database
        self._clock = clock
        self._find_key = find_key
        self._batcher = Batcher(self._authenticate)

    async def authenticate(self, token: str) -> Project:
        """The project of `token`. Raises UnauthorizedError."""
        return await self._batcher.submit(await self.verify(token))

    async def verify(self, token: str) -> Claims:
        """The claims of `token`, which may be revoked. Raises UnauthorizedError."""
        try:
            return self._signer.verify(token)
        except UnknownKeyError as fault:
            # Another process may have added it a moment ago.
            if self._find_key is None or not await self._find_key(fault.key_id):
                raise
            return self._signer.verify(token)

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
