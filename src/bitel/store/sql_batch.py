"""SQL statements of the hot path: compiled once, run by the driver, many rows as one parameter.

A `Statement` is SQLAlchemy Core, compiled once per database. `values_parameter` makes a table of
one parameter, so that a batch of rows is one statement: the rows go over as one JSON array, which
`json_each` of SQLite and `jsonb_array_elements` of PostgreSQL take apart. SQLAlchemy's own way from
a statement to its rows costs more than most of these statements do.
"""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

from sqlalchemy import (
    CTE,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Select,
    Subquery,
    Text,
    bindparam,
    event,
    func,
    literal_column,
    select,
)
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


class Statement:
    """A SELECT, INSERT, UPDATE or DELETE, compiled at its first use for each kind of database."""

    def __init__(self, core: Select[Any] | UpdateBase) -> None:
        self.core: Final = core
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

    def prepare(self, dialect: Dialect, parameters: Parameters) -> tuple[str, DriverParameters]:
        """The text and the parameters that the driver gets."""
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _compile(self.core, dialect)
        return compiled.text, compiled.bind(parameters)


def values_parameter(name: str, **types: TypeEngine[Any]) -> Subquery:
    """A table whose rows are the parameter `name`: a sequence of rows, with these columns.

    The parameter may also be the JSON text itself, with the values as the columns store them.
    """
    rows = bindparam(name, type_=_RowsType(list(types.values())))
    element = _Elements(rows).table_valued("value", name=f"{name}_json").c.value
    columns = []
    for index, (key, kind) in enumerate(types.items()):
        value = _At(element, literal_column(str(index)))
        value.type = kind
        columns.append(value.label(key))
    return select(*columns).subquery(name)


def loose_index_scan(column: Column[Any], *conditions: ColumnElement[bool]) -> CTE:
    """The distinct values of `column` above the parameter `after`, ascending, as a column `value`.

    Each costs one search of an index whose columns are those that the conditions fix, then
    `column`; neither database plans that by itself. A LIMIT on the result stops the scan early. The
    last value is NULL, for the caller to leave out.
    """
    first = select(func.min(column).label("value")).where(*conditions, column > bindparam("after"))
    found = first.cte("found", recursive=True)
    following = select(func.min(column)).where(*conditions, column > found.c.value)
    return found.union_all(select(following.scalar_subquery()).where(found.c.value.is_not(None)))


def in_chunks(ids: Collection[str]) -> Iterator[dict[str, list[str]]]:
    """The values in their order, as parameters `ids` of up to `LONGEST_LIST` each."""
    rest = iter(ids)
    while chunk := list(islice(rest, LONGEST_LIST)):
        yield {"ids": chunk}


def in_equal_chunks(ids: Collection[str], size: int) -> Iterator[dict[str, list[str]]]:
    """As `in_chunks`, with exactly `size` values each: missing ones are empty strings.

    So the statement has one text, of which the driver keeps the compiled form.
    """
    rest = iter(ids)
    while chunk := list(islice(rest, size)):
        yield {"ids": chunk + [""] * (size - len(chunk))}


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


def begin_with(engine: Engine, text: str) -> None:
    """Have every transaction of the engine begin with this statement."""

    @event.listens_for(engine, "begin")
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
    constants: Parameters
    """Values of the parameters that the statement itself brings."""
    is_positional: bool
    results: Sequence[tuple[int, Processor]]
    """By column, what converts the driver's value."""
    row: Callable[[Sequence[Any]], Any]

    def bind(self, parameters: Parameters) -> DriverParameters:
        values = {**self.constants, **parameters}
        if self.is_positional:
            return [
                values[name] if process is None else process(values[name])
                for name, process in self.binds
            ]
        return {
            name: values[name] if process is None else process(values[name])
            for name, process in self.binds
        }


def _compile(core: Select[Any] | UpdateBase, dialect: Dialect) -> _CompiledSql:
    compiled = core.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    assert not compiled.post_compile_params, "its text would change with its parameters"
    names = list(compiled.positiontup or compiled.bind_names.values())
    columns = list(core.selected_columns) if isinstance(core, Select) else []
    results = [(at, _result_processor(each.type, dialect)) for at, each in enumerate(columns)]
    # The names come from the query, which mypy can't read.
    row: Any = namedtuple("Row", [each.name for each in columns])  # type: ignore[misc]
    return _CompiledSql(
        text=compiled.string,
        binds=[
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in names
        ],
        constants={key: bind.value for key, bind in compiled.binds.items() if not bind.required},
        is_positional=compiled.positiontup is not None,
        results=[(at, process) for at, process in results if process is not None],
        row=row._make,
    )


def _result_processor(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    if isinstance(kind, TypeDecorator):
        return partial(kind.process_result_value, dialect=dialect)
    return _as_bool if isinstance(kind, Boolean) and dialect.name == "sqlite" else None


def _as_bool(value: int | None) -> bool | None:
    return None if value is None else bool(value)


class _RowsType(TypeDecorator[Sequence[Sequence[Any]]]):
    """Rows as one JSON text, each value as its column stores it."""

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
            return value
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
    array = compiler.process(element.clauses, **options)
    return f"(SELECT value FROM jsonb_array_elements(CAST({array} AS jsonb)))"  # noqa: S608


@compiles(_At)
def _at(element: _At, compiler: SQLCompiler, **options: Any) -> str:
    array, index = (compiler.process(each, **options) for each in element.clauses)
    return f"json_extract({array}, '$[{index}]')"


@compiles(_At, "postgresql")
def _at_postgresql(element: _At, compiler: SQLCompiler, **options: Any) -> str:
    array, index = (compiler.process(each, **options) for each in element.clauses)
    kind = compiler.dialect.type_compiler_instance.process(element.type)
    return f"CAST({array} ->> {index} AS {kind})"
