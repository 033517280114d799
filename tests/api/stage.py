"""The stage of the tests of the API, by its short name; `tests.support.api_stage` has it."""

from tests.support.api_stage import Stage

__all__ = ["Stage"]
