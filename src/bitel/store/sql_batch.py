"""Precompiled SQL statements for the driver, with many rows as one JSON parameter.

A `Statement` is SQLAlchemy Core, compiled once per database. `values_parameter` makes a table of
one parameter, so that a batch of rows is one statement: the rows go over as one JSON array, which
`json_each` of SQLite and `jsonb_array_elements` of PostgreSQL unpack. SQLAlchemy's own execution
costs more time than most of these statements take in the database.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import namedtuple
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

Parameters = Mapping[str, Any]
DriverParameters = Sequence[Any] | Mapping[str, Any]
Processor = Callable[[Any], Any]

LONGEST_LIST: Final = 1000
"""Values in one IN list."""

SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of rows that SQLite gets as a list of values, padded with NULL; more go as JSON. Rows of
many columns take half of the time so."""

_TABLE: Final = re.compile(
    r"\(SELECT ((?:json_extract\(value, '\$\[\d+\]'\) AS [^,() ]+(?:, )?)+) FROM json_each\(\?\)\)"
)
"""A table of values as `_rows` compiles it for SQLite."""
_COLUMN: Final = re.compile(r"AS ([^,() ]+)")
_SQLITE: Final = sqlite.dialect()

_dumps: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Cursor(Protocol):
    """The part of the drivers' cursors that is used."""

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""

    def fetchone(self) -> Any:
        """The next row, a tuple; None after the last."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""


Core = sa.Select[Any] | UpdateBase


class Statement:
    """A SELECT, INSERT, UPDATE or DELETE, compiled at its first use for each kind of database.

    `postgresql` takes the place of `core` on PostgreSQL.
    """

    def __init__(self, core: Core, postgresql: Core | None = None) -> None:
        self.core: Final = core
        self._cores: Final = {
            "sqlite": core,
            "postgresql": core if postgresql is None else postgresql,
        }
        self._compiled: dict[str, _CompiledSql] = {}

    def run(self, conn: Connection, parameters: Parameters) -> Cursor:
        """Execute it. Raises DBAPIError."""
        return execute(conn, *self.prepare(conn.dialect, parameters))

    def rows(self, conn: Connection, parameters: Parameters) -> list[Any]:
        """The rows of a SELECT as named tuples, in its order. Raises DBAPIError."""
        found = self.run(conn, parameters).fetchall()
        compiled = self._compiled[conn.dialect.name]
        for at, process in compiled.results:
            found = [(*row[:at], process(row[at]), *row[at + 1 :]) for row in found]
        return list(map(compiled.row, found))

    def prepare(self, dialect: sa.Dialect, parameters: Parameters) -> tuple[str, DriverParameters]:
        """The SQL text and the parameters for the driver."""
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = _compile(self._cores[dialect.name], dialect)
            self._compiled[dialect.name] = compiled
        return compiled.prepare(parameters)


def for_each_database(build: Callable[[str], sa.Select[Any]]) -> Statement:
    """The statement that `build` makes for `sqlite` and for `postgresql`."""
    return Statement(build("sqlite"), postgresql=build("postgresql"))


def equals(
    database: str, columns: Sequence[sa.Column[Any]], values: Sequence[sa.ColumnElement[Any]]
) -> sa.ColumnElement[bool]:
    """Whether the columns, the first ones of an index, equal the values.

    PostgreSQL may answer equality filters with another index, and read all of it. Comparisons of
    whole rows, together with ORDER BY, fit the intended index only.
    """
    if database == "postgresql":
        row, wanted = sa.tuple_(*columns), sa.tuple_(*values)
        return sa.and_(row >= wanted, row <= wanted)
    return sa.and_(*(column == value for column, value in zip(columns, values, strict=True)))


def values_parameter(
    name: str, *columns: sa.Column[Any], **types: TypeEngine[Any]
) -> sa.FromClause:
    """A table whose rows are the parameter `name`, a sequence of rows.

    Its columns have the names and types of `columns`, then those of `types`. The parameter may also
    be the JSON text itself, with the values as the columns store them.
    """
    types = {column.name: column.type for column in columns} | types
    array = sa.bindparam(name, type_=_RowsType(list(types.values())))
    typed = [sa.column(key, kind) for key, kind in types.items()]
    return _Rows(array, types).table_valued(*typed, name=name)


def is_among(column: sa.Column[Any], name: str) -> sa.ColumnElement[bool]:
    """Whether the column equals the only value of a row in the values parameter `name`."""
    return column.in_(sa.select(values_parameter(name, column).c[0]))


def update_each(
    name: str,
    key: sa.Column[Any],
    *columns: sa.Column[Any],
    where: Iterable[sa.ColumnElement[bool]] = (),
    **values: Any,
) -> Statement:
    """Updates rows of a table from the values parameter `name`: a key and these columns each.

    `values` are further columns, by name.
    """
    given = values_parameter(name, key, *columns)
    own = {column.name: given.c[column.name] for column in columns}
    return Statement(
        sa.update(key.table).where(key == given.c[key.name], *where).values(own | values)
    )


def insert_rows(rows: sa.FromClause, table: sa.Table, **values: sa.ColumnElement[Any]) -> Statement:
    """Inserts the rows of a values parameter into the table; `values` are further columns."""
    columns = {column.name: column for column in rows.c} | values
    return Statement(sa.insert(table).from_select(list(columns), sa.select(*columns.values())))


def matches(*columns: sa.Column[Any]) -> list[sa.ColumnElement[bool]]:
    """Conditions: each column equals the parameter of its name."""
    return [column == sa.bindparam(column.name, type_=column.type) for column in columns]


def next_rows(query: sa.Select[Any], key: sa.Column[Any]) -> sa.Select[Any]:
    """A page of the query: up to `most` rows whose key is above `after`, by key."""
    page = query.where(key > sa.bindparam("after")).order_by(key)
    return page.limit(sa.bindparam("most"))


def loose_index_scan(column: sa.Column[Any], *conditions: sa.ColumnElement[bool]) -> sa.CTE:
    """The distinct values of `column` above the parameter `after`, ascending, as a column `value`.

    Each costs one search of an index whose columns are those that the conditions fix, then
    `column`; neither database plans that by itself. A LIMIT on the result stops the scan early. The
    last value is NULL and has to be filtered out.
    """
    above = column > sa.bindparam("after")
    first = sa.select(sa.func.min(column).label("value")).where(*conditions, above)
    found = first.cte("found", recursive=True)
    following = sa.select(sa.func.min(column)).where(*conditions, column > found.c.value)
    return found.union_all(sa.select(following.scalar_subquery()).where(found.c.value.is_not(None)))


def in_chunks(ids: Collection[str], size: int = LONGEST_LIST) -> Iterator[dict[str, list[str]]]:
    """The values in their order, as parameters `ids` of up to `size` each."""
    rest = iter(ids)
    while chunk := list(islice(rest, size)):
        yield {"ids": chunk}


def in_equal_chunks(ids: Collection[str], size: int) -> Iterator[dict[str, list[str]]]:
    """As `in_chunks`, filled up with empty strings to exactly `size` values.

    So the statement has one text, of which the driver caches the compiled form.
    """
    for chunk in in_chunks(ids, size):
        yield {"ids": chunk["ids"] + [""] * (size - len(chunk["ids"]))}


def execute(conn: Connection, text: str, parameters: DriverParameters = ()) -> Cursor:
    """Run a statement, in the driver's own notation, in a transaction. Raises DBAPIError."""
    if not conn.in_transaction():
        conn.begin()
    return execute_outside(conn, text, parameters)


def execute_outside(conn: Connection, text: str, parameters: DriverParameters = ()) -> Cursor:
    """As `execute`, without beginning a transaction."""
    driver: Any = conn.connection.driver_connection
    try:
        cursor: Cursor = driver.execute(text, parameters)
    except conn.dialect.loaded_dbapi.Error as error:
        raise _wrap(conn, driver, text, error) from error
    return cursor


def begin_with(engine: sa.Engine, text: str) -> None:
    """Have every transaction of the engine begin with this statement."""

    @sa.event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        execute_outside(conn, text)


def _wrap(conn: Connection, driver: Any, text: str, error: Any) -> BaseException:
    """A driver's error as SQLAlchemy would raise it."""
    dialect = conn.dialect
    is_lost = dialect.is_disconnect(error, driver, None)
    if is_lost:
        conn.invalidate(error)
    wrapped: BaseException = DBAPIError.instance(
        text,
        None,  # the parameters are people's phone numbers
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=is_lost,
        dialect=dialect,
    )
    return wrapped


@dataclass(frozen=True, slots=True)
class _CompiledSql:
    """A statement in the notation of one driver."""

    text: str
    binds: Sequence[tuple[str, Processor | None]]
    tables: Mapping[str, _RowsType]
    """SQLite's values parameters, by name."""
    texts: dict[tuple[int, ...], str]
    """The text by the sizes of its tables, where they are lists of values."""
    constants: Parameters
    """Values of the parameters that the statement itself brings."""
    is_positional: bool
    results: Sequence[tuple[int, Processor]]
    """By column, what converts the driver's value."""
    row: Callable[[Sequence[Any]], Any]

    def prepare(self, parameters: Parameters) -> tuple[str, DriverParameters]:
        """The SQL text and the parameters for the driver."""
        values = {**self.constants, **parameters}
        if not self.is_positional:
            return self.text, {
                name: values[name] if process is None else process(values[name])
                for name, process in self.binds
            }
        bound: list[Any] = []
        sizes: list[int] = []
        for name, process in self.binds:
            value, table = values[name], self.tables.get(name)
            if table is not None and not isinstance(value, str) and 0 < len(value) <= SIZES[-1]:
                size = SIZES[bisect_left(SIZES, len(value))]
                bound += table.flatten(value, size)
                sizes.append(size)
            else:
                bound.append(value if process is None else process(value))
                sizes += [0] if table is not None else []
        return self.texts.get(tuple(sizes)) or self._write(tuple(sizes)), bound

    def _write(self, sizes: tuple[int, ...]) -> str:
        """The text in which tables of these sizes are lists of values; 0: a JSON array."""
        tables = iter(sizes)

        def replaced(found: re.Match[str]) -> str:
            names, size = _COLUMN.findall(found[1]), next(tables)
            if not size:
                return found[0]
            columns = ", ".join(f"column{at} AS {name}" for at, name in enumerate(names, 1))
            rows = ", ".join([f"({', '.join('?' * len(names))})"] * size)
            return f"(SELECT {columns} FROM (VALUES {rows}) WHERE column1 IS NOT NULL)"  # noqa: S608

        text = self.texts[sizes] = _TABLE.sub(replaced, self.text)
        return text


def _compile(core: sa.Select[Any] | UpdateBase, dialect: sa.Dialect) -> _CompiledSql:
    compiled = core.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    assert not compiled.post_compile_params, "its text would change with its parameters"
    names = list(compiled.positiontup or compiled.bind_names.values())
    columns = list(core.selected_columns) if isinstance(core, sa.Select) else []
    results = [(at, _result_processor(each.type, dialect)) for at, each in enumerate(columns)]
    # The names come from the query, which mypy can't read.
    row: Any = namedtuple("Row", [each.name for each in columns])  # type: ignore[misc]
    types = {name: compiled.binds[name].type for name in names}
    if dialect.name == "sqlite":
        count = sum(isinstance(compiled.binds[name].type, _RowsType) for name in names)
        assert len(_TABLE.findall(compiled.string)) == count, compiled.string
    return _CompiledSql(
        text=compiled.string,
        tables={
            name: kind
            for name, kind in types.items()
            if isinstance(kind, _RowsType) and dialect.name == "sqlite"
        },
        texts={},
        binds=[
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in names
        ],
        constants={key: bind.value for key, bind in compiled.binds.items() if not bind.required},
        is_positional=compiled.positiontup is not None,
        results=[(at, process) for at, process in results if process is not None],
        row=row._make,
    )


def _result_processor(kind: TypeEngine[Any], dialect: sa.Dialect) -> Processor | None:
    if isinstance(kind, TypeDecorator):
        return partial(kind.process_result_value, dialect=dialect)
    return _as_bool if isinstance(kind, sa.Boolean) and dialect.name == "sqlite" else None


def _as_bool(value: int | None) -> bool | None:
    return None if value is None else bool(value)


class _RowsType(TypeDecorator[Sequence[Sequence[Any]]]):
    """Rows as one JSON text, each value as its column stores it."""

    impl = sa.Text
    cache_ok = False

    def __init__(self, types: Sequence[TypeEngine[Any]]) -> None:
        super().__init__()
        self._width = len(types)
        self._converted = [
            (at, each) for at, each in enumerate(types) if isinstance(each, TypeDecorator)
        ]

    def process_bind_param(
        self, value: Sequence[Sequence[Any]] | str | None, dialect: sa.Dialect
    ) -> str:
        if isinstance(value, str):
            return value
        rows = list(value or ())
        if self._converted:
            rows = [self._convert(list(row), dialect) for row in rows]
        return _dumps(rows)

    def flatten(self, rows: Sequence[Sequence[Any]], size: int) -> list[Any]:
        """The values of `rows`, one row after the other, filled up with NULL to `size` rows."""
        values = list(chain.from_iterable(rows))
        for at, kind in self._converted:
            convert = kind.process_bind_param
            values[at :: self._width] = [
                convert(value, _SQLITE) for value in values[at :: self._width]
            ]
        return values + [None] * ((size - len(rows)) * self._width)

    def _convert(self, row: list[Any], dialect: sa.Dialect) -> list[Any]:
        for at, kind in self._converted:
            row[at] = kind.process_bind_param(row[at], dialect)
        return row


class _Rows(FunctionElement[Any]):
    """The rows of a JSON array of arrays, with these columns."""

    inherit_cache = False
    name = "rows"

    def __init__(self, array: sa.BindParameter[Any], types: Mapping[str, TypeEngine[Any]]) -> None:
        super().__init__(array)
        self.types: Final = types


@compiles(_Rows)
def _rows(rows: _Rows, compiler: SQLCompiler, **options: Any) -> str:
    columns = (
        f"json_extract(value, '$[{at}]') AS {compiler.preparer.quote(name)}"
        for at, name in enumerate(rows.types)
    )
    array = compiler.process(rows.clauses, **options)
    return f"(SELECT {', '.join(columns)} FROM json_each({array}))"  # noqa: S608


@compiles(_Rows, "postgresql")
def _rows_postgresql(rows: _Rows, compiler: SQLCompiler, **options: Any) -> str:
    type_name = compiler.dialect.type_compiler_instance.process
    columns = (
        f"CAST(value ->> {at} AS {type_name(kind)}) AS {compiler.preparer.quote(name)}"
        for at, (name, kind) in enumerate(rows.types.items())
    )
    array = f"CAST({compiler.process(rows.clauses, **options)} AS jsonb)"
    return f"(SELECT {', '.join(columns)} FROM jsonb_array_elements({array}))"  # noqa: S608
