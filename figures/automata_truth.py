"""What a parser's state is, told by an automaton's state: inside its spans, on text it was not made from.

1. Each state tells the label that is most frequent on it in the text to fit on.
2. Only tokens inside the automaton's spans are fitted on and scored; how much of the labels that
   matter (tags of HTML, say) the spans cover is a score of its own.
3. Beside it, on the same tokens: the token alone, k-means on neurons with as many clusters, and the
   most frequent label.
4. Packages are drawn with replacement for the intervals (`circuits.truth_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from circuits.html_states import HTML_TAG_GROUPS
from circuits.labels import LABELERS, PYTHON_GROUPS, UTF8_GROUPS
from circuits.states import OUTSIDE, has_next, state_sequence
from circuits.trace import states_by_tokens
from circuits.truth import UNLABELLED
from circuits.truth_readers import Task, most_frequent
from circuits.truth_rows import TruthTables, count_table, rows_of
from figures.automata_machines import AUTOMATON, CLUSTERS, Clusters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run
    from circuits.trace import By
    from circuits.truth_rows import TruthRow
    from figures.automata_texts import Labelled

TOKEN, MAJORITY = "token", "majority"
ZOOMS = (6, 5, 4)
WANTED = {
    "html": HTML_TAG_GROUPS,
    "python": tuple(name for name in PYTHON_GROUPS if name not in ("whitespace", "error")),
    "utf8": UTF8_GROUPS[1:-1],
}
"""The labels that matter of each kind: tags; what is no space; bytes of characters beyond ASCII."""


@dataclass(frozen=True)
class Coverage:
    """The share of the tokens with a label that matters that lie inside an automaton's spans."""

    share: float
    low: float | None
    high: float | None
    n_tokens: int


@dataclass(frozen=True)
class Inside:
    """One automaton, at one number of states, read in one way."""

    name: str
    n_stored: int
    """States as it is stored."""

    n_states: int
    """States after merging."""

    by: str
    """features or tokens."""

    rows: list[TruthRow]
    """The automaton, then the readers beside it; none where no token is inside."""

    coverage: Coverage

    confusion: NDArray[np.int64]
    """(n_labels, n_labels) tokens; rows are the parser's labels, columns the automaton's."""

    def row(self, what: str) -> TruthRow:
        """Give the row of one reader."""
        return next(row for row in self.rows if row.what == what)


def levels_of(automaton: FeatureAutomaton) -> list[FeatureAutomaton]:
    """Give an automaton at all its states, and at each of ZOOMS that has fewer."""
    n_stored = len(automaton.states)
    return [automaton, *(automaton.zoom(n) for n in ZOOMS if n < n_stored)]


def states_of(automaton: FeatureAutomaton, text: Labelled, run: Run, by: By) -> NDArray[np.int64]:
    """Give the state of each token: (n_tokens,) place among the automaton's states, or OUTSIDE.

    Args:
        automaton: of the run.
        text: of the run, or read as it was.
        run: gives the features' mean activations.
        by: "features", or "tokens" for the automaton alone.
    """
    if by == "features":
        groups = [state.features for state in automaton.states]
        return state_sequence(text.tokens, groups, run.mean_acts).astype(np.int64)
    strings = run.vocabulary.sort("token_id")["token_str"].to_list()
    texts = [strings[token] for token in text.tokens.token_ids.tolist()]
    place: dict[int | None, int] = {state.id: at for at, state in enumerate(automaton.states)}
    found = states_by_tokens(automaton, texts, has_next(text.tokens))
    return np.array([place.get(state, OUTSIDE) for state in found], dtype=np.int64)


def covers(
    automaton: FeatureAutomaton, texts: Sequence[Labelled], run: Run, kind: str
) -> tuple[float, float]:
    """Give the share of wanted tokens that the spans cover, and the share of the spans they are.

    Args:
        automaton: of the run.
        texts: labelled by `kind`.
        run: gives the features' mean activations.
        kind: see WANTED.
    """
    inside = np.concatenate([states_of(automaton, one, run, "features") >= 0 for one in texts])
    wanted = np.concatenate([_is_wanted(one, kind) for one in texts])
    both = int((inside & wanted).sum())
    return both / max(1, int(wanted.sum())), both / max(1, int(inside.sum()))


def score_inside(
    automaton: FeatureAutomaton,
    fit: Sequence[Labelled],
    scored: Labelled,
    run: Run,
    *,
    kind: str,
    by: By = "features",
    n_stored: int | None = None,
) -> Inside:
    """Score an automaton and the readers beside it.

    Args:
        automaton: stored or zoomed.
        fit: texts that teach what each state, token and cluster stands for.
        scored: the text to score on.
        run: the automaton's run.
        kind: one of `circuits.labels.LABELERS`.
        by: how the automaton reads; with "tokens", no clusters stand beside it.
        n_stored: states as it is stored; as many as it has when None.
    """
    texts, n_states = [*fit, scored], len(automaton.states)
    states = [states_of(automaton, text, run, by) for text in texts]
    inside = [
        (of >= 0) & (text.labels != UNLABELLED) for of, text in zip(states, texts, strict=True)
    ]
    coverage = _coverage(scored, states[-1] >= 0, kind)
    n_labels = len(LABELERS[kind].names)
    about = (automaton.name, n_stored or n_states, n_states, by)
    if not inside[-1].any() or not any(one.any() for one in inside[:-1]):
        return Inside(*about, [], coverage, np.zeros((n_labels, n_labels), np.int64))
    keys = {
        AUTOMATON: np.concatenate([of[keep] for of, keep in zip(states, inside, strict=True)]),
        TOKEN: np.concatenate(
            [text.tokens.token_ids[keep] for text, keep in zip(texts, inside, strict=True)]
        ).astype(np.int64),
    }
    if by == "features":
        keys[CLUSTERS] = _clusters(texts, inside, n_states)
    found = _tables(keys, texts, inside, n_labels)
    rows = rows_of(found, against=AUTOMATON)
    return Inside(*about, rows, coverage, found.tables[AUTOMATON].sum(axis=0))


def _is_wanted(text: Labelled, kind: str) -> NDArray[np.bool_]:
    names = LABELERS[kind].names
    return np.isin(text.labels, [names.index(name) for name in WANTED[kind]])


def _clusters(
    texts: Sequence[Labelled], inside: Sequence[NDArray[np.bool_]], n_states: int
) -> NDArray[np.int64]:
    neurons = [text.neurons(keep) for text, keep in zip(texts, inside, strict=True)]
    clusters = Clusters(np.concatenate(neurons[:-1]), n_states)
    return np.concatenate([clusters.of(one) for one in neurons])


def _tables(
    keys: dict[str, NDArray[np.int64]],
    texts: Sequence[Labelled],
    inside: Sequence[NDArray[np.bool_]],
    n_labels: int,
) -> TruthTables:
    """Count what each reader tells on the last text, taught by the others."""
    labels = np.concatenate([text.labels[keep] for text, keep in zip(texts, inside, strict=True)])
    units, are_packages = _units(texts[-1], inside[-1])
    n_fit, n = len(labels) - len(units), len(labels)
    folds = (np.arange(n) < n_fit).astype(np.int64)  # the last text is fold 0
    all_units = np.concatenate((np.zeros(n_fit, np.int64), units))
    task = Task(np.arange(n), labels, all_units, are_packages, folds, (0,), n_labels)
    told = {what: most_frequent((key,), task) for what, key in keys.items()}
    told[MAJORITY] = most_frequent((), task)
    n_units = int(units.max()) + 1
    sizes = {"n_units": n_units, "n_labels": n_labels}
    tables = {
        what: count_table(labels[n_fit:], one[n_fit:], units, **sizes) for what, one in told.items()
    }
    return TruthTables(tuple(range(n_units)), are_packages, tables)


def _units(text: Labelled, keep: NDArray[np.bool_]) -> tuple[NDArray[np.int64], bool]:
    """Number what the bootstrap draws: packages, or the documents of a single package."""
    names, units = np.unique(text.packages[keep], return_inverse=True)
    if len(names) > 1:
        return units.astype(np.int64), True
    return np.unique(text.tokens.doc_ids[keep], return_inverse=True)[1].astype(np.int64), False


def _coverage(text: Labelled, inside: NDArray[np.bool_], kind: str) -> Coverage:
    wanted = _is_wanted(text, kind)
    if not wanted.any():
        return Coverage(0.0, None, None, 0)
    units, are_packages = _units(text, wanted)
    truth, told = np.ones(len(units), np.uint8), inside[wanted].astype(np.uint8)
    n_units = int(units.max()) + 1
    table = count_table(truth, told, units, n_units=n_units, n_labels=2)
    found = TruthTables(tuple(range(n_units)), are_packages, {AUTOMATON: table})
    (row,) = rows_of(found, against=AUTOMATON)
    return Coverage(row.accuracy, row.low, row.high, row.n_tokens)
