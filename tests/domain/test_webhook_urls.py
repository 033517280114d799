"""Which URLs and addresses events may be sent to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.webhooks import check_url, parse_url, why_blocked
from bitel.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("url", "target", "host_header"),
    [
        ("https://Example.com", ("https", "example.com", 443, "/"), "example.com"),
        (
            "http://example.com:8080/a/b?c=d#e",
            ("http", "example.com", 8080, "/a/b?c=d"),
            "example.com:8080",
        ),
        ("https://example.com:443/", ("https", "example.com", 443, "/"), "example.com"),
        ("http://[2001:4860::1]:81/", ("http", "2001:4860::1", 81, "/"), "[2001:4860::1]:81"),
        ("http://192.0.2.1/", ("http", "192.0.2.1", 80, "/"), "192.0.2.1"),
        ("https://مثال.ایران/x", ("https", "xn--mgbh0fb.xn--mgba3a4f16a", 443, "/x"), ""),
        ("https://example.com/سلام", ("https", "example.com", 443, "/%D8%B3%D9%84%D8%A7%D9%85"), ""),  # noqa: E501
    ],
)  # fmt: skip
def test_a_url_is_taken_apart(
    url: str, target: tuple[str, str, int, str], host_header: str
) -> None:
    parsed = parse_url(url)
    assert (parsed.scheme, parsed.host, parsed.port, parsed.path) == target
    assert parsed.origin == target[:3]
    assert parsed.host_header == (host_header or parsed.host)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "/calls",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "http://",
        "http:///calls",
        "https://user@example.com/",
        "https://user:word@example.com/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:x/",
        "http://a b/",
        "http://a..b/",
        "http://.example.com/",
        "http://example.com\r\nX: y/",
        "http://example.com/\nX",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 130 + "com/",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_what_is_no_target_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^the webhook URL ") as caught:
        parse_url(url)
    assert "word" not in str(caught.value).replace("password", "")


@given(st.text(max_size=60) | st.text("htps:/[]@.%0123456789abcdef:?#", max_size=60).map("http://".__add__))  # fmt: skip  # noqa: E501
def test_any_text_is_a_target_or_refused(url: str) -> None:
    try:
        target = parse_url(url)
    except InvalidRequestError:
        return
    assert target.scheme in ("http", "https")
    assert 0 < target.port < 65536
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert target.path.isprintable()
    assert " " not in target.path


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.9",
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.1",
        "192.175.48.1",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:0:7f00:1::",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2002:c0a8:101::1",
        "2620:4f:8000::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_no_event_goes_to_an_address_that_is_not_public(address: str) -> None:
    why = why_blocked(ipaddress.ip_address(address))
    assert why is not None
    assert why.startswith(str(ipaddress.ip_address(address)))
    assert why.partition(")")[0].rstrip("0123456789.").endswith((" address", " address ("))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert why_blocked(ipaddress.ip_address(address)) is None


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_as_itself(inner: ipaddress.IPv4Address) -> None:
    packed = int(inner)
    for outer in (
        ipaddress.IPv6Address((0xFFFF << 32) | packed),
        ipaddress.IPv6Address((0x0064_FF9B << 96) | packed),
        ipaddress.IPv6Address((0x2002 << 112) | (packed << 80) | 1),
    ):
        assert (why_blocked(outer) is None) == (why_blocked(inner) is None)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:10.0.0.1]",
     "169.254.169.254"],
)  # fmt: skip
def test_a_url_that_names_a_private_address_is_refused_unless_allowed(host: str) -> None:
    with pytest.raises(InvalidRequestError, match="webhook_allow_private"):
        check_url(f"http://{host}:8000/", allow_private=False)
    check_url(f"http://{host}:8000/", allow_private=True)


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "[2606:4700::1111]", "1.example"])
def test_names_and_public_addresses_pass(host: str) -> None:
    check_url(f"https://{host}/", allow_private=False)
