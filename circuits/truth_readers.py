"""Readers of tokens: each predicts the parser's label of a token from text it is not scored on.

1. `plan_task` says which tokens are predicted from which. With three or more packages, each is
   predicted from all others; with fewer, half of the documents, by hash, from the other half.
2. Features and neurons are read by the vote of what fires (`circuits.votes`), weighted by strength
   or counted as present; neurons also cut to the features' L0, and by linear probes
   (`circuits.probes`); those of a shuffled model at that L0 and by the probe on all.
3. Tokens, token pairs and automaton states are read by the most frequent label in the training
   part; a pair never seen by its token, a token never seen by the most frequent label of all.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuits.probes import probe_predictions
from circuits.votes import matrix_of, presence_only, strongest, vote_predictions
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from circuits.votes import Presence

MAX_FOLDS = 20  # more packages than this are left out in groups
MIN_PACKAGES = 3  # with two, each would be predicted from one package's habits
PROBE_WIDTHS = (1, 2, 5, 10)
MAX_PROBE_INPUTS = 2048  # a covariance of more is too large to hold for each fold


class Task(NamedTuple):
    """The labelled tokens, and which are predicted from which."""

    kept: NDArray[np.int64]
    """(n,) place of each labelled token among all."""

    labels: NDArray[np.uint8]
    """(n,) the parser's label."""

    units: NDArray[np.int64]
    """(n,) package, or document where one package is scored; what the bootstrap draws."""

    are_packages: bool
    """Whether the units are packages."""

    folds: NDArray[np.int64]
    """(n,) tokens of a fold are predicted from all other folds."""

    tested: tuple[int, ...]
    """The folds that are predicted, and scored."""

    n_labels: int
    """Number of labels the parser may give."""

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """(n,) whether a token is scored."""
        return np.isin(self.folds, self.tested)


def plan_task(
    kept: NDArray[np.int64],
    labels: NDArray[np.uint8],
    groups: NDArray[np.int64],
    doc_ids: NDArray[np.int64],
    *,
    n_labels: int,
    only: Collection[int] = (),
) -> Task:
    """Decide which tokens are predicted from which.

    Args:
        kept: (n,) place of each labelled token among all.
        labels: (n,) its label.
        groups: (n,) its package.
        doc_ids: (n,) its document.
        n_labels: number of labels the parser may give.
        only: the packages to score; none scores all.

    Raises:
        GraphError: some packages are to be scored, but there are fewer than three in all, or one
            of them has no labelled token.
    """
    names = np.unique(groups)
    if only and len(names) < MIN_PACKAGES:
        raise GraphError(
            f"{len(names)} packages have labelled tokens; to score some of them by what the others "
            f"teach takes at least {MIN_PACKAGES}; gather more, or score them all"
        )
    if missing := sorted(set(only) - set(names.tolist())):
        raise GraphError(f"package {missing[0]} has no labelled token to score; leave it out")
    if len(names) < MIN_PACKAGES:
        folds, n_tested = _halves(doc_ids), 1
    else:
        folds, n_tested = _folds(groups, only)
    tested = tuple(range(n_tested))
    is_scored = np.isin(folds, tested)
    are_packages = len(np.unique(groups[is_scored])) > 1
    units = groups if are_packages else doc_ids
    return Task(kept, labels, units, are_packages, folds, tested, n_labels)


def vote(presence: Presence, task: Task) -> NDArray[np.uint8]:
    """Predict by the vote of what fires; (n,) labels, 0 where nothing is scored."""
    return vote_predictions(
        matrix_of(presence, task.kept),
        task.labels,
        task.folds,
        tested=task.tested,
        n_labels=task.n_labels,
    )


def feature_predictions(features: Presence, task: Task) -> dict[str, NDArray[np.uint8]]:
    """Predict by the features, weighted by strength and counted as present."""
    return {
        "features": vote(features, task),
        "features, presence": vote(presence_only(features), task),
    }


def neuron_predictions(neurons: Presence, task: Task, *, l0: int) -> dict[str, NDArray[np.uint8]]:
    """Predict by the neurons: votes of all and of the strongest `l0`, and probes."""
    cut = strongest(neurons, l0)
    predictions = {
        "neurons": vote(neurons, task),
        "neurons, presence": vote(presence_only(neurons), task),
        "neurons at equal L0": vote(cut, task),
        "neurons at equal L0, presence": vote(presence_only(cut), task),
    }
    return predictions | _probes("neuron probe", neurons, task, (*PROBE_WIDTHS, None))


def shuffled_predictions(neurons: Presence, task: Task, *, l0: int) -> dict[str, NDArray[np.uint8]]:
    """Predict by the neurons of a shuffled model: the vote of the strongest `l0`, and the probe."""
    cut = {"shuffled model, neurons at equal L0": vote(strongest(neurons, l0), task)}
    return cut | _probes("shuffled model, neuron probe", neurons, task, (None,))


def most_frequent(keys: tuple[NDArray[np.int64], ...], task: Task) -> NDArray[np.uint8]:
    """Predict by the most frequent label of the first key that the other folds have seen.

    Args:
        keys: (n_tokens,) each, the more telling first; without any, the most frequent label of all.
        task: what is predicted from what.

    Returns:
        (n,) labels, 0 where nothing is scored.
    """
    predicted = np.zeros(len(task.labels), dtype=np.uint8)
    numbered = [np.unique(key[task.kept], return_inverse=True)[1].astype(np.int64) for key in keys]
    for fold in task.tested:
        train, test = task.folds != fold, task.folds == fold
        seen = np.bincount(task.labels[train], minlength=task.n_labels)
        predicted[test] = np.argmax(seen)
        for key in reversed(numbered):
            cells = key[train] * task.n_labels + task.labels[train]
            size = (int(key.max()) + 1) * task.n_labels
            counts = np.bincount(cells, minlength=size).reshape(-1, task.n_labels)
            known = test & (counts.sum(axis=1) > 0)[key]
            predicted[known] = np.argmax(counts, axis=1)[key[known]]
    return predicted


def _folds(groups: NDArray[np.int64], only: Collection[int]) -> tuple[NDArray[np.int64], int]:
    """Give each package to be scored a fold, and how many there are; the rest is one fold more."""
    names = np.array(sorted(only)) if only else np.unique(groups)
    is_scored = np.isin(groups, names)
    n_folds = min(MAX_FOLDS, len(names))
    places = np.searchsorted(names, np.where(is_scored, groups, names[0]))
    return np.where(is_scored, places % n_folds, n_folds), n_folds


def _halves(doc_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give 0 to documents to score, 1 to those to fit on; a single one is cut in the middle."""
    unique = np.unique(doc_ids)
    if len(unique) == 1:
        return (np.arange(len(doc_ids)) < len(doc_ids) // 2).astype(np.int64)
    ordered = sorted(unique.tolist(), key=lambda doc: hashlib.sha256(b"%d" % doc).digest())
    return np.isin(doc_ids, ordered[: len(ordered) // 2]).astype(np.int64)


def _probes(
    what: str, neurons: Presence, task: Task, widths: tuple[int | None, ...]
) -> dict[str, NDArray[np.uint8]]:
    if neurons.d > MAX_PROBE_INPUTS:
        return {}
    probed = probe_predictions(
        matrix_of(neurons, task.kept),
        task.labels,
        task.folds,
        tested=task.tested,
        n_labels=task.n_labels,
        widths=widths,
    )
    return {f"{what}, {k or 'all'}": told for k, told in zip(widths, probed, strict=True)}
