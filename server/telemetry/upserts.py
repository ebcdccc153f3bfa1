"""Inserting many rows in one statement that says what becomes of those that are there already.

Django's ``bulk_create`` skips or overwrites them; it tells neither which were new nor adds up.
PostgreSQL and SQLite (3.35 and newer) write all of this alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connection, connections, models

# SQLite takes 32,766 values in one statement.
_MOST_VALUES = 30_000


def insert(
    rows: Sequence[models.Model],
    *,
    conflict: Sequence[str],
    updates: Mapping[str, str] | None = None,
    returning: str = "",
) -> list[Any]:
    """Insert ``rows`` of one model; return the values of the column ``returning``.

    Rows that meet an existing one in the columns ``conflict`` are skipped, and not returned, or
    change it by ``updates``: an SQL expression per column, in which ``excluded`` is the new row
    and ``old`` the existing one. The rows themselves must not meet each other.
    """
    found: list[Any] = []
    for statement, values in _statements(rows, conflict, updates or {}, returning):
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            if returning:
                found += [row[0] for row in cursor.fetchall()]
    return found


def _statements(
    rows: Sequence[models.Model],
    conflict: Sequence[str],
    updates: Mapping[str, str],
    returning: str,
) -> Iterator[tuple[str, list[Any]]]:
    if not rows:
        return
    meta = rows[0]._meta  # noqa: SLF001 - public in all but name
    fields = [
        field
        for field in meta.concrete_fields
        if not (field.primary_key and isinstance(field, models.AutoField))
    ]
    names = ", ".join(_quote(str(field.column)) for field in fields)
    changes = ", ".join(f"{_quote(column)} = {value}" for column, value in updates.items())
    what = f"UPDATE SET {changes}" if changes else "NOTHING"
    tail = f" ON CONFLICT ({', '.join(map(_quote, conflict))}) DO {what}"
    if returning:
        tail += f" RETURNING {_quote(returning)}"
    for source, values in _sources(rows, fields):
        yield f"INSERT INTO {_quote(meta.db_table)} AS old ({names}) {source}{tail}", values


def _sources(
    rows: Sequence[models.Model], fields: Sequence[Any]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield what stands for the rows in a statement, with its values."""
    # The connection itself: looking it up through its proxy costs more than most values.
    database = connections[DEFAULT_DB_ALIAS]
    columns = [
        [field.get_db_prep_save(getattr(row, field.attname), database) for row in rows]
        for field in fields
    ]
    if database.vendor == "postgresql":
        # One array per column: thousands of placeholders cost more to read than to insert.
        arrays = ", ".join(f"%s::{field.db_type(database)}[]" for field in fields)
        yield f"SELECT * FROM UNNEST({arrays})", columns  # noqa: S608 - our own names
        return
    one = f"({', '.join(['%s'] * len(fields))})"
    step = _MOST_VALUES // len(fields)
    for start in range(0, len(rows), step):
        part = list(zip(*(column[start : start + step] for column in columns), strict=True))
        yield f"VALUES {', '.join([one] * len(part))}", [value for row in part for value in row]


def lesser(column: str) -> str:
    """Return the expression that keeps the lesser of a column's two values."""
    function = "LEAST" if connection.vendor == "postgresql" else "MIN"
    return f"{function}(old.{column}, excluded.{column})"


def greater(column: str) -> str:
    """Return the expression that keeps the greater of a column's two values."""
    function = "GREATEST" if connection.vendor == "postgresql" else "MAX"
    return f"{function}(old.{column}, excluded.{column})"


def total(column: str) -> str:
    """Return the expression that adds a column's two values."""
    return f"old.{column} + excluded.{column}"


def _quote(name: str) -> str:
    return connection.ops.quote_name(name)
