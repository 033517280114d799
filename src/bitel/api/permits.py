"""Which numbers a project may call, by the prefixes of their E.164 form."""

from __future__ import annotations

from dataclasses import dataclass

from bitel.calls.numbers import country_code
from bitel.store.projects import Project


@dataclass(frozen=True, slots=True)
class Permits:
    """Prefixes in E.164 with their plus sign. What is forbidden stays so, whatever is allowed."""

    allowed: tuple[str, ...]
    forbidden: tuple[str, ...] = ()

    def allow(self, e164: str) -> bool:
        """Whether that number may be called."""
        return e164.startswith(self.allowed) and not e164.startswith(self.forbidden)


def permits_of(project: Project, region: str) -> Permits:
    """What `project` may call: within the service's country, unless it was given prefixes."""
    allowed = project.allowed_prefixes
    if allowed is None:
        allowed = (country_code(region),)
    return Permits(allowed, project.forbidden_prefixes)
