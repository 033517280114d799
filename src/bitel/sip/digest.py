"""Digest authentication as a client (RFC 7616, RFC 8760, RFC 3261 §22).

Challenges are read here, since `sipmessage` does not read a quoted list such as
`qop="auth,auth-int"`, which most registrars send.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from bitel.sip.grammar import split_list

_ALGORITHMS = {"MD5": "md5", "MD5-SESS": "md5", "SHA-256": "sha256", "SHA-256-SESS": "sha256"}
_STRENGTH = ("SHA-256-SESS", "SHA-256", "MD5-SESS", "MD5")
MAX_PARAMETERS = 32


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the carrier gave us to prove who we are, to be used in `realm`; "" is any one realm."""

    username: str
    password: str = field(repr=False)
    realm: str = ""


@dataclass(frozen=True, slots=True)
class Challenge:
    """A Digest challenge that we can answer. `algorithm` is written as the server wrote it."""

    realm: str
    nonce: str
    algorithm: str | None
    opaque: str | None
    qop: bool
    stale: bool

    @property
    def kind(self) -> str:
        """The algorithm in upper case; MD5 where the server named none."""
        return (self.algorithm or "MD5").upper()


def parse_challenge(value: str) -> Challenge | None:
    """Read a WWW-/Proxy-Authenticate value; None for one we can't answer.

    That is another scheme than Digest, an unknown algorithm, a qop list without `auth`, or text
    that does not follow the grammar.
    """
    scheme, _, rest = value.strip().partition(" ")
    parameters = _parameters(rest)
    if scheme.lower() != "digest" or parameters is None:
        return None
    realm, nonce = parameters.get("realm"), parameters.get("nonce")
    algorithm, qop = parameters.get("algorithm"), parameters.get("qop")
    if realm is None or nonce is None:
        return None
    if (algorithm or "MD5").upper() not in _ALGORITHMS:
        return None
    if qop and "auth" not in [choice.strip().lower() for choice in qop.split(",")]:
        return None
    return Challenge(
        realm=realm,
        nonce=nonce,
        algorithm=algorithm,
        opaque=parameters.get("opaque"),
        qop=bool(qop),
        stale=parameters.get("stale", "").lower() == "true",
    )


def _parameters(text: str) -> dict[str, str] | None:
    items = split_list(text)
    if len(items) > MAX_PARAMETERS:
        return None
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            return None
        found[name.strip().lower()] = _unquote(value.strip())
    return found


def _unquote(value: str) -> str:
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def _quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def strongest(values: Iterable[str], realm: str = "") -> Challenge | None:
    """The strongest challenge that we can answer, the first of equals (RFC 8760 §2.4).

    Only one of `realm`, where that is given.
    """
    known = [challenge for value in values if (challenge := parse_challenge(value))]
    known = [challenge for challenge in known if realm in ("", challenge.realm)]
    return min(known, key=lambda challenge: _STRENGTH.index(challenge.kind), default=None)


class Authorizer:
    """Answers one challenge, for as many requests as its nonce lasts."""

    __slots__ = ("_challenge", "_cnonce", "_count", "_credentials")

    def __init__(self, credentials: Credentials, challenge: Challenge, cnonce: str) -> None:
        self._credentials = credentials
        self._challenge = challenge
        self._cnonce = cnonce
        self._count = 0

    def authorize(self, method: str, uri: str) -> str:
        """The value of the (Proxy-)Authorization header for a request."""
        self._count += 1
        challenge, name = self._challenge, self._credentials.username
        count = f"{self._count:08x}"
        fields = [
            f"username={_quote(name)}",
            f"realm={_quote(challenge.realm)}",
            f"nonce={_quote(challenge.nonce)}",
            f"uri={_quote(uri)}",
            f'response="{self._response(method, uri, count)}"',
        ]
        if challenge.algorithm is not None:
            fields.append(f"algorithm={challenge.algorithm}")
        if challenge.qop or challenge.kind.endswith("-SESS"):
            fields.append(f'cnonce="{self._cnonce}"')
        if challenge.qop:
            fields += ["qop=auth", f"nc={count}"]
        if challenge.opaque is not None:
            fields.append(f"opaque={_quote(challenge.opaque)}")
        return "Digest " + ", ".join(fields)

    def _response(self, method: str, uri: str, count: str) -> str:
        challenge = self._challenge

        def digest(*parts: str) -> str:
            data = ":".join(parts).encode("utf-8", "surrogateescape")
            return hashlib.new(_ALGORITHMS[challenge.kind], data, usedforsecurity=False).hexdigest()

        secret = digest(self._credentials.username, challenge.realm, self._credentials.password)
        if challenge.kind.endswith("-SESS"):
            secret = digest(secret, challenge.nonce, self._cnonce)
        what = digest(method, uri)
        if challenge.qop:
            return digest(secret, challenge.nonce, count, self._cnonce, "auth", what)
        return digest(secret, challenge.nonce, what)
