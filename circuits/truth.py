"""Ground truth: how well features, neurons, states and tokens tell what a real parser says.

1. Each token gets the parser's label after its last byte (`token_labels`).
2. Documents fall into packages (`package_groups`). With three or more, each package is predicted
   from all others; with fewer, half of the documents, by hash, from the other half.
3. A dictionary is read by the vote of what fires (`circuits.votes`); the rule is the same for
   features, for neurons, and for neurons cut to the features' L0 (the strongest of each token).
   Linear probes on the neurons, of a few of them or all, stand beside it (`circuits.probes`).
4. Tokens, token pairs and automaton states are read by the most frequent label in the training
   part; a pair never seen by its token, a token never seen by the most frequent label of all.
5. Accuracy has a 95 % interval from a bootstrap over packages (over documents with one package).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuits.probes import probe_predictions
from circuits.votes import Presence, matrix_of, strongest, vote_predictions
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sae_core.schema import TokenTable

UNLABELLED = 255  # a token without bytes, such as a start token
MAX_FOLDS = 20  # more packages than this are left out in groups
MIN_PACKAGES = 3  # with two, each would be predicted from one package's habits
N_RESAMPLES = 1000
BOOTSTRAP_SEED = 0
PROBE_WIDTHS = (1, 2, 5, 10)
MAX_PROBE_INPUTS = 2048  # a covariance of more is too large to hold for each fold


@dataclass(frozen=True)
class TruthRow:
    """How well one reader tells the parser's labels."""

    what: str
    """The reader."""

    accuracy: float
    """Share of tokens told right."""

    macro_f1: float
    """F1 averaged over the labels that occur."""

    low: float
    """Lower end of the 95 % interval of the accuracy."""

    high: float
    """Upper end."""

    n_tokens: int
    """Tokens scored."""


class _Task(NamedTuple):
    """The labelled tokens, and which are predicted from which."""

    labels: NDArray[np.uint8]
    units: NDArray[np.int64]
    """(n,) package, or document where there is one package; what the bootstrap draws."""
    folds: NDArray[np.int64]
    tested: tuple[int, ...]
    n_labels: int


def token_labels(
    tokens: TokenTable,
    document: Callable[[int], bytes],
    label: Callable[[bytes], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """Give each token the label of its last byte.

    Args:
        tokens: in text order.
        document: doc_id -> the document's bytes.
        label: bytes -> (n_bytes,) label of each, as in `circuits.labels`.

    Returns:
        (n_tokens,) labels; `UNLABELLED` for a token without bytes.

    Raises:
        GraphError: a token ends beyond its document.
    """
    labels = np.full(len(tokens.doc_ids), UNLABELLED, dtype=np.uint8)
    order = np.argsort(tokens.doc_ids, kind="stable")
    doc_ids, starts = np.unique(tokens.doc_ids[order], return_index=True)
    for doc_id, rows in zip(doc_ids.tolist(), np.split(order, starts[1:]), strict=True):
        rows = rows[tokens.byte_end[rows] > tokens.byte_start[rows]]  # noqa: PLW2901
        of_bytes = label(document(doc_id))
        ends = tokens.byte_end[rows]
        if len(ends) and ends.max() > len(of_bytes):
            raise GraphError(
                f"document {doc_id} has {len(of_bytes):,} bytes, but a token of it ends at "
                f"{ends.max():,}; the text is not the one the run was made of; gather again"
            )
        labels[rows] = of_bytes[ends - 1]
    return labels


def package_groups(sources: Sequence[str]) -> NDArray[np.int64]:
    """Number the packages of documents: the first folder below what all paths share.

    Args:
        sources: of each document; `path#row` for rows of a table.

    Returns:
        (n_documents,) package of each; documents right below the shared folder are one package.

    Example:
        >>> package_groups(["d/bash/a.html", "d/bash/x/b.html", "d/twisted/c.html"]).tolist()
        [0, 0, 1]
    """
    folders = [source.split("/")[:-1] for source in sources]
    shared = 0
    while (
        folders and len({tuple(f[: shared + 1]) for f in folders}) == 1 and shared < len(folders[0])
    ):
        shared += 1
    names = ["/".join(folder[shared : shared + 1]) for folder in folders]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def presence_of(tokens: TokenTable, d: int) -> Presence:
    """Give what fires on each token of a run."""
    return Presence(tokens.indptr, tokens.features, tokens.acts, d)


def truth_rows(
    *,
    features: Presence,
    tokens: TokenTable,
    labels: NDArray[np.uint8],
    groups: NDArray[np.int64],
    n_labels: int,
    neurons: Presence | None = None,
    states: Mapping[str, NDArray[np.int64]] | None = None,
) -> list[TruthRow]:
    """Score every reader of the tokens against the parser's labels.

    Args:
        features: what fires of the dictionary in question.
        tokens: the tokens, in text order.
        labels: (n_tokens,) the parser's, from `token_labels`.
        groups: (n_tokens,) package of each token.
        n_labels: number of labels the parser may give.
        neurons: the raw neurons on the same tokens, where they are known.
        states: automaton name -> (n_tokens,) state of each token, -1 outside.

    Returns:
        One row a reader: features, states, neurons, then bare tokens and the most frequent label.

    Raises:
        GraphError: fewer than two labelled tokens.
    """
    kept = np.flatnonzero(labels != UNLABELLED)
    if len(kept) < 2:
        raise GraphError(f"{len(kept)} tokens have a label; expected at least 2; give more text")
    task = _task(labels[kept], groups[kept], tokens.doc_ids[kept].astype(np.int64), n_labels)
    predictions = {"features": _vote(features, kept, task)}
    for name, state in (states or {}).items():
        predictions[f"automaton {name}"] = _most_frequent((state[kept],), task)
    if neurons is not None:
        predictions |= _neuron_predictions(features, neurons, kept, task)
    now, pair = _token_keys(tokens)
    predictions["token"] = _most_frequent((now[kept],), task)
    predictions["token pair"] = _most_frequent((pair[kept], now[kept]), task)
    predictions["majority"] = _most_frequent((), task)
    return [_row(what, predicted, task) for what, predicted in predictions.items()]


def _task(
    labels: NDArray[np.uint8],
    groups: NDArray[np.int64],
    doc_ids: NDArray[np.int64],
    n_labels: int,
) -> _Task:
    packages = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    n_packages = int(packages.max()) + 1
    documents = np.unique(doc_ids, return_inverse=True)[1].astype(np.int64)
    units = packages if n_packages > 1 else documents
    if n_packages >= MIN_PACKAGES:
        folds = packages % MAX_FOLDS
        return _Task(labels, units, folds, tuple(np.unique(folds).tolist()), n_labels)
    return _Task(labels, units, _halves(doc_ids), (1,), n_labels)


def _halves(doc_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give 0 to documents to fit on, 1 to those to score; a single one is cut in the middle."""
    unique = np.unique(doc_ids)
    if len(unique) == 1:
        return (np.arange(len(doc_ids)) >= len(doc_ids) // 2).astype(np.int64)
    ordered = sorted(unique.tolist(), key=lambda doc: hashlib.sha256(b"%d" % doc).digest())
    return np.isin(doc_ids, ordered[len(ordered) // 2 :]).astype(np.int64)


def _neuron_predictions(
    features: Presence, neurons: Presence, kept: NDArray[np.int64], task: _Task
) -> dict[str, NDArray[np.uint8]]:
    l0 = max(1, round(len(features.indices) / max(1, len(features.indptr) - 1)))
    predictions = {
        "neurons": _vote(neurons, kept, task),
        "neurons at equal L0": _vote(strongest(neurons, l0), kept, task),
    }
    if neurons.d <= MAX_PROBE_INPUTS:
        widths = (*PROBE_WIDTHS, None)
        probed = probe_predictions(
            matrix_of(neurons)[kept],
            task.labels,
            task.folds,
            tested=task.tested,
            n_labels=task.n_labels,
            widths=widths,
        )
        names = [f"neuron probe, {k or 'all'}" for k in widths]
        predictions |= dict(zip(names, probed, strict=True))
    return predictions


def _vote(presence: Presence, kept: NDArray[np.int64], task: _Task) -> NDArray[np.uint8]:
    acts = matrix_of(presence)[kept]
    return vote_predictions(
        acts, task.labels, task.folds, tested=task.tested, n_labels=task.n_labels
    )


def _most_frequent(keys: tuple[NDArray[np.int64], ...], task: _Task) -> NDArray[np.uint8]:
    """Predict by the most frequent label of the first key that the other folds have seen."""
    predicted = np.zeros(len(task.labels), dtype=np.uint8)
    numbered = [np.unique(key, return_inverse=True)[1].astype(np.int64) for key in keys]
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


def _token_keys(tokens: TokenTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each token's id, and its id with that of the token before it in the document."""
    now = tokens.token_ids.astype(np.int64)
    before = np.concatenate(([0], now[:-1] + 1))
    before[1:][tokens.doc_ids[1:] != tokens.doc_ids[:-1]] = 0
    return now, before * (int(now.max()) + 1) + now


def _row(what: str, predicted: NDArray[np.uint8], task: _Task) -> TruthRow:
    scored = np.isin(task.folds, task.tested)
    truth, told, units = task.labels[scored], predicted[scored], task.units[scored]
    right = (truth == told).astype(np.float64)
    low, high = _interval(right, units)
    f1 = _macro_f1(truth, told, task.n_labels)
    return TruthRow(what, float(right.mean()), f1, low, high, len(truth))


def _macro_f1(truth: NDArray[np.uint8], told: NDArray[np.uint8], n_labels: int) -> float:
    cells = truth.astype(np.int64) * n_labels + told
    table = np.bincount(cells, minlength=n_labels**2).reshape(n_labels, n_labels)
    n_true, n_told, n_right = table.sum(axis=1), table.sum(axis=0), np.diag(table)
    occurs = n_true > 0
    return float(np.mean(2 * n_right[occurs] / (n_true + n_told)[occurs]))


def _interval(right: NDArray[np.float64], units: NDArray[np.int64]) -> tuple[float, float]:
    """Give the 2.5th and 97.5th percentile of the accuracy over resampled units."""
    numbers = np.unique(units, return_inverse=True)[1]
    n_right = np.bincount(numbers, weights=right)
    n_all = np.bincount(numbers)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = (rng.integers(len(n_all), size=len(n_all)) for _ in range(N_RESAMPLES))
    accuracies = [n_right[draw].sum() / n_all[draw].sum() for draw in draws]
    low, high = np.percentile(accuracies, [2.5, 97.5])
    return float(low), float(high)
