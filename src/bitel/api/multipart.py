"""Streaming parser of a multipart/form-data body (RFC 7578): the file and small fields."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bitel.errors import InvalidRequestError

FIELD: Final = "file"
MOST_PARTS: Final = 16
LONGEST_NAME: Final = 255
OTHER_BYTES: Final = 64 * 1024
"""Bytes that a body may have besides the file: headers, boundaries, other parts."""


class FilePart:
    """Extracts the part named `file` from a body, and the fields that are wanted.

    `name` is the part's `filename`, sanitised, once its headers have been read. `fields` has the
    values of the wanted fields once the body has been read.
    """

    def __init__(
        self, content_type: str, wanted: Collection[str] = (), unnamed: str = "recording"
    ) -> None:
        """Raises InvalidRequestError if `content_type` is not multipart/form-data.

        `unnamed` is the name of a file whose part has none.
        """
        media_type, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if media_type != b"multipart/form-data" or not boundary:
            raise InvalidRequestError(
                f"the body must be multipart/form-data with a part named {FIELD}"
            )
        self.name = ""
        self.fields: dict[str, str] = {}
        self._unnamed = unnamed
        self._wanted = frozenset(wanted)
        self._field: str | None = None
        self._value = bytearray()
        self._delimiter = b"--" + boundary
        self._preamble: bytes | None = b""
        """The bytes before the first delimiter; None after it was found."""
        self._found = False
        self._misnamed = ""
        """The name of another part that is a file."""
        self._inside = False
        self._ended = False
        self._parts = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._taken: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError:
            raise InvalidRequestError("the boundary of the multipart body is too long") from None

    async def chunks(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The bytes of the part, in chunks.

        Raises InvalidRequestError if the body is malformed, ends before its last boundary, has too
        many bytes besides the file, or does not have exactly one part of that name.
        """
        others = 0
        async for piece in body:
            content = b"".join(self._feed(piece))
            others += len(piece) - len(content)
            if others > OTHER_BYTES:
                if self._misnamed and not self._found:
                    raise self._missing()
                raise InvalidRequestError(f"the body carries too much besides the part {FIELD}")
            if content:
                yield content
        if not self._ended:
            raise InvalidRequestError("the multipart body ends before its last boundary")
        if not self._found:
            raise self._missing()

    def _missing(self) -> InvalidRequestError:
        but = f"; its file is the part {self._misnamed!r}" if self._misnamed else ""
        return InvalidRequestError(f"the part {FIELD} is missing from the multipart body{but}")

    def _feed(self, piece: bytes) -> list[bytes]:
        self._taken = []
        if self._preamble is not None:
            piece = self._skip_preamble(self._preamble, piece)
        if piece:
            try:
                self._parser.write(piece)
            except FormParserError as fault:
                raise InvalidRequestError(f"the multipart body is malformed: {fault}") from None
        return self._taken

    def _skip_preamble(self, before: bytes, piece: bytes) -> bytes:
        """The part of `piece`, which follows `before`, after the preamble (RFC 2046 §5.1.1).

        The parser accepts or rejects a preamble depending on how it is split into pieces.
        """
        content, line = before + piece, b"\n" + self._delimiter
        begin = 0
        if not content.startswith(self._delimiter):
            begin = content.find(line, max(0, len(before) - len(line)))
        if begin < 0:
            self._preamble = content
            return b""
        self._preamble = None
        return content[begin:].removeprefix(b"\n")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidRequestError(f"the multipart body has more than {MOST_PARTS} parts")
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode("utf-8", "replace")
        self._inside = field == FIELD
        if not self._inside:
            self._field = field if field in self._wanted else None
            if options.get(b"filename"):
                self._misnamed = field[:LONGEST_NAME]
            if field in self.fields:
                raise InvalidRequestError(
                    f"the multipart body has more than one part named {field}"
                )
            return
        if self._found:
            raise InvalidRequestError(f"the multipart body has more than one part named {FIELD}")
        self._found = True
        self.name = harmless_name(
            options.get(b"filename", b"").decode("utf-8", "replace"), self._unnamed
        )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._taken.append(data[start:end])
        elif self._field is not None:
            # Bounded by the limit of bytes besides the file.
            self._value += data[start:end]

    def _on_part_end(self) -> None:
        self._inside = False
        if self._field is not None:
            self.fields[self._field] = self._value.decode("utf-8", "replace").strip()
            self._field = None
            self._value.clear()

    def _on_end(self) -> None:
        self._ended = True


def harmless_name(filename: str, unnamed: str = "recording") -> str:
    """The last segment of a file's path without control characters, 1 to 255 characters long;
    `unnamed` if that is empty."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    printable = "".join(char for char in last if char.isprintable()).strip()
    return printable[:LONGEST_NAME].strip() or unnamed
