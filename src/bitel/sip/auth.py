"""Digest authentication as a client (RFC 7616, RFC 8760, RFC 3261 §22).

Challenges are parsed here because `sipmessage` does not accept a quoted list such as
`qop="auth,auth-int"`, which most registrars send.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bitel.sip.grammar import quoted, split_list
from bitel.sip.message import Response

MAX_TRIES = 2
"""Challenges answered for one request."""
MAX_PARAMETERS = 32
_ALGORITHMS = {"SHA-256-SESS": "sha256", "SHA-256": "sha256", "MD5-SESS": "md5", "MD5": "md5"}
"""Strongest first."""
_HEADERS = {
    401: ("www-authenticate", "Authorization"),
    407: ("proxy-authenticate", "Proxy-Authorization"),
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Digest credentials for `realm`; "" takes the realm of the first challenge."""

    username: str
    password: str = field(repr=False)
    realm: str = ""


Tries = list[str]
"""Names of the credential headers sent with one request so far."""


def is_challenge(code: int) -> bool:
    """Whether a response code asks for credentials: 401 or 407."""
    return code in _HEADERS


class Authentication:
    """Answers challenges for the requests of one call, at most `MAX_TRIES` times a request.

    Later requests of the call carry the credentials without a new challenge. Challenges of other
    realms than that of the credentials or of the first challenge are ignored: they may come from
    the callee.
    """

    def __init__(self, credentials: Credentials, new_cnonce: Callable[[], str]) -> None:
        self._credentials = credentials
        self._new_cnonce = new_cnonce
        self._realm = credentials.realm
        self._authorizers: dict[str, Authorizer] = {}

    @classmethod
    def of(
        cls, credentials: Credentials | None, new_cnonce: Callable[[], str]
    ) -> Authentication | None:
        """The authentication with these credentials; None without any."""
        return cls(credentials, new_cnonce) if credentials else None

    def learn(self, response: Response, tries: Tries) -> bool:
        """Take a challenge. Returns whether the request should be sent again with credentials.

        False if our credentials were refused (other than as stale), after `MAX_TRIES` tries, or if
        no challenge can be answered.
        """
        if response.code not in _HEADERS:
            return False
        challenge_header, answer_header = _HEADERS[response.code]
        challenge = strongest(response.lines(challenge_header), self._realm)
        if challenge is None or len(tries) >= MAX_TRIES:
            return False
        if answer_header in tries and not challenge.stale:
            return False
        self._realm = challenge.realm
        tries.append(answer_header)
        authorizer = Authorizer(self._credentials, challenge, self._new_cnonce())
        self._authorizers[answer_header] = authorizer
        return True

    def headers(self, method: str, uri: str) -> tuple[tuple[str, str], ...]:
        """The credential headers for a request, one for each challenge so far."""
        return tuple(
            (name, authorizer.authorize(method, uri))
            for name, authorizer in self._authorizers.items()
        )


@dataclass(frozen=True, slots=True)
class Challenge:
    """A supported Digest challenge; `algorithm` is in the spelling of the server."""

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


def strongest(values: Iterable[str], realm: str = "") -> Challenge | None:
    """The strongest supported challenge of `realm` ("": any), the first of equals (RFC 8760)."""
    known = [challenge for value in values if (challenge := parse_challenge(value))]
    known = [challenge for challenge in known if realm in ("", challenge.realm)]
    return min(known, key=lambda challenge: list(_ALGORITHMS).index(challenge.kind), default=None)


def parse_challenge(value: str) -> Challenge | None:
    """Parse a WWW-/Proxy-Authenticate value.

    None for a scheme other than Digest, an unknown algorithm, a qop list without `auth`, or a
    syntax error.
    """
    scheme, _, rest = value.strip().partition(" ")
    parameters = _parameters(rest)
    if scheme.lower() != "digest" or parameters is None:
        return None
    realm, nonce = parameters.get("realm"), parameters.get("nonce")
    algorithm, qop = parameters.get("algorithm"), parameters.get("qop")
    if realm is None or nonce is None or (algorithm or "MD5").upper() not in _ALGORITHMS:
        return None
    if qop and "auth" not in [choice.strip().lower() for choice in qop.split(",")]:
        return None
    stale = parameters.get("stale", "").lower() == "true"
    return Challenge(realm, nonce, algorithm, parameters.get("opaque"), bool(qop), stale)


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


class Authorizer:
    """Computes the credentials for one challenge; counts the uses of its nonce (RFC 7616 §3.4)."""

    def __init__(self, credentials: Credentials, challenge: Challenge, cnonce: str) -> None:
        self._credentials = credentials
        self._challenge = challenge
        self._cnonce = cnonce
        self._count = 0

    def authorize(self, method: str, uri: str) -> str:
        """The value of the (Proxy-)Authorization header for a request."""
        self._count += 1
        challenge = self._challenge
        count = f"{self._count:08x}"
        fields = [
            f"username={quoted(self._credentials.username)}",
            f"realm={quoted(challenge.realm)}",
            f"nonce={quoted(challenge.nonce)}",
            f"uri={quoted(uri)}",
            f'response="{self._response(method, uri, count)}"',
        ]
        if challenge.algorithm is not None:
            fields.append(f"algorithm={challenge.algorithm}")
        if challenge.qop or challenge.kind.endswith("-SESS"):
            fields.append(f'cnonce="{self._cnonce}"')
        if challenge.qop:
            fields += ["qop=auth", f"nc={count}"]
        if challenge.opaque is not None:
            fields.append(f"opaque={quoted(challenge.opaque)}")
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
