"""Which documents of a run a parser can read, and how a run's readers do on them.

1. Documents are chosen by their name's ending, or by how they begin; UTF-8 takes all. A row of a
   table (`page.html#3`) is no page for its name.
2. Each token gets the parser's label; features, automata, tokens and, where another run holds
   them, neurons are scored on the same tokens (`circuits.truth`).
3. A document whose tokens the two runs cut differently (one read in part) is left out.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from circuits.labels import LABELERS
from circuits.states import state_sequence
from circuits.truth import package_groups, presence_of, token_labels, truth_rows
from sae_core.errors import GraphError
from sae_core.store import select_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run
    from circuits.truth import TruthRow
    from circuits.votes import Presence
    from sae_core.schema import TokenTable

HEAD_BYTES = 1024
_HTML = re.compile(rb"<html|<!doctype html", re.IGNORECASE)
_ENDINGS = {"html": (".html", ".htm", ".xhtml"), "python": (".py", ".pyi")}


@dataclass(frozen=True)
class TruthText:
    """The documents of a run that one parser reads."""

    kind: str
    """html, python or utf8."""

    tokens: TokenTable
    """Their tokens, with the features of the run."""

    documents: dict[int, bytes]
    """The bytes of each, by id."""

    sources: dict[int, str]
    """Where each is from, by id."""


def truth_text(run: Run, kind: str, *, held_out: bool | None) -> TruthText:
    """Choose the documents of a run that a parser reads.

    Args:
        run: with kept activations.
        kind: one of `circuits.labels.LABELERS`.
        held_out: True takes the held-out documents only, None all.

    Raises:
        GraphError: there are none.
    """
    tokens = run.tokens(held_out=held_out)
    documents = _documents_of(tokens, run.vocabulary.sort("token_id")["token_bytes"].to_list())
    sources = dict(run.documents.select("doc_id", "source").iter_rows())
    chosen = {
        doc_id: data for doc_id, data in documents.items() if _is_kind(kind, sources[doc_id], data)
    }
    if not chosen:
        which = "held-out " if held_out else ""
        endings = " or ".join(_ENDINGS.get(kind, ()))
        raise GraphError(
            f"{run.path} has no {which}document that is {kind}"
            f"{f' (named {endings})' if endings else ''}; gather some"
            f"{', or give --all-documents' if held_out else ''}"
        )
    kept = select_tokens(tokens, np.isin(tokens.doc_ids, list(chosen)))
    return TruthText(kind, kept, chosen, {doc_id: sources[doc_id] for doc_id in chosen})


def score(
    run: Run,
    text: TruthText,
    *,
    automata: Sequence[FeatureAutomaton] = (),
    neurons: Run | None = None,
) -> list[TruthRow]:
    """Score features, automata, neurons and tokens against the parser.

    Args:
        run: whose features and automata are scored.
        text: the documents.
        automata: whose states are read as predictions.
        neurons: a run of the raw neurons on the same documents, their sources being the ids here.

    Returns:
        One row a reader.

    Raises:
        GraphError: the two runs have no document in common, or no token has a label.
    """
    tokens = text.tokens
    raw: Presence | None = None
    if neurons is not None:
        tokens, raw = _aligned(tokens, neurons)
    labeler = LABELERS[text.kind]
    ids = list(text.sources)
    group_of = dict(zip(ids, package_groups([text.sources[i] for i in ids]).tolist(), strict=True))
    return truth_rows(
        features=presence_of(tokens, run.manifest.d_sae),
        tokens=tokens,
        labels=token_labels(tokens, text.documents.__getitem__, labeler.label),
        groups=np.array([group_of[i] for i in tokens.doc_ids.tolist()], dtype=np.int64),
        n_labels=len(labeler.names),
        neurons=raw,
        states={one.name: _states(run, tokens, one) for one in automata},
    )


def _is_kind(kind: str, source: str, data: bytes) -> bool:
    if kind not in _ENDINGS:
        return True
    name = source.lower().removesuffix(".gz").removesuffix(".zst")
    head = data[:HEAD_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()
    begins = kind == "html" and head.startswith(b"<") and _HTML.search(head) is not None
    return begins or name.endswith(_ENDINGS[kind])


def _documents_of(tokens: TokenTable, vocabulary: Sequence[bytes]) -> dict[int, bytes]:
    ids = tokens.token_ids.tolist()
    return {
        doc_id: b"".join(vocabulary[ids[row]] for row in rows.tolist())
        for doc_id, rows in _by_document(tokens, int).items()
    }


def _by_document(tokens: TokenTable, name: Callable[[int], int]) -> dict[int, NDArray[np.int64]]:
    order = np.argsort(tokens.doc_ids, kind="stable")
    unique, starts = np.unique(tokens.doc_ids[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {name(doc): rows for doc, rows in zip(unique.tolist(), parts, strict=True)}


def _states(run: Run, tokens: TokenTable, automaton: FeatureAutomaton) -> NDArray[np.int64]:
    groups = [state.features for state in automaton.states]
    return state_sequence(tokens, groups, run.mean_acts).astype(np.int64)


def _aligned(tokens: TokenTable, neurons: Run) -> tuple[TokenTable, Presence]:
    """Keep the documents that both runs cut into the same tokens, in one order."""
    sources = dict(neurons.documents.select("doc_id", "source").iter_rows())
    theirs = neurons.tokens()
    here = _by_document(tokens, int)
    there = _by_document(theirs, lambda doc_id: int(sources[doc_id]))
    both = [
        doc_id
        for doc_id, rows in here.items()
        if doc_id in there
        and np.array_equal(tokens.token_ids[rows], theirs.token_ids[there[doc_id]])
    ]
    if not both:
        raise GraphError(f"{neurons.path} holds none of these documents; delete it and run again")
    mine = _masked(tokens, np.concatenate([here[doc_id] for doc_id in both]))
    raw = _masked(theirs, np.concatenate([there[doc_id] for doc_id in both]))
    return mine, presence_of(raw, neurons.manifest.d_sae)


def _masked(table: TokenTable, rows: NDArray[np.int64]) -> TokenTable:
    keep = np.zeros(len(table.doc_ids), dtype=np.bool_)
    keep[rows] = True
    return select_tokens(table, keep)
