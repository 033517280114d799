"""Statements for the rows of many calls at once, as cheap as the drivers allow.

SQLite's driver gives the interpreter's lock away at each row that it takes or gives, and then has
to wait for it until the event loop lets go, up to milliseconds a row. So the rows of a batch go in
as one JSON text, which `given` makes a table of, and those of a `Query` come out as one. Numbers
survive that exactly. Statements are put into words once for each kind of database: SQLAlchemy's
own cache finds the words again, at several times the cost.
"""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Connection,
    CursorResult,
    Dialect,
    Double,
    Select,
    Subquery,
    Text,
    bindparam,
    literal_column,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

Parameters = Mapping[str, Any]
Processor = Callable[[Any], Any]

_dumps: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class _RowsType(TypeDecorator[Sequence[Sequence[Any]]]):
    """Rows as one JSON text, each value as its column wants it."""

    impl = Text
    cache_ok = False

    def __init__(self, types: Sequence[TypeEngine[Any]]) -> None:
        super().__init__()
        self._converted = [
            (at, each) for at, each in enumerate(types) if isinstance(each, TypeDecorator)
        ]

    def process_bind_param(
        self, value: Sequence[Sequence[Any]] | str | None, dialect: Dialect
    ) -> str:
        if isinstance(value, str):
            return value  # whoever knows its rows better than the encoder has written them
        rows = list(value or ())
        if self._converted:
            rows = [self._convert(list(row), dialect) for row in rows]
        return _dumps(rows)

    def _convert(self, row: list[Any], dialect: Dialect) -> list[Any]:
        for at, kind in self._converted:
            row[at] = kind.process_bind_param(row[at], dialect)
        return row


class _Elements(FunctionElement[Any]):
    """The elements of a JSON array, a row each, in a column `value`."""

    inherit_cache = False
    name = "elements"


class _At(FunctionElement[Any]):
    """An element of a JSON array, by its index, as a value of a type."""

    inherit_cache = False
    name = "at"


@compiles(_Elements)
def _elements(element: _Elements, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_Elements, "postgresql")
def _elements_postgresql(element: _Elements, compiler: SQLCompiler, **options: Any) -> str:
    given = compiler.process(element.clauses, **options)
    return f"(SELECT value FROM jsonb_array_elements(CAST({given} AS jsonb)))"  # noqa: S608


@compiles(_At)
def _at(element: _At, compiler: SQLCompiler, **options: Any) -> str:
    array, index = (compiler.process(each, **options) for each in element.clauses)
    return f"json_extract({array}, '$[{index}]')"


@compiles(_At, "postgresql")
def _at_postgresql(element: _At, compiler: SQLCompiler, **options: Any) -> str:
    array, index = (compiler.process(each, **options) for each in element.clauses)
    kind = compiler.dialect.type_compiler_instance.process(element.type)
    return f"CAST({array} ->> {index} AS {kind})"


def given(name: str, **types: TypeEngine[Any]) -> Subquery:
    """A table whose rows are the parameter `name`: a sequence of rows, with these columns."""
    rows = bindparam(name, type_=_RowsType(list(types.values())))
    element = _Elements(rows).table_valued("value", name=f"{name}_json").c.value
    columns = []
    for index, (key, kind) in enumerate(types.items()):
        value = _At(element, literal_column(str(index)))
        value.type = kind
        columns.append(value.label(key))
    return select(*columns).subquery(name)


@dataclass(frozen=True, slots=True)
class _Words:
    """A statement as one kind of database takes it."""

    text: str
    binds: Sequence[tuple[str, Processor | None]]
    values: Mapping[str, Any]  # those that the statement itself brings
    positional: bool

    @classmethod
    def of(cls, core: Select[Any] | UpdateBase, dialect: Dialect) -> _Words:
        compiled = core.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        assert not compiled.post_compile_params, "its text would change with its parameters"
        positional = compiled.positiontup is not None
        names = list(compiled.positiontup or compiled.bind_names.values())
        binds = [(name, _processor(compiled.binds[name].type, dialect)) for name in names]
        values = {key: bind.value for key, bind in compiled.binds.items() if not bind.required}
        return cls(compiled.string, binds, values, positional)

    def parameters(self, wanted: Parameters) -> tuple[Any, ...] | dict[str, Any]:
        """The values in the form that the driver takes them."""
        values = {**self.values, **wanted}
        if self.positional:
            return tuple(
                values[name] if process is None else process(values[name])
                for name, process in self.binds
            )
        return {
            name: values[name] if process is None else process(values[name])
            for name, process in self.binds
        }


def _processor(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    return kind.dialect_impl(dialect).bind_processor(dialect)


class Change:
    """An INSERT, UPDATE or DELETE, put into words once."""

    def __init__(self, core: UpdateBase) -> None:
        self.core: Final = core
        self._words: dict[str, _Words] = {}

    def run(self, conn: Connection, wanted: Parameters) -> CursorResult[Any]:
        """Carry it out."""
        words = self._words.get(conn.dialect.name)
        if words is None:
            words = self._words[conn.dialect.name] = _Words.of(self.core, conn.dialect)
        return conn.exec_driver_sql(words.text, words.parameters(wanted))


class Query:
    """A SELECT, put into words once. Its rows are named tuples."""

    def __init__(self, core: Select[Any]) -> None:
        self.core: Final = core
        self._columns: Final = [(each.name, each.type) for each in core.selected_columns]
        names = [name for name, _ in self._columns]
        # The names come from the query, which mypy can't read.
        row: Any = namedtuple("Row", names)  # type: ignore[misc]
        self._row: Final[Callable[[Sequence[Any]], Any]] = row._make
        self._words: dict[str, tuple[_Words, Sequence[tuple[int, Processor]]]] = {}

    def rows(self, conn: Connection, wanted: Parameters) -> list[Any]:
        """All that it finds, in its order."""
        known = self._words.get(conn.dialect.name)
        if known is None:
            known = self._words[conn.dialect.name] = self._put_into_words(conn.dialect)
        words, processors = known
        result = conn.exec_driver_sql(words.text, words.parameters(wanted))
        found: Sequence[Sequence[Any]]
        found = json.loads(result.scalar_one()) if words.positional else result.all()
        if not processors:
            return [self._row(row) for row in found]
        return [self._converted(list(row), processors) for row in found]

    def _converted(self, row: list[Any], processors: Sequence[tuple[int, Processor]]) -> Any:
        for at, process in processors:
            row[at] = process(row[at])
        return self._row(row)

    def _put_into_words(self, dialect: Dialect) -> tuple[_Words, Sequence[tuple[int, Processor]]]:
        words = _Words.of(self.core, dialect)
        processors: list[tuple[int, Processor]] = []
        for at, (_, kind) in enumerate(self._columns):
            process = _from_database(kind, dialect, in_json=words.positional)
            if process is not None:
                processors.append((at, process))
        if words.positional:
            values = ", ".join(_in_json(name, kind) for name, kind in self._columns)
            text = f"SELECT json_group_array(json_array({values})) FROM ({words.text})"  # noqa: S608
            words = _Words(text, words.binds, words.values, words.positional)
        return words, processors


def _in_json(name: str, kind: TypeEngine[Any]) -> str:
    # SQLite's JSON keeps 15 digits of a number, and Unix time has more.
    return (
        f"iif({name} IS NULL, NULL, format('%!.17g', {name}))" if isinstance(kind, Double) else name
    )


def _from_database(kind: TypeEngine[Any], dialect: Dialect, in_json: bool) -> Processor | None:
    """What makes a column's value of what the driver gives; None where that is it already."""
    if isinstance(kind, TypeDecorator):
        return partial(kind.process_result_value, dialect=dialect)
    if in_json and isinstance(kind, Double):
        return _float
    if in_json and isinstance(kind, Boolean):
        return _bool
    return None


def _bool(number: int | None) -> bool | None:
    return None if number is None else bool(number)


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)
