"""From a checked body to calls that are placed: the rules that every such endpoint shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from sqlalchemy import Connection
from starlette.requests import Request

from bitel.api.bodies import CallTerms
from bitel.api.parts import ApiParts
from bitel.api.rounds import Rounds
from bitel.calls.call import Lane, NewCall
from bitel.calls.ids import is_id, new_id
from bitel.calls.numbers import to_e164
from bitel.calls.tariff import Tariff
from bitel.errors import (
    BitelError,
    InsufficientBalanceError,
    InvalidRequestError,
    InvalidServerError,
    UnavailableError,
)
from bitel.settings import Settings
from bitel.store import calls as call_rows
from bitel.store import projects, recordings
from bitel.store.projects import Project


def new_calls(
    parts: ApiParts,
    project: Project,
    numbers: Sequence[str],
    recording_id: str,
    terms: CallTerms,
    lane: Lane,
) -> list[NewCall]:
    """Calls to `numbers`, in that order, as `terms` has them; nothing is stored yet.

    Raises InvalidPhoneNumberError for the first number that is not possible, then
    InvalidServerError or UnavailableError where no dialer can take them.
    """
    written = [(number, to_e164(number, parts.settings.region)) for number in numbers]
    dialer_id = choose_dialer(parts.settings, project, terms.server_id)
    now = parts.clock()
    return [
        NewCall(
            id=new_id(now),
            project_id=project.id,
            dialer_id=dialer_id,
            phone_number=number,
            e164=e164,
            recording_id=recording_id,
            lane=lane,
            retry_count=terms.retries,
            retry_interval=terms.seconds_between,
            requested_at=now,
            expires_at=now + terms.seconds_to_live,
        )
        for number, e164 in written
    ]


def choose_dialer(settings: Settings, project: Project, server_id: str | None) -> str:
    """The dialer that takes the calls: the one named, else the project's, else the first.

    Raises InvalidServerError for a name that no dialer has. Where the client named none and there
    is none to fall back on, that is the operator's to mend: UnavailableError.
    """
    if server_id is not None:
        if settings.dialer(server_id) is None:
            raise InvalidServerError(
                "serverId names no dialer of this service; GET /api/v2/servers lists them"
            )
        return server_id
    if project.default_dialer is not None:
        if settings.dialer(project.default_dialer) is None:
            raise UnavailableError("the project's default dialer is not among the service's")
        return project.default_dialer
    if not settings.dialers:
        raise UnavailableError("the service has no dialer to place calls with")
    return settings.dialers[0].id


class Placing:
    """Stores calls, those of many requests at a time: one transaction, one wait for the disk."""

    def __init__(self, parts: ApiParts) -> None:
        self._parts = parts
        self._tariff = parts.settings.price_list()
        self._rounds = Rounds(self._place)

    async def place(self, calls: Sequence[NewCall]) -> None:
        """Store `calls`, one or more of one project, or none of them; durable when this returns.

        Raises InvalidRequestError where a recording is not the project's, and
        InsufficientBalanceError where its balance can't cover the calls.
        """
        await self._rounds.ask(calls)
        for dialer_id in {call.dialer_id for call in calls}:
            self._parts.on_placed(dialer_id)

    async def _place(self, asked: Sequence[Sequence[NewCall]]) -> Sequence[BitelError | None]:
        return await self._parts.database.write(lambda conn: _place(conn, asked, self._tariff))


def placing_of(request: Request) -> Placing:
    """What stores the calls of the application that `request` reached."""
    placing: Placing = request.app.state.placing
    return placing


def _place(
    conn: Connection, asked: Sequence[Sequence[NewCall]], tariff: Tariff
) -> list[BitelError | None]:
    """Place what nothing speaks against; for each ask, what does."""
    # In the transaction that places the calls, so that no recording goes away in between.
    known: dict[tuple[str, str], bool] = {}
    objections: list[BitelError | None] = []
    for calls in asked:
        for owned in {(call.project_id, call.recording_id) for call in calls} - known.keys():
            known[owned] = is_id(owned[1]) and recordings.find(conn, *owned) is not None
        objections.append(_objection(conn, calls, known, tariff))
    accepted = zip(asked, objections, strict=True)
    call_rows.place(conn, [call for calls, against in accepted if not against for call in calls])
    return objections


def _objection(
    conn: Connection,
    calls: Sequence[NewCall],
    known: Mapping[tuple[str, str], bool],
    tariff: Tariff,
) -> BitelError | None:
    if not all(known[call.project_id, call.recording_id] for call in calls):
        return InvalidRequestError("voiceId names no recording of this project")
    # What the calls would cost even if each lasted only a second.
    least = sum((tariff.price(call.e164, 1) for call in calls), Decimal(0))
    if not least:
        return None
    project = projects.by_id(conn, calls[0].project_id)
    if project is None or project.balance is None or project.balance >= least:
        return None
    return InsufficientBalanceError(
        f"the calls cost at least {least} if answered, which is more than the balance"
    )
