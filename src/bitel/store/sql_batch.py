"""Statements for the rows of many calls at once, as cheap as the drivers allow.

SQLite's driver gives the interpreter's lock away at each row that it takes or gives, and then has
to wait for it until the event loop lets go, up to milliseconds a row. So the rows of a batch go in
as parameters of one statement, which `given` makes a table of, and those of a `Query` come out as
one JSON text. Numbers survive that exactly. Very many rows go in as one JSON text too, and so they
always do in PostgreSQL. Statements are put into words once for each kind of database: SQLAlchemy's
own cache finds the words again, at several times the cost.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Connection,
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

from bitel.store import driver

Parameters = Mapping[str, Any]
Processor = Callable[[Any], Any]

_SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Rows that there are statements for; what is left of one is filled with NULL, which is no row."""

_AS_JSON: Final = 0
"""The size of a statement that takes any number of rows, as one JSON text."""

_HERE: Final = "rows_of"
"""What stands in a statement of SQLite's where its rows go."""

_dumps: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class _RowsType(TypeDecorator[Sequence[Sequence[Any]]]):
    """Rows as one JSON text, each value as its column wants it."""

    impl = Text
    cache_ok = False

    def __init__(self, types: Sequence[TypeEngine[Any]]) -> None:
        super().__init__()
        self._width = len(types)
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

    def lay_out(
        self, rows: Sequence[Sequence[Any]] | str, dialect: Dialect
    ) -> tuple[int, list[Any]]:
        """The size of the statement for these rows, and its parameters, one after the other."""
        if isinstance(rows, str) or len(rows) > _SIZES[-1]:
            return _AS_JSON, [self.process_bind_param(rows, dialect)]
        values = list(chain.from_iterable(rows))
        width = self._width
        for at, kind in self._converted:
            convert = kind.process_bind_param
            values[at::width] = [convert(value, dialect) for value in values[at::width]]
        size = _SIZES[bisect_left(_SIZES, len(rows))]
        values += [None] * ((size - len(rows)) * width)
        return size, values

    def table(self, size: int) -> str:
        """The rows as SQLite reads them, whose columns it calls column1, column2, …."""
        if size == _AS_JSON:
            columns = ", ".join(
                f"json_extract(value, '$[{at}]') AS column{at + 1}" for at in range(self._width)
            )
            return f"(SELECT {columns} FROM json_each(?))"  # noqa: S608
        row = f"({', '.join('?' * self._width)})"
        rows = ", ".join([row] * size)
        return f"(SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL)"  # noqa: S608


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
    given = compiler.process(element.clauses, **options)
    return f"{_HERE}({given})" if options.get("rows_here") else f"json_each({given})"


@compiles(_Elements, "postgresql")
def _elements_postgresql(element: _Elements, compiler: SQLCompiler, **options: Any) -> str:
    given = compiler.process(element.clauses, **options)
    return f"(SELECT value FROM jsonb_array_elements(CAST({given} AS jsonb)))"  # noqa: S608


@compiles(_At)
def _at(element: _At, compiler: SQLCompiler, **options: Any) -> str:
    array, index = (compiler.process(each, **options) for each in element.clauses)
    if options.get("rows_here"):
        return f"{array.removesuffix('.value')}.column{int(index) + 1}"
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
class _Bind:
    """A parameter of a statement, in its place."""

    name: str
    process: Processor | None
    rows: _RowsType | None
    """What it is where it is rows of SQLite's, each value a parameter."""


@dataclass(frozen=True, slots=True)
class _Words:
    """A statement as one kind of database takes it."""

    pieces: Sequence[str]
    """Its text, apart where rows of SQLite's go."""
    binds: Sequence[_Bind]
    values: Mapping[str, Any]  # those that the statement itself brings
    dialect: Dialect
    positional: bool
    _texts: dict[tuple[int, ...], str] = field(default_factory=dict)

    @classmethod
    def of(cls, core: Select[Any] | UpdateBase, dialect: Dialect) -> _Words:
        in_sqlite = dialect.name == "sqlite"
        compiled = core.compile(dialect=dialect, compile_kwargs={"rows_here": in_sqlite})
        assert isinstance(compiled, SQLCompiler)
        assert not compiled.post_compile_params, "its text would change with its parameters"
        positional = compiled.positiontup is not None
        names = list(compiled.positiontup or compiled.bind_names.values())
        binds = [_bind(name, compiled.binds[name].type, dialect) for name in names]
        values = {key: bind.value for key, bind in compiled.binds.items() if not bind.required}
        pieces = compiled.string.split(f"{_HERE}(?)")
        return cls(pieces, binds, values, dialect, positional)

    def around(self, before: str, after: str) -> _Words:
        """The statement as a part of another."""
        pieces = list(self.pieces)
        pieces[0] = before + pieces[0]
        pieces[-1] += after
        return _Words(pieces, self.binds, self.values, self.dialect, self.positional)

    def ready(self, wanted: Parameters) -> tuple[str, driver.Parameters]:
        """The text, and the values in the form that the driver takes them."""
        values = {**self.values, **wanted}
        if not self.positional:
            (text,) = self.pieces
            return text, {
                bind.name: values[bind.name]
                if bind.process is None
                else bind.process(values[bind.name])
                for bind in self.binds
            }
        parameters: list[Any] = []
        sizes: list[int] = []
        for bind in self.binds:
            value = values[bind.name]
            if bind.rows is not None:
                size, flat = bind.rows.lay_out(value, self.dialect)
                sizes.append(size)
                parameters += flat
            else:
                parameters.append(value if bind.process is None else bind.process(value))
        which = tuple(sizes)
        return self._texts.get(which) or self._write(which), parameters

    def _write(self, sizes: tuple[int, ...]) -> str:
        tables = [bind.rows for bind in self.binds if bind.rows is not None]
        text = self.pieces[0]
        for table, size, piece in zip(tables, sizes, self.pieces[1:], strict=True):
            text += table.table(size) + piece
        self._texts[sizes] = text
        return text


def _bind(name: str, kind: TypeEngine[Any], dialect: Dialect) -> _Bind:
    rows = kind if isinstance(kind, _RowsType) and dialect.name == "sqlite" else None
    return _Bind(name, kind.dialect_impl(dialect).bind_processor(dialect), rows)


class _Statement:
    """A statement, put into words once for each kind of database."""

    def __init__(self, core: Select[Any] | UpdateBase) -> None:
        self.core: Final = core
        self._words: dict[str, _Words] = {}

    def ready(self, conn: Connection, wanted: Parameters) -> tuple[str, driver.Parameters]:
        """The text and the parameters that the driver gets."""
        return self._words_for(conn.dialect).ready(wanted)

    def _words_for(self, dialect: Dialect) -> _Words:
        words = self._words.get(dialect.name)
        if words is None:
            words = self._words[dialect.name] = self._put_into_words(dialect)
        return words

    def _put_into_words(self, dialect: Dialect) -> _Words:
        return _Words.of(self.core, dialect)


class Change(_Statement):
    """An INSERT, UPDATE or DELETE."""

    def __init__(self, core: UpdateBase) -> None:
        super().__init__(core)

    def run(self, conn: Connection, wanted: Parameters) -> driver.Cursor:
        """Carry it out."""
        return driver.execute(conn, *self.ready(conn, wanted))


class Query(_Statement):
    """A SELECT. Its rows are named tuples."""

    def __init__(self, core: Select[Any]) -> None:
        super().__init__(core)
        self._columns: Final = [(each.name, each.type) for each in core.selected_columns]
        names = [name for name, _ in self._columns]
        # The names come from the query, which mypy can't read.
        row: Any = namedtuple("Row", names)  # type: ignore[misc]
        self._row: Final[Callable[[Sequence[Any]], Any]] = row._make
        self._processors: dict[str, Sequence[tuple[int, Processor]]] = {}

    def rows(self, conn: Connection, wanted: Parameters) -> list[Any]:
        """All that it finds, in its order."""
        words = self._words_for(conn.dialect)
        cursor = driver.execute(conn, *words.ready(wanted))
        found: list[Any] = (
            json.loads(cursor.fetchone()[0]) if words.positional else cursor.fetchall()
        )
        processors = self._processors[conn.dialect.name]
        if processors:
            found = [list(row) for row in found]
            for at, process in processors:
                for row in found:
                    row[at] = process(row[at])
        return [self._row(row) for row in found]

    def _put_into_words(self, dialect: Dialect) -> _Words:
        words = super()._put_into_words(dialect)
        in_json = words.positional
        processors: list[tuple[int, Processor]] = []
        for at, (_, kind) in enumerate(self._columns):
            process = _from_database(kind, dialect, in_json)
            if process is not None:
                processors.append((at, process))
        self._processors[dialect.name] = processors
        if not in_json:
            return words
        values = ", ".join(_in_json(name, kind) for name, kind in self._columns)
        return words.around(f"SELECT json_group_array(json_array({values})) FROM (", ")")  # noqa: S608


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
