"""Limits of a project: requests and calls per minute, concurrent work, and stored recordings.

Each process allows an equal share of the requests and calls per minute, by the number of live
processes, so that their sum is the limit without a query for each request. Concurrent work is
limited in each process, whose memory and disk it takes. Money is checked by the store, which is
exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bitel.errors import TooManyRequestsError
from bitel.settings import LimitSettings, Settings
from bitel.store.projects import Project
from bitel.store.recordings import Quota
from bitel.token_bucket import TokenBucket

RETRY_AFTER: Final = 5
"""Seconds in Retry-After for a project with too much concurrent work."""
_MINUTE: Final = 60.0


class RateLimiter:
    """Token buckets by project: with its own limits, or those of the settings.

    `settings` gives the limits in force, `clock` monotonic seconds, `processes` the number of
    processes that share the limits.
    """

    def __init__(
        self,
        settings: Callable[[], LimitSettings],
        clock: Callable[[], float],
        processes: Callable[[], int] = lambda: 1,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._processes = processes
        self._requests: dict[str, TokenBucket] = {}
        self._calls: dict[str, TokenBucket] = {}

    def count_request(self, project: Project) -> None:
        """Count a request, or raise TooManyRequestsError."""
        most = project.requests_per_minute or self._settings().requests_per_minute
        self._take(self._requests, project, 1, most, "requests")

    def count_calls(self, project: Project, calls: int) -> None:
        """Count calls that are about to be placed, or raise TooManyRequestsError."""
        most = project.calls_per_minute or self._settings().calls_per_minute
        self._take(self._calls, project, calls, most, "calls")

    def uncount_calls(self, project: Project, calls: int) -> None:
        """Undo `count_calls` for calls that were not placed."""
        bucket = self._calls.get(project.id)
        if bucket is not None:
            bucket.give_back(calls)

    def _take(
        self,
        buckets: dict[str, TokenBucket],
        project: Project,
        cost: int,
        most: int | None,
        what: str,
    ) -> None:
        if most is None:
            return
        now = self._clock()
        share = most / self._processes()
        bucket = buckets.get(project.id)
        if bucket is None:
            bucket = buckets[project.id] = TokenBucket(share / _MINUTE, share, now)
        bucket.per_second, bucket.burst = share / _MINUTE, share  # the limit may have changed
        wait = bucket.take(now, cost)
        if wait:
            raise TooManyRequestsError(
                f"this project may place {most} {what} a minute"
                if what == "calls"
                else f"this project may send {most} {what} a minute",
                retry_after=math.ceil(wait),
            )


def quota_of(settings: Settings) -> Quota:
    """The recordings that a project may store."""
    limits = settings.limits
    return Quota(limits.recordings, limits.storage_megabytes * 1024 * 1024)


class ConcurrencyQuota:
    """Limits concurrent work to `most` pieces per project; `what` names them in messages."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._count = Counter[str]()

    @contextmanager
    def one_more(self, project_id: str) -> Iterator[None]:
        """Count a piece of work inside the block. Raises TooManyRequestsError."""
        if self._count[project_id] >= self._most:
            raise TooManyRequestsError(
                f"this project has {self._most} {self._what} under way; wait for one to be done",
                retry_after=RETRY_AFTER,
            )
        self._count[project_id] += 1
        try:
            yield
        finally:
            self._count[project_id] -= 1
            if not self._count[project_id]:
                del self._count[project_id]
