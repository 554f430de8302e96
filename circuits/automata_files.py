"""The files of a run's `automata/`, read back: hand-edited and damaged ones are named.

Each `NAME.json` is checked against its rules, its own name and the run's features; a message gives
the file, the path of the value within it, what was expected, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from circuits.automaton import FeatureAutomaton
from circuits.automaton_json import SUBJECT, is_name
from sae_core.errors import GraphError, StoreError
from sae_core.files import read_parquet, read_small_text

if TYPE_CHECKING:
    from pathlib import Path


def read_index(run: Path) -> pl.DataFrame | None:
    """Read `automata/index.parquet`; None where the run has none.

    Raises:
        StoreError: it is damaged, lacks a column, or holds a name that is none.
    """
    file = run / "automata" / "index.parquet"
    if not file.is_file():
        return None
    index = read_parquet(file)
    for name, kind in (("name", "text"), ("rank", "integers")):
        dtype = index.schema.get(name)
        fits = dtype == pl.String if kind == "text" else dtype is not None and dtype.is_integer()
        if not fits:
            raise StoreError(f"{file} has no column {name!r} of {kind}; {_again(run)}")
    for at, name in enumerate(index["name"]):
        if not is_name(name):
            raise StoreError(
                f"{file}: name of row {at} is {name!r}; expected a slug of a-z, 0-9 and -; "
                f"{_again(run)}"
            )
    return index


def read_automata(run: Path, d_sae: int) -> tuple[FeatureAutomaton, ...]:
    """Read a run's automata, best first; without an index, by name.

    Args:
        run: the run directory.
        d_sae: its number of features.

    Raises:
        StoreError: a file is missing, cannot be read, or does not fit; it is named with the place.
    """
    index = read_index(run)
    if index is None:
        names = sorted(file.stem for file in (run / "automata").glob("*.json"))
    else:
        names = index.sort("rank")["name"].to_list()
    return tuple(_read(run, name, d_sae) for name in names)


def why_none(run: Path, *, called: str | None = None) -> str:
    """Say why a run without automata has none, and what to do.

    Args:
        run: the run directory.
        called: what it is called in the command; None gives its path. A page, which may be sent
            to others and is the same wherever it was made, calls it RUN.
    """
    command = f"`circuits automata {called or run}`"
    if (run / "automata" / "index.parquet").is_file():
        return f"no automaton was found; {command} says what is nearest to one"
    return f"automata were not looked for yet; run {command}"


def _read(run: Path, name: str, d_sae: int) -> FeatureAutomaton:
    file = run / "automata" / f"{name}.json"
    try:
        automaton = FeatureAutomaton.from_json(read_small_text(file))
        _refuse_misfit(automaton, name, d_sae)
    except FileNotFoundError as err:
        raise StoreError(f"{file} is missing; {_again(run)}") from err
    except OSError as err:
        raise StoreError(f"{file} cannot be read: {err.strerror}; {_again(run)}") from err
    except (GraphError, ValueError) as err:
        wrong = str(err).removeprefix(SUBJECT)
        raise StoreError(f"{file}: {wrong}; mend it, or {_again(run)}") from err
    return automaton


def _refuse_misfit(automaton: FeatureAutomaton, name: str, d_sae: int) -> None:
    if automaton.name != name:
        raise ValueError(f"name is {automaton.name!r}; expected {name!r}, as the file is called")
    for at, state in enumerate(automaton.states):
        for place, feature in enumerate(state.features):
            if feature >= d_sae:
                raise ValueError(
                    f"states[{at}].features[{place}] is {feature}; expected a feature of the run, "
                    f"0..{d_sae - 1}"
                )


def _again(run: Path) -> str:
    return f"run `circuits automata {run}` again"
