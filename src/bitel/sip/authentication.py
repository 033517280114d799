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


class Authentication:
    """Answers challenges for the requests of one call, at most `MAX_TRIES` times a request.

    An answer is kept, and sent ahead of being asked with the call's later requests. Who asks
    first, or the realm that the credentials name, is the one whom they are for: what another
    realm asks for later may come from whoever is called, and is not answered.
    """

    __slots__ = ("_answered", "_authorizers", "_credentials", "_realm", "_tries")

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._realm = credentials.realm
        self._authorizers: dict[str, Authorizer] = {}
        self._answered: set[str] = set()
        self._tries = 0

    def begin_request(self) -> None:
        """Count tries anew: what follows is another request, not another try."""
        self._tries = 0
        self._answered.clear()

    def learn(self, response: Response, cnonce: str) -> bool:
        """Take up the challenge of a 401 or 407; False where trying again is of no use.

        That is when our answer was refused (and not for being stale), when the tries are spent,
        or when no challenge can be answered.
        """
        challenge_header, answer_header = _HEADERS[response.code]
        challenge = strongest(response.lines(challenge_header), self._realm)
        if challenge is None or self._tries >= MAX_TRIES:
            return False
        if answer_header in self._answered and not challenge.stale:
            return False
        self._realm = challenge.realm
        self._tries += 1
        self._answered.add(answer_header)
        self._authorizers[answer_header] = Authorizer(self._credentials, challenge, cnonce)
        return True

    def headers(self, method: str, uri: str) -> tuple[tuple[str, str], ...]:
        """The headers that answer every challenge met so far."""
        return tuple(
            (name, authorizer.authorize(method, uri))
            for name, authorizer in self._authorizers.items()
        )
