"""Who may have how many tries under way, so that one receiver's trouble is not the others'."""

from __future__ import annotations

from collections import Counter


class ConcurrencyLimiter:
    """Counts tries under way: `most` at once, `most_each` for one project.

    A project whose last try failed has only one at a time until one succeeds. So receivers that
    hang, each try for as long as it may, leave almost all room to those that don't.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._running: Counter[str] = Counter()
        self._troubled: set[str] = set()

    @property
    def free(self) -> int:
        """How many tries may begin now, whosoever they are."""
        return self._most - self._running.total()

    @property
    def taken(self) -> dict[str, int]:
        """How many of its `most_each` tries a project can't begin now; 0 for all not named."""
        known = self._running.keys() | self._troubled
        return {project_id: self._most_each - self._room(project_id) for project_id in known}

    def begin(self, project_id: str) -> None:
        """Count a try."""
        self._running[project_id] += 1

    def end(self, project_id: str, *, failed: bool) -> None:
        """Count a try no more, and remember how it went."""
        self._running[project_id] -= 1
        if not self._running[project_id]:
            del self._running[project_id]
        if failed:
            self._troubled.add(project_id)
        else:
            self._troubled.discard(project_id)

    def _room(self, project_id: str) -> int:
        most = 1 if project_id in self._troubled else self._most_each
        return max(0, most - self._running[project_id])
