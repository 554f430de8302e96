"""Ground truth: how well features, neurons, states and tokens tell what a real parser says.

1. Each token gets the parser's label after its last byte (`token_labels`).
2. Documents fall into packages, by folder (`package_names`).
3. Each reader predicts the labels of packages that it was not fitted on (`circuits.truth_readers`).
4. What it tells is counted against the parser (`truth_tables`), and scored with intervals over
   packages (`circuits.truth_rows`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.truth_readers import (
    feature_predictions,
    most_frequent,
    neuron_predictions,
    plan_task,
    shuffled_predictions,
)
from circuits.truth_rows import TruthTables, count_table
from circuits.votes import Presence
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from circuits.truth_readers import Task
    from sae_core.schema import TokenTable

UNLABELLED = 255  # a token without bytes, such as a start token
TOP = "."  # the package of documents right below the folder that all share


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


def package_names(sources: Sequence[str]) -> list[str]:
    """Name the packages of documents: the first folder below what all paths share.

    Args:
        sources: of each document; `path#row` for rows of a table.

    Returns:
        The package of each; documents right below the shared folder are the package `.`.

    Example:
        >>> package_names(["d/bash/a.html", "d/bash/x/b.html", "d/twisted/c.html", "d/e.html"])
        ['bash', 'bash', 'twisted', '.']
    """
    folders = [source.split("/")[:-1] for source in sources]
    shared = 0
    while (
        folders and len({tuple(f[: shared + 1]) for f in folders}) == 1 and shared < len(folders[0])
    ):
        shared += 1
    return ["/".join(folder[shared : shared + 1]) or TOP for folder in folders]


def package_groups(sources: Sequence[str]) -> NDArray[np.int64]:
    """Number the packages of documents in the order of their names (see `package_names`).

    Example:
        >>> package_groups(["d/bash/a.html", "d/bash/x/b.html", "d/twisted/c.html"]).tolist()
        [0, 0, 1]
    """
    return np.unique(package_names(sources), return_inverse=True)[1].astype(np.int64)


def presence_of(tokens: TokenTable, d: int) -> Presence:
    """Give what fires on each token of a run."""
    return Presence(tokens.indptr, tokens.features, tokens.acts, d)


def truth_tables(
    *,
    features: Presence,
    tokens: TokenTable,
    labels: NDArray[np.uint8],
    groups: NDArray[np.int64],
    n_labels: int,
    only: Collection[int] = (),
    neurons: Callable[[], Presence] | None = None,
    shuffled: Callable[[], Presence] | None = None,
    states: Mapping[str, NDArray[np.int64]] | None = None,
) -> TruthTables:
    """Count what every reader of the tokens tells, against the parser's labels.

    Args:
        features: what fires of the dictionary in question.
        tokens: the tokens, in text order.
        labels: (n_tokens,) the parser's, from `token_labels`.
        groups: (n_tokens,) package of each token.
        n_labels: number of labels the parser may give.
        only: the packages to score; none scores all.
        neurons: gives the raw neurons on the same tokens, where they are known. Called once, and
            what it gave is dropped before `shuffled` is called: either is large.
        shuffled: gives those of the same model with shuffled weights.
        states: automaton name -> (n_tokens,) state of each token, -1 outside.

    Returns:
        The readers' tables: features, states, neurons, then bare tokens and the most frequent label.

    Raises:
        GraphError: fewer than two labelled tokens, or `only` cannot be done (see `plan_task`).
    """
    kept = np.flatnonzero(labels != UNLABELLED)
    if len(kept) < 2:
        raise GraphError(f"{len(kept)} tokens have a label; expected at least 2; give more text")
    documents = tokens.doc_ids[kept].astype(np.int64)
    task = plan_task(kept, labels[kept], groups[kept], documents, n_labels=n_labels, only=only)
    l0 = max(1, round(len(features.indices) / max(1, len(features.indptr) - 1)))
    told = feature_predictions(features, task)
    for name, state in (states or {}).items():
        told[f"automaton {name}"] = most_frequent((state,), task)
    if neurons is not None:
        told |= neuron_predictions(neurons(), task, l0=l0)
    if shuffled is not None:
        told |= shuffled_predictions(shuffled(), task, l0=l0)
    now, pair = _token_keys(tokens)
    told["token"] = most_frequent((now,), task)
    told["token pair"] = most_frequent((pair, now), task)
    told["majority"] = most_frequent((), task)
    return _counted(told, task)


def _counted(told: Mapping[str, NDArray[np.uint8]], task: Task) -> TruthTables:
    scored = task.is_scored
    names, units = np.unique(task.units[scored], return_inverse=True)
    sizes = {"n_units": len(names), "n_labels": task.n_labels}
    tables = {
        what: count_table(task.labels[scored], one[scored], units.astype(np.int64), **sizes)
        for what, one in told.items()
    }
    return TruthTables(tuple(names.tolist()), task.are_packages, tables)


def _token_keys(tokens: TokenTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each token's id, and its id with that of the token before it in the document."""
    now = tokens.token_ids.astype(np.int64)
    before = np.concatenate(([0], now[:-1] + 1))
    before[1:][tokens.doc_ids[1:] != tokens.doc_ids[:-1]] = 0
    return now, before * (int(now.max()) + 1) + now
