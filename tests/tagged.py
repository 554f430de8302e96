"""A small automaton of tags, and a run whose text it reads, both made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import circuits
from circuits.automaton import EXIT, EdgeToken, Example, FeatureAutomaton, State, Transition
from circuits.discover import write_automata
from sae_core.run_writer import write_run

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = [b"<", b"a", b">", b"x", b"\n", b"<a"]


def tags() -> FeatureAutomaton:
    """Give `<` to 2 and `a` to 5; from 2: a 0.75 to 5, < 0.25 to 2; from 5: > 0.5 out, < 0.5 to 2.

    Nothing leads to state 9 but its example; from there, > leads out.
    """
    states = (
        State(2, "opened", (0, 3)),
        State(5, "name", (1,)),
        State(9, "start", (4,), (Example(("x", "\\n"), (0.0, 1.0), 1),)),
    )
    steps = (
        Transition(2, 5, 0.75, (EdgeToken(1, "a", 1.0),), "a", 75),
        Transition(2, 2, 0.25, (EdgeToken(0, "<", 1.0),), "<", 25),
        Transition(5, EXIT, 0.5, (EdgeToken(2, ">", 0.8), EdgeToken(3, "x", 0.2)), ">  x", 40),
        Transition(5, 2, 0.5, (EdgeToken(0, "<", 1.0),), "<", 40),
        Transition(9, EXIT, 1.0, (EdgeToken(2, ">", 1.0),), ">", 10),
    )
    return FeatureAutomaton("system-tags", "Tags", "system", {}, states, steps)


# Document 0, window 0: < a > x; window 1: < a; document 1: \n > a <
# What fires on each; feature 6 is of no state.
ROWS = [[0], [1], [], [6], [3], [1], [4], [], [1], [0, 3]]


def tagged_run(folder: Path) -> circuits.Run:
    """Write a run of two documents with that one automaton, and open it."""
    path = write_run(
        folder / "run",
        documents={"doc_id": [0, 1], "source": ["one.html", "two.html"]},
        tokens={
            "doc_id": [0] * 6 + [1] * 4,
            "window_id": [0] * 4 + [1] * 2 + [2] * 4,
            "token_id": [0, 1, 2, 3, 0, 1, 4, 2, 1, 0],
        },
        indptr=np.cumsum([0, *map(len, ROWS)]),
        features=[feature for row in ROWS for feature in row],
        acts=[1.0] * 9,
        promotions=[0.0] * 9,
        vocabulary=VOCABULARY,
        d_sae=7,
    )
    write_automata(path, [tags()])
    return circuits.open_run(path)
