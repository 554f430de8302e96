"""Which documents of a run a parser can read, and how a run's readers do on them.

1. Documents are chosen by their name's ending, or by how they begin; UTF-8 takes all. A row of a
   table (`page.html#3`) is no page for its name.
2. Each token gets the parser's label; features, automata, tokens and, where another run holds
   them, neurons are scored on the same tokens (`circuits.truth`).
3. A document whose tokens the runs cut differently (one read in part) is left out.
4. Neurons are dense: a run of them is read when its turn comes, and without what is not needed.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl

from circuits.labels import LABELERS
from circuits.states import state_sequence
from circuits.truth import package_names, presence_of, token_labels, truth_tables
from circuits.votes import Presence
from sae_core.errors import GraphError, StoreError
from sae_core.store import iter_token_shards, select_tokens, token_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run
    from circuits.truth_rows import TruthTables
    from sae_core.schema import TokenTable

HEAD_BYTES = 1024
_HTML = re.compile(rb"<html|<!doctype html", re.IGNORECASE)
_Number = TypeVar("_Number", np.int32, np.float32)
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

    package_of: dict[int, str]
    """The package of each, by id."""

    only: tuple[str, ...] = ()
    """The packages to score, each predicted from all others; none scores all."""

    @property
    def packages(self) -> list[str]:
        """The packages, in the order of their numbers in `TruthTables.units`."""
        return sorted(set(self.package_of.values()))


def truth_text(
    run: Run, kind: str, *, held_out: bool | None, only: Sequence[str] = ()
) -> TruthText:
    """Choose the documents of a run that a parser reads.

    Args:
        run: with kept activations.
        kind: one of `circuits.labels.LABELERS`.
        held_out: True takes the held-out documents only, None all.
        only: the packages to score; none scores all.

    Raises:
        GraphError: there are no such documents, or no such package.
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
    names = package_names([sources[doc_id] for doc_id in chosen])
    package_of = dict(zip(chosen, names, strict=True))
    _refuse_unknown(only, sorted(set(names)))
    kept = select_tokens(tokens, np.isin(tokens.doc_ids, list(chosen)))
    sources = {doc_id: sources[doc_id] for doc_id in chosen}
    return TruthText(kind, kept, chosen, sources, package_of, tuple(only))


def tables_of(
    run: Run,
    text: TruthText,
    *,
    automata: Sequence[FeatureAutomaton] = (),
    neurons: Run | None = None,
    shuffled: Run | None = None,
) -> TruthTables:
    """Count what features, automata, neurons and tokens tell, against the parser.

    Args:
        run: whose features and automata are read.
        text: the documents.
        automata: whose states are read as predictions.
        neurons: a run of the raw neurons on the same documents, their sources being the ids here.
        shuffled: the same of a model with shuffled weights.

    Returns:
        The readers' tables; units that are packages are numbered as in `TruthText.packages`.

    Raises:
        GraphError: the runs have no document in common, no token has a label, or a package to be
            scored cannot be (see `circuits.truth_readers.plan_task`).
    """
    others = [other for other in (neurons, shuffled) if other is not None]
    tokens = _in_all(text.tokens, others)
    labeler, names = LABELERS[text.kind], text.packages
    number = {doc_id: names.index(name) for doc_id, name in text.package_of.items()}
    return truth_tables(
        features=presence_of(tokens, run.manifest.d_sae),
        tokens=tokens,
        labels=token_labels(tokens, text.documents.__getitem__, labeler.label),
        groups=np.array([number[i] for i in tokens.doc_ids.tolist()], dtype=np.int64),
        n_labels=len(labeler.names),
        only=[names.index(name) for name in text.only],
        neurons=_reading(neurons, tokens),
        shuffled=_reading(shuffled, tokens),
        states={one.name: _states(run, tokens, one) for one in automata},
    )


def _refuse_unknown(only: Sequence[str], packages: list[str]) -> None:
    for name in only:
        if name not in packages:
            raise GraphError(f"there is no package {name!r}; packages are {', '.join(packages)}")


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
        for doc_id, rows in _by_document(tokens.doc_ids, int).items()
    }


def _by_document(
    doc_ids: NDArray[np.integer], name: Callable[[int], int]
) -> dict[int, NDArray[np.int64]]:
    order = np.argsort(doc_ids, kind="stable")
    unique, starts = np.unique(doc_ids[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {name(doc): rows for doc, rows in zip(unique.tolist(), parts, strict=True)}


def _states(run: Run, tokens: TokenTable, automaton: FeatureAutomaton) -> NDArray[np.int64]:
    groups = [state.features for state in automaton.states]
    return state_sequence(tokens, groups, run.mean_acts).astype(np.int64)


def _in_all(tokens: TokenTable, others: Sequence[Run]) -> TokenTable:
    """Keep the documents that all runs cut into the same tokens."""
    here = _by_document(tokens.doc_ids, int)
    both = set(here)
    for other in others:
        doc_ids, token_ids = _ids_of(other)
        there = _by_document(doc_ids, _number_here(other))
        both = {
            doc_id
            for doc_id in both & there.keys()
            if np.array_equal(tokens.token_ids[here[doc_id]], token_ids[there[doc_id]])
        }
        if not both:
            raise GraphError(f"{other.path} holds none of these documents; delete it and run again")
    return tokens if len(both) == len(here) else _of_documents(tokens, both)


def _reading(other: Run | None, tokens: TokenTable) -> Callable[[], Presence] | None:
    """Give what reads another run's activations on the same tokens, in the same order."""
    if other is None:
        return None
    wanted = set(np.unique(tokens.doc_ids).tolist())
    number = _number_here(other)
    theirs = {doc for doc in other.documents["doc_id"].to_list() if number(doc) in wanted}
    return lambda: _read_presence(other, theirs)


def _read_presence(run: Run, doc_ids: set[int]) -> Presence:
    lengths: list[NDArray[np.int64]] = []
    indices: list[NDArray[np.int32]] = []
    values: list[NDArray[np.float32]] = []
    for shard in iter_token_shards(run.path):
        part = _of_documents(shard, doc_ids)
        lengths.append(np.diff(part.indptr))
        indices.append(part.features.astype(np.int32))
        values.append(part.acts)
    indptr = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
    return Presence(indptr, _joined(indices), _joined(values), run.manifest.d_sae)


def _joined(parts: list[NDArray[_Number]]) -> NDArray[_Number]:
    """Join arrays and drop the parts: both together of all columns would not fit."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _ids_of(run: Run) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Give the document and the vocabulary id of each token of a run, and nothing else of it."""
    columns = ["doc_id", "token_id"]
    try:
        frame = pl.concat(
            [pl.read_parquet(file, columns=columns, glob=False) for file in token_files(run.path)]
        )
    except (pl.exceptions.PolarsError, OSError, ValueError) as err:
        raise StoreError(f"{run.path} has no whole token shards; delete it and run again") from err
    return frame["doc_id"].to_numpy(), frame["token_id"].to_numpy()


def _number_here(other: Run) -> Callable[[int], int]:
    """Give what turns a document's id in another run into its id here, which is its source there."""
    sources = dict(other.documents.select("doc_id", "source").iter_rows())
    return lambda doc_id: int(sources[doc_id])


def _of_documents(table: TokenTable, doc_ids: set[int]) -> TokenTable:
    keep = np.isin(table.doc_ids, list(doc_ids))
    return table if keep.all() else select_tokens(table, keep)
