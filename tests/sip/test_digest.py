"""Digest authentication: the arithmetic against published examples, and the conversation."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip import Answered, Credentials, Ended, Failed
from bitel.sip.auth import Authorizer, parse_challenge, strongest
from bitel.sip.message import Request
from tests.support.sip_bench import ANSWER, INVITATION, Bench, reply

INVITATION = INVITATION._replace(credentials=Credentials("us", "secret"))


def fields(header: str) -> dict[str, str]:
    scheme, _, rest = header.partition(" ")
    assert scheme == "Digest"
    return {
        name: value.strip('"') for name, _, value in (i.partition("=") for i in rest.split(", "))
    }


def challenge(code: int = 401, **more: str) -> str:
    name = "WWW-Authenticate" if code == 401 else "Proxy-Authenticate"
    parameters = {"realm": '"carrier"', "nonce": '"n1"'} | more
    return f"{name}: Digest " + ", ".join(f"{k}={v}" for k, v in parameters.items())


def test_the_example_of_rfc_2617() -> None:
    found = parse_challenge(
        'Digest realm="testrealm@host.com", qop="auth,auth-int", '
        'nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", opaque="5ccc069c403ebaf9f0171e9517f40e41"'
    )
    assert found is not None
    answer = Authorizer(Credentials("Mufasa", "Circle Of Life"), found, "0a4f113b")
    assert fields(answer.authorize("GET", "/dir/index.html")) == {
        "username": "Mufasa",
        "realm": "testrealm@host.com",
        "nonce": "dcd98b7102dd2f0e8b11d0f600bfb0c093",
        "uri": "/dir/index.html",
        "response": "6629fae49393a05397450978507c4ef1",
        "cnonce": "0a4f113b",
        "qop": "auth",
        "nc": "00000001",
        "opaque": "5ccc069c403ebaf9f0171e9517f40e41",
    }


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_the_examples_of_rfc_7616(algorithm: str, expected: str) -> None:
    found = parse_challenge(
        'Digest realm="http-auth@example.org", qop="auth, auth-int", '
        f"algorithm={algorithm}, "
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"'
    )
    assert found is not None
    cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
    answer = Authorizer(Credentials("Mufasa", "Circle of Life"), found, cnonce)
    assert fields(answer.authorize("GET", "/dir/index.html"))["response"] == expected


def test_md5_sess_and_no_qop() -> None:
    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    found = parse_challenge('Digest realm="r", nonce="n", algorithm=MD5-sess, qop=auth')
    assert found is not None
    answer = fields(Authorizer(Credentials("u", "p"), found, "c").authorize("BYE", "sip:x"))
    secret = md5(f"{md5('u:r:p')}:n:c")
    assert answer["response"] == md5(f"{secret}:n:00000001:c:auth:{md5('BYE:sip:x')}")
    assert answer["algorithm"] == "MD5-sess"

    found = parse_challenge('Digest realm="r", nonce="n"')
    assert found is not None
    answer = fields(Authorizer(Credentials("u", "p"), found, "c").authorize("BYE", "sip:x"))
    assert answer["response"] == md5(f"{md5('u:r:p')}:n:{md5('BYE:sip:x')}")
    assert not {"qop", "nc", "cnonce", "algorithm", "opaque"} & set(answer)


def test_the_nonce_count_goes_up() -> None:
    found = parse_challenge('Digest realm="r", nonce="n", qop="auth"')
    assert found is not None
    answer = Authorizer(Credentials("u", "p"), found, "c")
    assert [fields(answer.authorize("INVITE", "sip:x"))["nc"] for _ in range(3)] == [
        "00000001",
        "00000002",
        "00000003",
    ]


@pytest.mark.parametrize(
    "value",
    [
        'Basic realm="r"',
        'Digest realm="r"',
        'Digest nonce="n"',
        'Digest realm="r", nonce="n", algorithm=SHA-512-256',
        'Digest realm="r", nonce="n", algorithm=ROT13',
        'Digest realm="r", nonce="n", qop="auth-int"',
        'Digest realm="r", nonce="n", what',
        "Digest",
        "",
        "Digest " + ", ".join(f"p{n}=1" for n in range(40)) + ', realm="r", nonce="n"',
    ],
)
def test_challenges_that_we_cannot_answer(value: str) -> None:
    assert parse_challenge(value) is None


def test_the_strongest_known_challenge_is_taken() -> None:
    sha512 = 'Digest realm="r", nonce="a", algorithm=SHA-512-256'
    md5 = 'Digest realm="r", nonce="b"'
    sha256 = 'Digest realm="r", nonce="c", algorithm=sha-256'
    for order in ([sha512, md5, sha256], [sha256, sha512, md5]):
        best = strongest(order)
        assert best is not None
        assert (best.nonce, best.algorithm) == ("c", "sha-256")
    assert strongest([sha512]) is None


def test_quoted_text_survives() -> None:
    found = parse_challenge(r'Digest realm="a \"b\" \\ c, d=e", nonce="n;,=", opaque=""')
    assert found is not None
    assert (found.realm, found.nonce, found.opaque) == (r'a "b" \ c, d=e', "n;,=", "")
    answer = Authorizer(Credentials('u"x', "p"), found, "c").authorize("BYE", "sip:x")
    assert r'username="u\"x", realm="a \"b\" \\ c, d=e", nonce="n;,="' in answer
    assert 'opaque=""' in answer


def test_a_password_never_shows() -> None:
    assert "secret" not in repr(INVITATION)


@given(st.text(alphabet='Diges tr="\\,nocq auth-\x7f', max_size=300))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    parse_challenge("Digest " + text)


def test_a_long_hostile_challenge_is_read_in_time() -> None:
    started = time.perf_counter()
    for text in ('a="b",' * 1300 + "!", '"' * 8000, "\\" * 8000, 'a="\\' * 2000):
        assert parse_challenge("Digest " + text) is None
    assert time.perf_counter() - started < 1.0


# The conversation


def challenged(code: int = 401, **more: str) -> tuple[Bench, str, Request, Request]:
    bench = Bench()
    call_id, invite = bench.invite(INVITATION)
    bench.receive(reply(invite, code, headers=(challenge(code, **more),)))
    ack, second = bench.sent()
    assert (ack.name, second.name) == ("ACK", "INVITE")
    return bench, call_id, invite, second.request


@pytest.mark.parametrize(("code", "header"), [(401, "authorization"), (407, "proxy-authorization")])
def test_a_challenged_invite_is_sent_again_with_an_answer(code: int, header: str) -> None:
    bench, call_id, first, second = challenged(code, qop='"auth"', opaque='"o"')
    assert second.call_id == first.call_id == call_id
    assert second.from_tag == first.from_tag
    assert (second.cseq, second.to_tag) == (2, "")
    assert second.branch != first.branch
    assert second.body == first.body
    answer = fields(second.header(header))
    assert (answer["username"], answer["realm"], answer["nc"]) == ("us", "carrier", "00000001")
    assert answer["uri"] == second.uri
    assert bench.events() == []
    bench.receive(reply(second, 200, ANSWER))
    ack = bench.one("ACK").request
    assert ack.cseq == 2
    assert ack.header(header) == second.header(header)
    assert [type(event) for event in bench.events()] == [Answered]


def test_a_refused_answer_fails_the_call() -> None:
    bench, call_id, _, second = challenged()
    bench.receive(reply(second, 401, headers=(challenge(nonce='"n2"'),)))
    assert bench.names() == ["ACK"]
    assert bench.events() == [Failed(call_id, 401, None, "Phrase", "auth", False)]


def test_a_stale_nonce_is_tried_once_more() -> None:
    bench, call_id, _, second = challenged()
    bench.receive(reply(second, 401, headers=(challenge(nonce='"n2"', stale="TRUE"),)))
    third = bench.sent()[-1].request
    assert (third.method, third.cseq) == ("INVITE", 3)
    assert fields(third.header("authorization"))["nonce"] == "n2"
    bench.receive(reply(third, 401, headers=(challenge(nonce='"n3"', stale="true"),)))
    assert bench.names() == ["ACK"]
    assert bench.events() == [Failed(call_id, 401, None, "Phrase", "auth", False)]


def test_a_proxy_and_then_the_callee_may_ask() -> None:
    bench, _, _, second = challenged(407)
    bench.receive(reply(second, 401, headers=(challenge(401, nonce='"n2"'),)))
    third = bench.sent()[-1].request
    assert fields(third.header("authorization"))["nonce"] == "n2"
    assert fields(third.header("proxy-authorization"))["nonce"] == "n1"


def test_without_credentials_a_challenge_is_an_answer_like_any_other() -> None:
    bench = Bench()
    call_id, invite = bench.invite(INVITATION._replace(credentials=None))
    bench.receive(reply(invite, 407, headers=(challenge(407),)))
    assert bench.events() == [Failed(call_id, 407, None, "Phrase", "response", False)]


@pytest.mark.parametrize(
    "header", ["X: y", 'WWW-Authenticate: Digest realm="r", nonce="n", algorithm=X']
)
def test_a_challenge_that_cannot_be_answered(header: str) -> None:
    bench = Bench()
    call_id, invite = bench.invite(INVITATION)
    bench.receive(reply(invite, 401, headers=(header,)))
    assert bench.names() == ["ACK"]
    assert bench.events() == [Failed(call_id, 401, None, "Phrase", "auth", False)]


def test_bye_answers_ahead_and_again_when_asked() -> None:
    bench, call_id, _, second = challenged(401, qop='"auth"')
    bench.receive(reply(second, 200, ANSWER))
    bench.sent()
    bench.events()
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    assert fields(bye.header("authorization"))["nc"] == "00000002"
    bench.receive(reply(bye, 401, headers=(challenge(nonce='"n2"'),)))
    again = bench.one("BYE").request
    assert again.cseq == bye.cseq + 1
    assert fields(again.header("authorization"))["nonce"] == "n2"
    assert bench.events() == []
    bench.receive(reply(again, 200))
    assert bench.events() == [Ended(call_id, "us", 16)]


def test_a_bye_that_is_refused_for_good_ends_the_call() -> None:
    bench, call_id, _, second = challenged()
    bench.receive(reply(second, 200, ANSWER))
    bench.sent()
    bench.events()
    bench.agent.hang_up(call_id, bench.now)
    for _ in range(2):
        bye = bench.one("BYE").request
        bench.receive(reply(bye, 401, headers=(challenge(nonce='"n2"'),)))
    assert bench.names() == []
    assert bench.events() == [Ended(call_id, "us", 16)]
