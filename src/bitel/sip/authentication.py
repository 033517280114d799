"""What one call knows about proving who we are: challenges met, answers to them."""

from __future__ import annotations

from bitel.sip.digest import Authorizer, Credentials, strongest
from bitel.sip.message import Response

MAX_TRIES = 2
_HEADERS = {
    401: ("www-authenticate", "Authorization"),
    407: ("proxy-authenticate", "Proxy-Authorization"),
}


def is_challenge(code: int) -> bool:
    return code in _HEADERS


class Tries:
    """The challenges to one request, counted over all its attempts with credentials."""

    __slots__ = ("answered", "count")

    def __init__(self) -> None:
        self.count = 0
        self.answered: set[str] = set()
        """The names of the headers that answered them."""


class Authentication:
    """Answers challenges for the requests of one call, at most `MAX_TRIES` times a request.

    An answer is kept and sent with the later requests of the call, without a new challenge. Only
    one realm is answered, that of the credentials or else that of the first challenge: a challenge
    of another realm may come from the callee.
    """

    __slots__ = ("_authorizers", "_credentials", "_realm")

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._realm = credentials.realm
        self._authorizers: dict[str, Authorizer] = {}

    def learn(self, response: Response, cnonce: str, tries: Tries) -> bool:
        """Take up the challenge of a 401 or 407; False where trying again is of no use.

        That is so when our answer was refused (other than as stale), when the request has used up
        its `tries`, or when no challenge can be answered.
        """
        challenge_header, answer_header = _HEADERS[response.code]
        challenge = strongest(response.lines(challenge_header), self._realm)
        if challenge is None or tries.count >= MAX_TRIES:
            return False
        if answer_header in tries.answered and not challenge.stale:
            return False
        self._realm = challenge.realm
        tries.count += 1
        tries.answered.add(answer_header)
        self._authorizers[answer_header] = Authorizer(self._credentials, challenge, cnonce)
        return True

    def headers(self, method: str, uri: str) -> tuple[tuple[str, str], ...]:
        """The headers that answer every challenge met so far."""
        return tuple(
            (name, authorizer.authorize(method, uri))
            for name, authorizer in self._authorizers.items()
        )
