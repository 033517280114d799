"""Identifiers in paths, where a path that ends in one stands beside others."""

from __future__ import annotations

from typing import Final

from starlette.convertors import Convertor, register_url_convertor

CALL_ID: Final = "{call_id:id}"
"""A call's id and nothing else: `/voice/{call_id}` must not swallow `/voice/single`."""


class _Id(Convertor[str]):
    regex = "[0-9a-f]{32}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _Id())
