"""Settings from a file, the environment and files of secrets, and their faults."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bitel.errors import SettingsError
from bitel.settings import DialerSettings, Settings, load

DIALER = '[[dialers]]\nid = "main"\ntrunks = ["sip:c.test"]\n'
SECOND = '[[dialers]]\nid = "b-2"\ntrunks = ["sip:d.test"]\nbind = "0.0.0.0:5080"\n'


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BITEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def written(text: str, folder: Path | None = None) -> Settings:
    path = (folder or Path.cwd()) / "bitel.toml"
    path.write_text(text)
    return load(path)


def fault(text: str) -> str:
    with pytest.raises(SettingsError) as raised:
        written(text)
    said = str(raised.value)
    assert len(said.splitlines()) == 1
    # What pydantic, or Python, would say of it.
    assert not re.search(r"Input should|instance of|List should|Value error|validation", said)
    return said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[http]\nport = "x"', "the setting http.port must be a whole number"),
        ("[http]\nport = 1.5", "the setting http.port must be a whole number"),
        ("[http]\nport = 70000", "the setting http.port must be 65535 or less"),
        ('signing_key_secret = "short"', "signing_key_secret is wrong: it has fewer than 16"),
        ("http = 1", "the setting http must be a section, written as [http]"),
        ("dialers = 3", "must be a list of sections, each written as [[dialers]]"),
        ('[dialers]\nid = "x"', "must be a list of sections, each written as [[dialers]]"),
        ("tariff = [5]", "the setting tariff, entry 1 must be a table"),
        ('[[tariff]]\nprefix = "+98"', "the setting tariff, entry 1, per_minute must be set"),
        ('[[tariff]]\nprefix = "98"\nper_minute = 1', "'98' is not the beginning of an E.164"),
        (DIALER + 'max_channels = "many"', "dialers.main.max_channels must be a whole number"),
        (DIALER + "ring_timeout = 0", "dialers.main.ring_timeout must be 1 or more"),
        (DIALER + 'calls_per_second = "x"', "dialers.main.calls_per_second must be a number"),
        (DIALER + "calls_per_second = 0", "dialers.main.calls_per_second must be more than 0"),
        (DIALER + "register = 5", "dialers.main.register must be true or false"),
        (DIALER + 'colour = "red"', "the setting dialers.main.colour is unknown"),
        ('[[dialers]]\nid = "main"\ntrunks = "sip:c"', "dialers.main.trunks must be a list"),
        ('[[dialers]]\nid = "main"\ntrunks = []', "dialers.main.trunks must have 1 entry or more"),
        (
            '[[dialers]]\nid = "a"\ntrunks = ["sip:c", 5]',
            "a.trunks, entry 2 must be a text",
        ),
        ('[[dialers]]\ntrunks = ["sip:c.test"]', "the setting dialers, entry 1, id must be set"),
        ('[[dialers]]\nid = "a b"\ntrunks = ["sip:c"]', "'a b' is no id of a dialer"),
        (DIALER + 'outbound_proxy = "sip:"', "'sip:' is not a proxy's address, as in sip:"),
        (DIALER + "caller_id = 5", "dialers.main.caller_id must be a text in quotation marks"),
        (DIALER + 'caller_id = "a b"', "dialers.main.caller_id is wrong: 'a b' is no caller id"),
        (DIALER + 'caller_id = ["1", "a b"]', "dialers.main.caller_id, entry 2 is wrong: 'a b'"),
        (DIALER + 'caller_ids = { "+98" = 1 }', "dialers.main.caller_ids.+98 must be a text"),
        (DIALER + 'codecs = ["G729"]', "dialers.main.codecs, entry 1 must be 'PCMA' or 'PCMU'"),
        (DIALER + "extra_headers = 5", "dialers.main.extra_headers must be a table"),
        (
            DIALER + 'number_rules = [{ prefix = "+98", strip = "x" }]',
            "dialers.main.number_rules, entry 1, strip must be a whole number",
        ),
        (DIALER + DIALER, "dialers: two have the same id 'main'"),
        ("data_dir = 5", "the setting data_dir must be the name of a file or folder"),
        ("database_url = 5", "the setting database_url must be a text in quotation marks"),
        ('log_json = "perhaps"', "the setting log_json must be true or false"),
        (
            'log_level = "loud"',
            "log_level must be 'debug', 'info', 'warning' or 'error'",
        ),
        ('currency = "irr"', "'irr' is no ISO 4217 currency, as in IRR"),
        ('extra_prefixes = "+98"', "the setting extra_prefixes must be a list"),
        ("[speech]\npiper = { fa = 5 }", "speech.piper.fa must be the name of a file or folder"),
        ('[speech]\nlanguages = ["a"]', "speech.languages must be a table, as in { name = value }"),
        ("drain_timeout = nan", "the setting drain_timeout must be"),
        ('[s3]\nendpoint = "ftp://x"', "'ftp://x' is not the URL of a server"),
        ('[s3]\nendpoint = "https://a:b@x"', "it holds a user or password"),
        ('[s3]\nregion = "x"', "[s3] has no effect without a storage_url"),
        (
            'storage_url = "s3://b"\n[s3]\nendpoint = "http://x:9000"',
            "the endpoint http://x:9000 is plain HTTP; write allow_http = true",
        ),
        ('storage_url = "s3://b"\n[s3]\naccess_key_id = "x"', "go together; set both or neither"),
        ("a b", "bitel.toml is no TOML: "),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_file(text: str, says: str) -> None:
    assert says in fault(text)


def test_a_file_as_notepad_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "bitel.toml"
    path.write_bytes(b'\xef\xbb\xbfregion = "DE"\r\n')
    assert load().region == "DE"
    path.write_bytes('region = "DE"'.encode("utf-16"))
    with pytest.raises(SettingsError, match="is not UTF-8; save it as UTF-8"):
        load()


# The environment


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITEL_HTTP__PORT", "9001")
    monkeypatch.setenv("BITEL_REGION", "DE")
    loaded = written('region = "FR"\n[http]\nhost = "127.0.0.2"\nport = 9000\n')
    assert (loaded.http.host, loaded.http.port, loaded.region) == ("127.0.0.2", 9001, "DE")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BITEL_DIALERS", "x", "BITEL_DIALERS in the environment must be JSON"),
        ("BITEL_HTTP__PORT", "", "the setting http.port must be a whole number"),
        ("BITEL_HTTP", "5", "the setting http must be a section"),
        ("BITEL_DATABASE_URL_FLIE", "x", "is BITEL_DATABASE_URL_FILE meant?"),
        ("BITEL_DIALERS__MAIN__PASWORD", "x", "names no setting; remove or correct it"),
        ("BITEL_DIALERS__OTHER__PASSWORD", "x", "names no dialer; there are: main, b-2"),
        ("BITEL_DIALERS__MAIN__MAX_CHANNELS", "x", "dialers.main.max_channels must be a whole"),
        ("BITEL_DIALERS__MAIN__PASSWORD_FILE", "none", "none, which can't be read: No such file"),
    ],
)
def test_a_variable_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    assert says in fault(DIALER + SECOND)


def test_one_field_of_one_dialer(monkeypatch: pytest.MonkeyPatch) -> None:
    # A password may look like JSON.
    monkeypatch.setenv("BITEL_DIALERS__MAIN__PASSWORD", '["s3cret"]')
    monkeypatch.setenv("BITEL_DIALERS__B_2__TRUNKS", '["sip:x.test", "sip:y.test"]')
    monkeypatch.setenv("BITEL_DIALERS__B_2__REGISTER", "true")
    monkeypatch.setenv("BITEL_DIALERS__B_2__USERNAME", "me")
    main, second = written(DIALER + 'username = "acme"\n' + SECOND).dialers
    assert main.password.get_secret_value() == '["s3cret"]'
    assert second.trunks == ["sip:x.test", "sip:y.test"]
    assert (second.register_, second.username) == (True, "me")


# Secrets in files


def test_every_secret_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in ("password", "url", "token", "secret"):
        (etc / name).write_text(f"s3cret {name}\n")
    (tmp_path / "other").write_text("other\r\n")
    monkeypatch.setenv("BITEL_DATABASE_URL_FILE", str(etc / "url"))
    monkeypatch.setenv("BITEL_DIALERS__B_2__PASSWORD_FILE", "other")  # from the working directory
    loaded = written(
        '[metrics]\ntoken_file = "token"\n[notifications]\nsecret_file = "secret"\n'
        f'{DIALER}username = "a"\npassword_file = "password"\n{SECOND}username = "b"\n',
        etc,
    )
    secrets = (
        loaded.dialers[0].password,
        loaded.dialers[1].password,
        loaded.database_url,
        loaded.metrics.token,
        loaded.notifications.secret,
    )
    assert [each.get_secret_value() for each in secrets] == [
        *("s3cret password", "other", "s3cret url", "s3cret token", "s3cret secret")
    ]
    assert "s3cret" not in repr(loaded)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('password = "x"\npassword_file = "y"', "password_file exclude each other; set one"),
        ('password_file = "none"', "/none, which can't be read: No such file or directory"),
        ('password_file = ""', "dialers.main.password_file must be the name of a file"),
        ("password_file = 5", "dialers.main.password_file must be the name of a file"),
        ('password_file = "binary"', "/binary, which is not UTF-8"),
        ('password_file = "long"', "/long, which is longer than 64 KiB"),
        ('username_file = "y"', "the setting dialers.main.username_file is unknown"),
    ],
)
def test_a_file_of_a_secret_that_is_wrong(tmp_path: Path, lines: str, says: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_text("x" * 65_537)
    assert says in fault(f'{DIALER}username = "a"\n{lines}\n')


# File names


def test_file_names_are_relative_to_the_settings_file(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    loaded = written(
        'database_url = "sqlite:///calls.db"\n[speech]\npiper = { fa = "fa.onnx" }\n'
        f'{DIALER}tls_ca = "ca.pem"\ntls_certificate = "/abs/our.pem"\ntls_key = "our.key"\n',
        etc,
    )
    assert loaded.data_dir == etc / "bitel-data", "also where it is the default"
    assert loaded.effective_database_url == f"sqlite:///{etc}/calls.db"
    assert loaded.speech.piper == {"fa": etc / "fa.onnx"}
    dialer = loaded.dialers[0]
    assert (dialer.tls_ca, dialer.tls_key) == (str(etc / "ca.pem"), str(etc / "our.key"))
    assert dialer.tls_certificate == "/abs/our.pem"


def test_without_a_file_and_from_the_environment_they_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load().data_dir == tmp_path / "bitel-data"
    monkeypatch.setenv("BITEL_DATA_DIR", "here")
    etc = tmp_path / "etc"
    etc.mkdir()
    assert written('data_dir = "there"', etc).data_dir == tmp_path / "here"


@pytest.mark.parametrize(
    ("setting", "old"),
    [
        ("", "bitel-data/bitel.db"),
        ("", "bitel-data/signing.key"),
        ('data_dir = "data"', "data/bitel.db"),
        ('database_url = "sqlite:///calls.db"', "calls.db"),
        (f'{DIALER}tls_ca = "ca.pem"', "ca.pem"),
    ],
)
def test_what_is_at_the_old_place_only_stops_the_start(
    tmp_path: Path, setting: str, old: str
) -> None:
    """Before, they were relative to the working directory."""
    found, etc = tmp_path / old, tmp_path / "etc"
    found.parent.mkdir(exist_ok=True)
    found.touch()
    etc.mkdir()
    place = found if found.parent == tmp_path else found.parent
    with pytest.raises(SettingsError, match="is relative to the settings file") as raised:
        written(setting, etc)
    assert f"means {etc / place.name}, where nothing is; {place} exists" in str(raised.value)

    (etc / old).parent.mkdir(exist_ok=True)
    (etc / old).touch()
    written(setting, etc)


def test_no_setting_of_a_dialer_ends_as_that_of_a_secrets_file_does() -> None:
    assert not [name for name in DialerSettings.model_fields if name.endswith("_file")]
