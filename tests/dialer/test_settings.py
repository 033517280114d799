"""A dialer's settings: what becomes of them, and what is refused in one sentence."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from bitel.dialer.caller_identity import NumberRule
from bitel.dialer.config import sip_trunk_config
from bitel.dialer.trunk import Trunk
from bitel.errors import SettingsError
from bitel.settings import load
from bitel.sip import Transport
from bitel.sip_transport.tls import TlsFiles


def write(folder: Path, lines: str, trunk: str = "sip:c.test") -> Path:
    path = folder / "bitel.toml"
    path.write_text(f'[[dialers]]\nid = "main"\ntrunks = ["{trunk}"]\n{lines}\n')
    return path


def test_everything_reaches_the_dialer(tmp_path: Path) -> None:
    lines = """
        username = "acme"
        password = "s3cret"
        register = true
        caller_id = ["021", "022"]
        caller_ids = { "+49" = "030" }
        identity = "ppi"
        privacy = true
        number_rules = [{ prefix = "+98", strip = 3, add = "0" }]
        ping_interval = 0
        media_timeout = 12.5
        receive = true
        trunk_timeout = 4
        tls_ca = "ca.pem"
        tls_certificate = "our.pem"
        tls_key = "our.key"
        realm = "carrier"
        outbound_proxy = "sip:edge.c.test:5080;transport=tcp;lr"
        from_domain = "pbx.example"
        user_phone = true
        extra_headers = { "X-Account" = "42", "Diversion" = "<sip:021@pbx.example>;reason=unknown" }
        send_to_source = true
        accept_from = ["198.51.100.0/24", "2001:db8::7"]
        follow_private = true
        latch = "host"
        tcp_fallback = false
    """
    config = sip_trunk_config(load(write(tmp_path, lines)).dialers[0], "DE")
    assert config.trunks == (Trunk("c.test"),)
    assert (config.register, config.privacy, config.identity) == (True, True, "ppi")
    assert list(config.caller_pool) == ["021", "022"]
    assert config.caller_ids == {"+49": "030"}
    assert config.number_rules == [NumberRule("+98", 3, "0")]
    assert config.ping_interval == 0
    assert config.trunk_timeout == 4
    assert (config.media_timeout, config.receive) == (12.5, True)
    assert config.tls == TlsFiles(tmp_path / "ca.pem", tmp_path / "our.pem", tmp_path / "our.key")
    assert config.credentials is not None
    assert config.credentials.realm == "carrier"
    assert config.outbound_proxy == Trunk("edge.c.test", 5080, Transport.TCP)
    assert (config.from_domain, config.user_phone, config.region) == ("pbx.example", True, "DE")
    assert config.extra_headers == (
        ("X-Account", "42"),
        ("Diversion", "<sip:021@pbx.example>;reason=unknown"),
    )
    assert config.accept_from == (ip_network("198.51.100.0/24"), ip_network("2001:db8::7/128"))
    assert config.follow_private
    assert (config.send_to_source, config.latch, config.tcp_fallback) == (True, "host", False)
    assert "s3cret" not in repr(config)
    assert "pbx.example>" not in repr(config), "a header's value may be secret"


def test_by_default(tmp_path: Path) -> None:
    config = sip_trunk_config(load(write(tmp_path, 'caller_id = "021"')).dialers[0])
    assert list(config.caller_pool) == ["021"]
    assert (config.register, config.identity, config.ping_interval) == (False, "from", 30)
    assert (config.trunk_timeout, config.tls) == (32, TlsFiles())
    assert (config.media_timeout, config.receive) == (0, True)
    assert (config.outbound_proxy, config.from_domain, config.extra_headers) == (None, "", ())
    assert (config.user_phone, config.send_to_source) == (False, False)
    assert (config.latch, config.tcp_fallback) == ("port", True)
    assert (config.accept_from, config.follow_private) == ("trunks", False)


@pytest.mark.parametrize("value", ['"all"', '["198.51.100.1/24"]', '["sbc.example"]', "[5060]"])
def test_a_source_is_a_network_or_one_of_two_words(tmp_path: Path, value: str) -> None:
    with pytest.raises(SettingsError, match="accept_from"):
        load(write(tmp_path, f"accept_from = {value}"))


@pytest.mark.parametrize(
    ("lines", "trunk", "says"),
    [
        ("", "sip:c.test;transport=sctp", "use transport=udp, tcp or tls"),
        ("", "sips:c.test;transport=udp", "sips: is never spoken over UDP"),
        ("", "sip:c.test:99999", "is not a trunk's address"),
        ("", "sip:::1", "is not a trunk's address"),
        ("", "sip:[::1]", "bind is IPv4, the trunk sip:[::1] is not; bind [::]:5070, say"),
        ('bind = "[::]:5070"', "sip:192.0.2.1", "bind is IPv6, the trunk sip:192.0.2.1 is not"),
        ('tls_key = "key.pem"', "sip:c.test", "tls_certificate and tls_key go together"),
        ("trunk_timeout = 0", "sip:c.test", "trunk_timeout"),
        ('caller_id = "a b"', "sip:c.test", "caller_id"),
        ("caller_id = []", "sip:c.test", "caller_id"),
        ('caller_ids = { "98" = "1" }', "sip:c.test", "caller_ids"),
        ('identity = "none"', "sip:c.test", "identity"),
        ('number_rules = [{ prefix = "+98", strip = 4 }]', "sip:c.test", "strip 4 takes away more"),
        ('number_rules = [{ prefix = "+98", add = "0\\r\\nX: y" }]', "sip:c.test", "add"),
        (
            'number_rules = [{ prefix = "+98" }, { prefix = "+98" }]',
            "sip:c.test",
            "two have the same prefix '+98'",
        ),
        ("ping_interval = -1", "sip:c.test", "ping_interval"),
        ("media_timeout = 3", "sip:c.test", "media_timeout 3 is too short"),
        ("media_timeout = 601", "sip:c.test", "media_timeout"),
        ("media_timeout = 30\nreceive = false", "sip:c.test", "media_timeout needs receive"),
        ('latch = "host"\nreceive = false', "sip:c.test", "latch = 'host' needs receive = true"),
        ("", "sip:c.test;lr", "its parameter 'lr' would have no effect"),
        ("", "sip:c.test;transprot=tcp", "its parameter 'transprot' would have no effect"),
        ("", "sip:c.test;maddr=192.0.2.7", "its parameter 'maddr' would have no effect"),
        ("", "sip:c.test;self=1", "its parameter 'self' would have no effect"),
        ("", "sip:c.test;transport=tcp;ttl=1", "its parameter 'ttl' would have no effect"),
        ("", "sip:c.test;transport=tcp;Transport=tcp", "it names transport twice"),
        ("", "sip:c.test;transport", "use transport=udp, tcp or tls"),
        ("", "sip:c.test;", "its parameter '' would have no effect"),
        ("", "sip:c.test?Subject=x", "headers after ? would have no effect"),
        ("", "sip:acme@c.test", "a trunk is a host, without a user or password"),
        ("", "sip:acme:s3cret@c.test", "a trunk is a host, without a user or password"),
        ("", "tel:c.test", "is not a trunk's address"),
        ("", "sip:[1:2:3]", "'1:2:3' is no IPv6 address"),
        ("", "sip:c.test/x", "is not a trunk's address"),
        ('outbound_proxy = "edge.c.test"', "sip:c.test", "outbound_proxy is wrong"),
        ('outbound_proxy = "sip:edge;lr;x"', "sip:c.test", "parameter 'x' would have no effect"),
        ('outbound_proxy = "sip:me@edge"', "sip:c.test", "a proxy is a host, without a user"),
        ('outbound_proxy = "sip:edge:0"', "sip:c.test", "is not a proxy's address"),
        ('outbound_proxy = "sip:[::1]"', "sip:c.test", "the outbound_proxy sip:[::1] is not"),
        ('from_domain = "a b"', "sip:c.test", "from_domain is wrong: 'a b' is neither"),
        ('from_domain = "sip:c.test"', "sip:c.test", "from_domain"),
        ('from_domain = "c.test:5060"', "sip:c.test", "from_domain"),
        ('from_domain = "256.1.1.1"', "sip:c.test", "from_domain"),
        ('from_domain = "-c.test"', "sip:c.test", "from_domain"),
        ('from_domain = "c.test>"', "sip:c.test", "from_domain"),
        ('user_phone = "maybe"', "sip:c.test", "user_phone"),
        ('latch = "everywhere"', "sip:c.test", "latch"),
        ('extra_headers = { "X A" = "1" }', "sip:c.test", "'X A' is not the name of a header"),
        ('extra_headers = { "X:" = "1" }', "sip:c.test", "'X:' is not the name of a header"),
        ('extra_headers = { "" = "1" }', "sip:c.test", "'' is not the name of a header"),
        ('extra_headers = { "X-A" = "1\\r\\nY: 2" }', "sip:c.test", "X-A is not one line"),
        ('extra_headers = { "X-A" = "" }', "sip:c.test", "the value of X-A is not one line"),
        ('extra_headers = { "X-A" = "s3cret\\u0007" }', "sip:c.test", "the value of X-A"),
        (f'extra_headers = {{ "X-A" = "{"s" * 513}" }}', "sip:c.test", "1 to 512 printable"),
        (
            'extra_headers = { "X-A" = "1", "x-a" = "2" }',
            "sip:c.test",
            "it names the header x-a twice",
        ),
        (
            "extra_headers = {" + ", ".join(f'"X-{n}" = "{n}"' for n in range(21)) + "}",
            "sip:c.test",
            "extra_headers",
        ),
        (
            'identity = "pai"\nextra_headers = { "p-asserted-identity" = "<sip:1@c.test>" }',
            "sip:c.test",
            "p-asserted-identity is what identity writes",
        ),
        (
            'privacy = true\nextra_headers = { "Privacy" = "user" }',
            "sip:c.test",
            "Privacy is what privacy writes",
        ),
    ],
)
def test_refused(tmp_path: Path, lines: str, trunk: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(write(tmp_path, lines, trunk))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        *("Via", "FROM", "to", "Call-ID", "CSeq", "Contact", "Route", "Record-Route"),
        *("Max-Forwards", "Content-Type", "Content-Disposition", "Allow", "Supported", "Require"),
        *("Authorization", "Proxy-Authorization", "Session-Expires", "Min-SE", "Expires"),
        *("User-Agent", "Proxy-Require"),
        *("v", "f", "t", "i", "m", "k", "x", "e", "L", "c"),
    ],
)
def test_what_the_agent_writes_is_no_extra_header(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(write(tmp_path, f'extra_headers = {{ "{name}" = "1" }}'))
    assert f"{name} is a header that bitel writes itself; remove it" in str(refused.value)


@pytest.mark.parametrize(
    ("written", "host"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::7", "2001:db8::7"), ("[2001:db8::7]", "2001:db8::7")],
)
def test_a_domain_may_be_an_address(tmp_path: Path, written: str, host: str) -> None:
    config = sip_trunk_config(load(write(tmp_path, f'from_domain = "{written}"')).dialers[0])
    assert config.from_domain == host


def test_behind_a_proxy_a_trunk_may_be_of_the_other_family(tmp_path: Path) -> None:
    path = write(tmp_path, 'outbound_proxy = "sip:192.0.2.8"', "sip:[2001:db8::1]")
    config = sip_trunk_config(load(path).dialers[0])
    assert config.outbound_proxy == Trunk("192.0.2.8")


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("sip:c.test", "0.0.0.0:5070"),
        ("sip:c.test:5080;transport=tcp", "0.0.0.0:5070"),
        ("sip:192.0.2.1;Transport=TLS", "0.0.0.0:5070"),
        ("sips:c.test:5061", "[::]:5070"),
        ("SIP:c.test;TRANSPORT=tcp", "0.0.0.0:5070"),
        ("sip:[2001:db8::1]:5060", "[::]:5070"),
        ("sips:[2001:db8::1]", "[::1]:0"),
    ],
)
def test_what_the_settings_take_is_a_trunk(tmp_path: Path, text: str, bind: str) -> None:
    config = sip_trunk_config(load(write(tmp_path, f'bind = "{bind}"', text)).dialers[0])
    assert config.trunks == (Trunk.parse(text),)
