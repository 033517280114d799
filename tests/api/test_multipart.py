"""The streaming parser of uploads: the same bytes come out however the body is cut up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.api.multipart import LONGEST_NAME, OTHER_BYTES, FilePart, harmless_name
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


FIELDS = st.dictionaries(
    st.sampled_from(["dryRun", "column", "other", "file2"]),
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), max_size=20),
)


@given(fields=FIELDS, before=st.integers(0, 4), content=CONTENT, cuts=CUTS)
def test_wanted_fields_are_read_before_and_after_the_file(
    fields: dict[str, str], before: int, content: bytes, cuts: list[int]
) -> None:
    parts = [
        f'--frontier\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    file = b'--frontier\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + content + b"\r\n"
    body = b"".join([*parts[:before], file, *parts[before:]]) + b"--frontier--\r\n"
    part = FilePart("multipart/form-data; boundary=frontier", ("dryRun", "column"))

    async def read() -> bytes:
        return b"".join([chunk async for chunk in part.chunks(pieces(body, cuts))])

    assert asyncio.run(read()) == content
    assert part.fields == {name: fields[name] for name in ("dryRun", "column") if name in fields}


def test_a_field_that_is_sent_twice_is_refused() -> None:
    field = b'--frontier\r\nContent-Disposition: form-data; name="column"\r\n\r\nA\r\n'
    part = FilePart("multipart/form-data; boundary=frontier", ("column",))

    async def read() -> None:
        async for _ in part.chunks(pieces(field * 2 + b"--frontier--\r\n", [])):
            pass

    with pytest.raises(InvalidRequestError, match="more than one part named column"):
        asyncio.run(read())


@pytest.mark.parametrize("size", [10, OTHER_BYTES + 1])
def test_a_file_in_another_part_is_named(size: int) -> None:
    body = (
        b'--frontier\r\nContent-Disposition: form-data; name="audio"; filename="a.mp3"\r\n\r\n'
        + b"x" * size
        + b"\r\n--frontier--\r\n"
    )
    with pytest.raises(InvalidRequestError) as refused:
        asyncio.run(take(body, []))
    assert str(refused.value) == (
        "the part file is missing from the multipart body; its file is the part 'audio'"
    )


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
