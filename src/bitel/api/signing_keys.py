"""The keys that sign tokens: made, imported, encrypted and rotated in the database.

All processes over one database share the keys. The newest key that is in use signs, and its id is
the `kid` of the tokens; every key is accepted until it is retired. A rotation adds a key and
retires the others at a later time, so that clients can be given new tokens in between.

With `signing_key_secret` the keys are encrypted (wrapped) in the database, so that neither the
database nor its backups suffice to sign a token: AES-256-GCM under a key that scrypt (RFC 7914)
derives from the secret, with the key's id as associated data. Keys that were stored before there
was a secret are wrapped when they are opened with one.

Earlier versions kept one key in a file of `data_dir`. It is imported, so that its tokens stay
valid; they have no `kid`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from bitel.api.auth import SHORTEST_KEY, SigningKey, TokenSigner
from bitel.errors import ConflictError, NotFoundError, SettingsError, UnavailableError
from bitel.store import signing_keys as store
from bitel.store.database import Database
from bitel.store.signing_keys import StoredKey

log = structlog.get_logger(__name__)

KEY_FILE: Final = "signing.key"
"""The file of `data_dir` in which earlier versions kept their key."""
KEY_BYTES: Final = 48
REFRESH: Final = 2.0
"""Seconds between two looks at the keys in the database."""
SHORTEST_REFRESH: Final = 0.5
"""The same for looks because of tokens that name an unknown key."""

WRAPPING: Final = "scrypt-aes256gcm"
"""`material` is a salt, a nonce, and what AES-256-GCM makes of the key."""
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_SCRYPT_COST: Final = 2**15
"""Derivation takes 0.1 s and 32 MiB."""
_SCRYPT_BLOCK: Final = 8


def wrap(key_id: str, key: bytes, secret: str) -> tuple[str | None, bytes]:
    """How a key is stored, `StoredKey.wrapping` and `material`; an empty secret: in plain form."""
    if not secret:
        return None, key
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(_derived(secret, salt)).encrypt(nonce, key, key_id.encode())
    return WRAPPING, salt + nonce + sealed


def unwrap(row: StoredKey, secret: str) -> bytes:
    """The key of a row. Raises SettingsError if it was wrapped with another secret."""
    if row.wrapping is None:
        return row.material
    if row.wrapping != WRAPPING:
        raise SettingsError(
            f"the signing key {row.id} in the database is wrapped in a way that this version does "
            "not know; run the newer bitel that wrapped it"
        )
    if not secret:
        raise SettingsError(
            f"the signing key {row.id} in the database is wrapped; set signing_key_secret, or "
            "signing_key_secret_file, to the secret that it was wrapped with"
        )
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, rest = row.material[:_SALT_BYTES], row.material[_SALT_BYTES:]
    nonce, sealed = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
    try:
        return AESGCM(_derived(secret, salt)).decrypt(nonce, sealed, row.id.encode())
    except (InvalidTag, ValueError):
        raise SettingsError(
            f"signing_key_secret is not the secret that the signing key {row.id} in the database "
            "was wrapped with; set that one, or run `bitel key rewrap`"
        ) from None


def _derived(secret: str, salt: bytes) -> bytes:
    memory = 2 * 128 * _SCRYPT_COST * _SCRYPT_BLOCK
    return hashlib.scrypt(
        secret.encode(), salt=salt, n=_SCRYPT_COST, r=_SCRYPT_BLOCK, p=1, maxmem=memory, dklen=32
    )


def open_keys(conn: Connection, data_dir: Path, secret: str, now: float) -> list[SigningKey]:
    """The keys that are not retired, the one that signs first; made and imported as needed.

    `now` is by the system clock. Raises SettingsError if a key can't be unwrapped, or the file of
    an earlier version can't be read, is too short, or is readable by others.
    """
    file = _read_file(data_dir / KEY_FILE)
    rows = store.listing(conn)
    if _is_complete(rows, file, secret):
        return _unwrapped(rows, secret, now)
    store.lock(conn)
    rows = store.listing(conn)
    if file is not None and file.id not in {row.id for row in rows}:
        store.add(conn, file.stored(secret))
        rows = store.listing(conn)
    if not any(row.retired_at is None for row in rows):
        store.add(conn, _new_key(now).stored(secret))
        rows = store.listing(conn)
    if secret:
        for row in rows:
            if row.wrapping is None:
                store.replace_material(conn, row.id, *wrap(row.id, row.material, secret))
        rows = store.listing(conn)
    return _unwrapped(rows, secret, now)


def open_signer(
    database: Database, data_dir: Path, secret: str, clock: Callable[[], float]
) -> TokenSigner:
    """A signer with the keys of now, for commands. Raises as `open_keys`."""
    now = clock()
    return TokenSigner(
        database.write_now(lambda conn: open_keys(conn, data_dir, secret, now)), clock
    )


def rotate(
    conn: Connection, data_dir: Path, secret: str, now: float, retire_at: float | None
) -> str:
    """Add a key, which signs from now on, and return its id.

    Tokens of the others are refused from `retire_at` on; None: not before they are retired.
    Raises as `open_keys`.
    """
    store.lock(conn)
    others = open_keys(conn, data_dir, secret, now)
    rows = store.listing(conn)
    # The newest one signs, also if the system clock was set back.
    key = _new_key(max([now, *(row.created_at + 0.001 for row in rows)]))
    store.add(conn, key.stored(secret))
    if retire_at is not None:
        store.retire(conn, [each.id for each in others], retire_at)
    return key.id


def retire(conn: Connection, key_id: str, now: float) -> None:
    """Refuse the tokens of a key from now on.

    Raises NotFoundError, and ConflictError for the key that signs.
    """
    store.lock(conn)
    rows = store.listing(conn)
    if key_id not in {row.id for row in rows}:
        raise NotFoundError(f"no signing key has the id {key_id[:64]!r}")
    if key_id == next((row.id for row in rows if row.retired_at is None), None):
        raise ConflictError(
            f"the key {key_id} signs new tokens; run `bitel key rotate` before you retire it"
        )
    store.retire(conn, [key_id], now)


def rewrap(conn: Connection, old_secret: str, secret: str, now: float) -> int:
    """Wrap the keys with another secret (empty: none); returns how many.

    Keys that are wrapped with `secret` already stay as they are. Raises SettingsError if a key is
    wrapped with neither.
    """
    store.lock(conn)
    rows = [row for row in store.listing(conn) if not _is_over(row, now)]
    changed = 0
    for row in rows:
        if _is_wrapped_with(row, secret):
            continue
        key = unwrap(row, old_secret)
        store.replace_material(conn, row.id, *wrap(row.id, key, secret))
        changed += 1
    return changed


def _is_wrapped_with(row: StoredKey, secret: str) -> bool:
    if not secret or row.wrapping is None:
        return not secret and row.wrapping is None
    try:
        unwrap(row, secret)
    except SettingsError:
        return False
    return True


class _Key(NamedTuple):
    """A key that is not stored yet. `created_at` is in Unix seconds by the system clock."""

    id: str
    created_at: float
    key: bytes

    def stored(self, secret: str) -> StoredKey:
        return StoredKey(self.id, self.created_at, None, *wrap(self.id, self.key, secret))


def _new_key(now: float) -> _Key:
    return _Key(secrets.token_hex(16), now, secrets.token_bytes(KEY_BYTES))


def _read_file(path: Path) -> _Key | None:
    """The key of an earlier version; None without one. Its id is a hash of it, so that machines
    which have the same file import one key."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as fault:
        raise SettingsError(f"the signing key {path} can't be read: {fault.strerror}") from None
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise SettingsError(
            f"the signing key {path} may be read by others (mode {mode:04o}); run chmod 600 on it"
        )
    if len(key) < SHORTEST_KEY:
        raise SettingsError(
            f"the signing key {path} is shorter than {SHORTEST_KEY} bytes; remove it, and a new "
            "one is made that voids every token"
        )
    key_id = hashlib.sha256(b"bitel signing key " + key).hexdigest()[:32]
    return _Key(key_id, status.st_mtime, key)


class SigningKeyRefresher:
    """Keeps the keys of a signer those of the database, so that a rotation needs no restart.

    `monotonic` gives seconds.
    """

    def __init__(
        self,
        signer: TokenSigner,
        database: Database,
        secret: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signer = signer
        self._database = database
        self._secret = secret
        self._monotonic = monotonic
        self._refreshed_at = -SHORTEST_REFRESH
        self._refreshing = asyncio.Lock()
        self._unreadable: set[str] = set()

    async def run(self) -> None:
        """Refresh every `REFRESH` seconds, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await self.refresh()
            except UnavailableError as fault:
                log.debug("signing_keys_not_read", fault=str(fault))

    async def find(self, key_id: str) -> bool:
        """Whether the signer has the key of that id, after another look if it did not.

        Raises UnavailableError.
        """
        async with self._refreshing:
            is_known = self._signer.has_key(key_id)
            if not is_known and self._monotonic() - self._refreshed_at >= SHORTEST_REFRESH:
                await self._refresh()
            return self._signer.has_key(key_id)

    async def refresh(self) -> None:
        """Read the keys. Raises UnavailableError; then the known ones stay."""
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        self._refreshed_at = self._monotonic()
        rows = await self._database.read(store.listing)
        known = {key.id: key for key in self._signer.keys}
        keys = []
        for row in rows:
            key = known.get(row.id)
            if key is None and not _is_over(row, self._signer.clock()):
                # On a thread: scrypt takes 0.1 s.
                key = await asyncio.to_thread(self._unwrap, row)
            if key is not None:
                keys.append(SigningKey(key.id, key.secret, row.retired_at))
        self._signer.keys = keys

    def _unwrap(self, row: StoredKey) -> SigningKey | None:
        try:
            return SigningKey(row.id, unwrap(row, self._secret), row.retired_at)
        except SettingsError as fault:
            if row.id not in self._unreadable:
                self._unreadable.add(row.id)
                log.error("signing_key_unreadable", key=row.id, fault=str(fault))
            return None


def _is_over(row: StoredKey, now: float) -> bool:
    """Whether its tokens are refused."""
    return row.retired_at is not None and row.retired_at <= now


def _is_complete(rows: Sequence[StoredKey], file: _Key | None, secret: str) -> bool:
    """Whether no key has to be made, imported or wrapped."""
    return (
        any(row.retired_at is None for row in rows)
        and (file is None or file.id in {row.id for row in rows})
        and not (secret and any(row.wrapping is None for row in rows))
    )


def _unwrapped(rows: Sequence[StoredKey], secret: str, now: float) -> list[SigningKey]:
    return [
        SigningKey(row.id, unwrap(row, secret), row.retired_at)
        for row in rows
        if not _is_over(row, now)
    ]
