"""The streaming parser of uploads: the same bytes come out however the body is cut up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.api.multipart import LONGEST_NAME, FilePart, harmless_name
from bitel.errors import InvalidRequestError


async def pieces(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = [0, *sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    for start, end in pairwise(edges):
        yield body[start:end]


async def take(body: bytes, cuts: list[int]) -> tuple[bytes, str]:
    part = FilePart("multipart/form-data; boundary=frontier")
    content = b"".join([chunk async for chunk in part.chunks(pieces(body, cuts))])
    return content, part.name


CUTS = st.lists(st.integers(0, 10_000), max_size=20)
CONTENT = st.binary(max_size=300) | st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--", b"\r\n--frontie", b"x"]), max_size=30
).map(b"".join)


@given(content=CONTENT, before=st.booleans(), after=st.booleans(), cuts=CUTS)
def test_the_file_comes_out_whole(
    content: bytes, before: bool, after: bool, cuts: list[int]
) -> None:
    other = b'--frontier\r\nContent-Disposition: form-data; name="x"\r\n\r\nmore\r\n'
    body = (
        (other if before else b"")
        + b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a b.wav"\r\n'
        + b"Content-Type: audio/wav\r\n\r\n"
        + content
        + b"\r\n"
        + (other if after else b"")
        + b"--frontier--\r\n"
    )
    assert asyncio.run(take(body, cuts)) == (content, "a b.wav")


@given(body=st.binary(max_size=500), cuts=CUTS)
def test_any_other_bytes_are_refused(body: bytes, cuts: list[int]) -> None:
    with pytest.raises(InvalidRequestError):
        asyncio.run(take(b"--frontier\r\n" + body, cuts))


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "multipart/mixed; boundary=b", "multipart/form-data; boundary="]
)
def test_another_type_is_refused(kind: str) -> None:
    with pytest.raises(InvalidRequestError, match="multipart/form-data"):
        FilePart(kind)


@given(st.text(max_size=600))
def test_any_name_becomes_harmless(filename: str) -> None:
    name = harmless_name(filename)
    assert 1 <= len(name) <= LONGEST_NAME
    assert name.isprintable()
    assert not {"/", "\\"} & set(name)


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("", "recording"),
        ("../../etc/passwd", "passwd"),
        ("C:\\music\\a.mp3", "a.mp3"),
        ("a\x00\r\n.mp3", "a.mp3"),
        ("/", "recording"),
        ("سلام.ogg", "سلام.ogg"),
    ],
)
def test_a_name_is_the_last_part_of_its_path(filename: str, name: str) -> None:
    assert harmless_name(filename) == name
