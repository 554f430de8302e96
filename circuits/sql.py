"""SQL over a few tables, and nothing else: one SELECT, no files, no writes, a bounded answer.

1. Text in single quotes and comments are set aside; what is left is searched.
2. The statement must begin with SELECT, WITH, VALUES, FROM or SHOW, and hold no word that changes
   or opens something.
3. Polars runs it over the given tables, row limit included.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import polars as pl

from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_LIMIT = 10_000  # rows; more than anyone reads, less than fills a terminal or the memory
_ASIDE = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
_STARTS = re.compile(r"\s*\(*\s*(?:select|with|values|from|show)\b", re.IGNORECASE)
_WRITES = re.compile(
    r"\b(?:create|insert|update|delete|drop|truncate|alter|copy|attach|install|load|merge|replace\s+into|into)\b",
    re.IGNORECASE,
)
_OPENS = re.compile(r"\b(?:read|scan)_\w*", re.IGNORECASE)


def query_tables(
    tables: Mapping[str, pl.DataFrame], text: str, *, limit: int = DEFAULT_LIMIT
) -> pl.DataFrame:
    """Run one SELECT over the given tables.

    Args:
        tables: by the name that the query uses.
        text: the query.
        limit: give at most this many rows, >= 1.

    Returns:
        The first `limit` rows of the answer.

    Raises:
        GraphError: not one SELECT, a write, a file, a syntax error, an unknown table or column.
        ValueError: limit is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be >= 1 row, got {limit}")
    _refuse_unsafe(text)
    context = pl.SQLContext(dict(tables), eager=False)
    try:
        frame = context.execute(text).head(limit).collect(engine="streaming")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as err:
        first = next(iter(str(err).splitlines()), type(err).__name__)
        raise GraphError(f"{first.strip()}; the tables are {_described(tables)}") from err
    return frame


def _refuse_unsafe(text: str) -> None:
    bare = _ASIDE.sub(lambda match: " " * len(match.group()), text)
    if not _STARTS.match(bare):
        raise GraphError(f"a query begins with SELECT or WITH, got {_shown(text)}")
    for pattern, fault in ((_WRITES, "changes something"), (_OPENS, "reads a file")):
        found = pattern.search(bare)
        if found:
            raise GraphError(
                f"{found.group()!r} at column {found.start() + 1} {fault}; a query only reads the "
                "tables of its run"
            )


def _shown(text: str) -> str:
    start = text.strip()[:40]
    return repr(start) if start else "nothing"


def _described(tables: Mapping[str, pl.DataFrame]) -> str:
    return "; ".join(f"{name} ({', '.join(table.columns)})" for name, table in tables.items())
