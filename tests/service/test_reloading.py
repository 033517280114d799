"""Which settings are in force after SIGHUP, and which need a restart."""

from __future__ import annotations

from typing import Any

import pytest

from bitel.errors import SettingsError
from bitel.service.reloading import RELOADABLE, RELOADABLE_OF_DIALER, plan_reload
from bitel.settings import DialerSettings, Settings

DIALER = {"id": "main", "trunks": ["sip:c.test"], "max_channels": 10, "username": "me"}


def settings(dialers: list[dict[str, Any]] | None = None, **more: Any) -> Settings:
    made = [DialerSettings.model_validate({**DIALER, **each}) for each in dialers or [{}]]
    return Settings(dialers=made, **more)


def test_what_may_change_is_named_as_it_is_written() -> None:
    fields = {field.alias or name for name, field in DialerSettings.model_fields.items()}
    assert fields >= RELOADABLE_OF_DIALER
    for name in RELOADABLE:
        model: Any = Settings
        for part in name.split("."):
            model = model.model_fields[part].annotation


def test_nothing_changes() -> None:
    plan = plan_reload(settings(), settings())
    assert (plan.settings, plan.changed, plan.needs_restart) == (settings(), [], [])


def test_what_can_change_changes_and_the_rest_stays() -> None:
    running = settings([{"password": "old"}], log_level="info", http={"port": 1, "max_body": 2000})
    wanted = settings(
        [{"password": "new", "max_channels": 20, "bind": "127.0.0.1:9", "caller_id": "021"}],
        log_level="debug",
        region="DE",
        http={"port": 2, "max_body": 3000},
        tariff=[{"prefix": "+", "per_minute": 1}],
    )
    plan = plan_reload(running, wanted)
    assert set(plan.changed) == {
        *("log_level", "http.max_body", "tariff"),
        *("dialers.main.password", "dialers.main.max_channels", "dialers.main.caller_id"),
    }
    assert set(plan.needs_restart) == {"region", "http.port", "dialers.main.bind"}
    now = plan.settings
    assert (now.log_level, now.region) == ("debug", "IR")
    assert (now.http.port, now.http.max_body) == (1, 3000)
    assert len(now.tariff) == 1
    dialer = now.dialers[0]
    assert (dialer.max_channels, dialer.bind, dialer.caller_id) == (20, "0.0.0.0:5070", "021")
    assert dialer.password.get_secret_value() == "new"
    again = plan_reload(now, wanted)
    assert (again.settings, again.changed) == (now, [])


def test_dialers_come_and_go_with_a_restart() -> None:
    other = {"id": "b", "bind": "0.0.0.0:5080"}
    plan = plan_reload(settings(), settings([{"max_channels": 9}, other]))
    assert (plan.changed, plan.needs_restart) == (["dialers.main.max_channels"], ["dialers"])
    plan = plan_reload(settings([{}, other]), settings([{}]))
    assert (plan.changed, plan.needs_restart) == ([], ["dialers"])
    assert len(plan.settings.dialers) == 2


def test_a_registration_keeps_its_credentials() -> None:
    running = settings([{"register": True, "password": "old"}])
    plan = plan_reload(running, settings([{"register": True, "password": "new"}]))
    assert (plan.changed, plan.needs_restart) == ([], ["dialers.main.password"])


def test_half_of_a_change_that_contradicts_itself_is_refused() -> None:
    running = settings([{"receive": False}])
    wanted = settings([{"receive": True, "media_timeout": 30}])
    with pytest.raises(SettingsError, match=r"together with dialers.main.receive.*media_timeout"):
        plan_reload(running, wanted)
