"""Rule F1: how well one plain rule tells where a feature fires, as a stand-in for reading it.

    python -m figures.rules RUN [RUN ...]

1. Every token of a run's text gets values of several kinds of context: itself, its neighbours, their
   classes, the state of an HTML parser (outside HTML: the text's family), and some of these in twos.
2. A rule is a set of up to `MOST_VALUES` values of one kind. A feature's rule F1 is the best F1 that a
   rule reaches in telling the tokens on which it fires, the values taken up greedily.
3. A line a run: mean over the features that fire on `LEAST_FIRINGS` tokens, and how many are over 0.5.

Runs of one text are compared; `circuits gather --sae neurons` gives the raw neurons'.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuits.html_states import HTML_GROUPS, html_states
from circuits.run import open_run
from sae_core.console import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from circuits.run import Run
    from sae_core.schema import TokenTable

    Values = NDArray[np.int64]

MOST_VALUES = 6  # what a phrase can list
LEAST_FIRINGS = 20
HTML = "html"  # the family, a document's first folder, whose texts have parser states


class RuleScores(NamedTuple):
    """How readable a dictionary is by rules."""

    features: NDArray[np.int64]
    """(n,) the features that fire often enough."""

    f1: NDArray[np.float64]
    """(n,) the best rule's F1 of each, in [0, 1]."""

    l0: float
    """Features active a token."""


def main(words: Sequence[str] | None = None) -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(prog="python -m figures.rules", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="Run directories with activations.")
    for path in parser.parse_args(words).runs:
        found = rule_scores(open_run(path))
        say(
            f"{path}: {len(found.f1)} features, L0 {found.l0:.2f}, rule F1 {found.f1.mean():.3f}, "
            f"{np.mean(found.f1 > 0.5):.0%} over 0.5"
        )


def rule_scores(run: Run) -> RuleScores:
    """Score the features of a run.

    Args:
        run: with kept activations; its documents' first folders are their families.

    Raises:
        StoreError: the run keeps no activations.
    """
    tokens = run.tokens()
    vocabulary = run.vocabulary.sort("token_id")["token_bytes"].to_list()
    kinds = contexts(tokens, vocabulary, _families(run))
    rows = np.repeat(np.arange(len(tokens.token_ids)), np.diff(tokens.indptr))
    order = np.argsort(tokens.features, kind="stable")
    starts = np.searchsorted(tokens.features[order], np.arange(run.manifest.d_sae + 1))
    sizes = np.diff(starts)
    often = np.flatnonzero(sizes >= LEAST_FIRINGS)
    totals = [np.bincount(kind) for kind in kinds]
    f1 = [best_f1(rows[order[starts[i] : starts[i + 1]]], kinds, totals) for i in often]
    return RuleScores(often, np.array(f1), len(rows) / max(1, len(tokens.token_ids)))


def best_f1(fires: Values, kinds: Sequence[Values], totals: Sequence[Values]) -> float:
    """Give the best F1 of a rule for one feature.

    Args:
        fires: (n,) the tokens on which it fires, at least one.
        kinds: (n_tokens,) values of each kind of context.
        totals: how many tokens have each value, by kind.

    Returns:
        In [0, 1].

    Example:
        >>> kind = np.array([0, 1, 1, 2])
        >>> best_f1(np.array([1, 2]), [kind], [np.bincount(kind)])
        1.0
    """
    best = 0.0
    for kind, total in zip(kinds, totals, strict=True):
        hits = np.bincount(kind[fires], minlength=len(total))
        values = np.flatnonzero(hits)
        gain = hits[values] / total[values] * np.sqrt(hits[values])
        values = values[np.argsort(-gain, kind="stable")[:MOST_VALUES]]
        told, true = np.cumsum(total[values]), np.cumsum(hits[values])
        best = max(best, float((2 * true / (len(fires) + told)).max()))
    return best


def contexts(
    tokens: TokenTable, vocabulary: Sequence[bytes], families: dict[int, str]
) -> list[Values]:
    """Give each token's values, a kind of context at a time.

    Args:
        tokens: in text order.
        vocabulary: bytes of each token id.
        families: of each document.
    """
    own = tokens.token_ids.astype(np.int64)
    same = tokens.doc_ids[1:] == tokens.doc_ids[:-1]
    before, after = np.zeros_like(own), np.zeros_like(own)
    before[1:], after[:-1] = np.where(same, own[:-1], 0), np.where(same, own[1:], 0)
    classes = np.array([_class_of(token) for token in vocabulary])
    kind, kind_before = classes[own], classes[before]
    state = _states(tokens, vocabulary, families)
    pairs = [(own, state), (before, state), (after, state), (state, kind), (before, kind)]
    pairs += [(after, kind), (_joined(kind_before, state), kind)]
    singles = [own, before, after, state, kind, kind_before]
    return [*singles, *(_joined(a, b) for a, b in pairs)]


def _families(run: Run) -> dict[int, str]:
    rows = run.documents.select("doc_id", "source").rows()
    return {doc_id: source.split("/")[0] for doc_id, source in rows}


def _states(tokens: TokenTable, vocabulary: Sequence[bytes], families: dict[int, str]) -> Values:
    names = [*HTML_GROUPS, *sorted(set(families.values()))]
    states = np.empty(len(tokens.token_ids), np.int64)
    cuts = np.flatnonzero(np.diff(tokens.doc_ids)) + 1
    for rows in np.split(np.arange(len(states)), cuts):
        if not len(rows):
            continue
        family = families[int(tokens.doc_ids[rows[0]])]
        if family == HTML:
            pieces = [vocabulary[token] for token in tokens.token_ids[rows]]
            last = np.cumsum([len(piece) for piece in pieces]) - 1
            states[rows] = html_states(b"".join(pieces))[last]
        else:
            states[rows] = names.index(family)
    return states


def _joined(a: Values, b: Values) -> Values:
    """Number the pairs of two kinds."""
    joined: Values = np.unique(a * (int(b.max(initial=0)) + 1) + b, return_inverse=True)[1]
    return joined


def _class_of(token: bytes) -> int:
    """Give the class of a token: white space, digits, capitals, a name, a word, a sign, ..."""
    core = token.strip(b" ")
    if not core or token.isspace():
        return 0
    if b"\n" in token or core[0] >= 0x80:
        return 1 + (b"\n" in token)
    tests = (core.isdigit(), core.isupper(), core[:1].isupper() and core.isalpha(), core.isalpha())
    at = next((at for at, test in enumerate(tests) if test), len(tests))
    return 3 + 2 * at + token.startswith(b" ")


if __name__ == "__main__":
    main()
