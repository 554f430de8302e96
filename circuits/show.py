"""One thing of a run, described: a feature, an edge or an automaton, as values and as lines.

1. A feature: how often it fires, what it fires on and promotes, its best neighbours, and the text
   around its largest activations.
2. An edge: its evidence, its tokens, and text where source and target fired one after the other.
3. An automaton: its JSON document.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from circuits.automata_files import why_none
from circuits.lettering import shown_label, shown_token
from circuits.score_words import NOT_MEASURED, interval_ends, interval_words
from circuits.states import has_next
from sae_core.files import parquet_columns
from sae_core.store import iter_token_shards, token_files
from sae_core.tokens import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run
    from sae_core.schema import TokenTable

N_EXAMPLES = 8
N_NEIGHBOURS = 8
N_TOKENS = 12
BEFORE, AFTER = 10, 5  # tokens of text around the one that fires


_NUMBERS = re.compile(r"(-?\d+)(?::(-?\d+))?", re.ASCII)


class _Hits(NamedTuple):
    """Tokens of one shard that are worth showing."""

    rows: NDArray[np.int64]
    values: NDArray[np.float32]


def card_of(run: Run, what: str) -> dict[str, Any]:
    """Describe what a word names: a feature (12), an edge (12:40), or an automaton.

    Args:
        run: with a graph; an automaton needs none.
        what: the word.

    Returns:
        `feature_card`, `edge_card` or `automaton_card`.

    Raises:
        ValueError: there is no such feature or automaton; the message says what there is.
    """
    if numbers := _NUMBERS.fullmatch(what):
        source, target = numbers.groups()
        return (
            feature_card(run, int(source))
            if target is None
            else edge_card(run, int(source), int(target))
        )
    known = {automaton.name: automaton for automaton in run.automata}
    if what in known:
        return automaton_card(known[what])
    names = f"automata are {', '.join(known)}" if known else why_none(run.path)
    raise ValueError(
        f"{what!r} is no feature, edge or automaton; features are 0..{run.manifest.d_sae - 1}, an "
        f"edge is written 12:40, {names}"
    )


def lines_of(card: dict[str, Any]) -> Iterator[str]:
    """Give the lines that describe a card to a person."""
    if "states" in card:
        return _automaton_lines(card)
    return _edge_lines(card) if "is_edge" in card else _feature_lines(card)


def feature_card(run: Run, feature: int) -> dict[str, Any]:
    """Describe a feature.

    Args:
        run: with a graph.
        feature: its index.

    Returns:
        The row of `features.parquet`, with `predecessors`, `successors` and `examples`.

    Raises:
        ValueError: there is no such feature.
    """
    graph = run.graph
    row = graph.nodes.row(by_predicate=pl.col("feature_idx") == graph.check(feature), named=True)
    return row | {
        "predecessors": _neighbours(run, graph.predecessors(feature), "source"),
        "successors": _neighbours(run, graph.successors(feature), "target"),
        "examples": _examples(run, lambda table: _firing(table, feature)),
    }


def edge_card(run: Run, source: int, target: int) -> dict[str, Any]:
    """Describe an edge.

    Args:
        run: with a graph.
        source: the feature that comes first.
        target: the feature that follows.

    Returns:
        The row of `graph/edges.parquet` (nulls where there is no such edge), with `is_edge`,
        `tokens` and `examples`; the focus of an example is the target's token.

    Raises:
        ValueError: there is no such feature.
    """
    graph = run.graph
    found = graph.successors(source).filter(pl.col("target") == graph.check(target))
    blank = dict.fromkeys(graph.edges.columns) | {"source": source, "target": target}
    row = found.row(0, named=True) if len(found) else blank
    tokens = graph.tokens(source, target).drop("source", "target")
    return row | {
        "is_edge": len(found) > 0,
        "tokens": tokens.to_dicts(),
        "examples": _examples(run, lambda table: _following(table, source, target)),
    }


def automaton_card(automaton: FeatureAutomaton) -> dict[str, Any]:
    """Give an automaton's JSON document."""
    card: dict[str, Any] = json.loads(automaton.to_json())
    return card


def _feature_lines(card: dict[str, Any]) -> Iterator[str]:
    yield f"feature {card['feature_idx']}: {shown_label(card['label'])}"
    yield f"  fires on {card['n_fires']:,} of {card['n_tokens']:,} tokens ({card['density']:.3%})"
    yield f"  activation: mean {card['mean_act']:.3g}, largest {card['max_act']:.3g}"
    for name in ("top_tokens", "promoted_tokens", "suppressed_tokens"):
        yield f"  {name.replace('_', ' ')}: {_joined(card[name])}"
    for name in ("predecessors", "successors"):
        found = (
            f"{one['feature_idx']} ({shown_label(one['label'])}, {one['score']:.3g})"
            for one in card[name]
        )
        yield f"  {name}: {'; '.join(found) or '-'}"
    yield from _example_lines(card["examples"])


def _edge_lines(card: dict[str, Any]) -> Iterator[str]:
    named = "edge" if card["is_edge"] else "no edge"
    yield f"{named} {card['source']} -> {card['target']}"
    for name, value in card.items():
        if name in {"source", "target", "is_edge", "tokens", "examples"} or value is None:
            continue
        yield f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}"
    yield f"  tokens: {_joined([token['token_str'] for token in card['tokens']])}"
    yield from _example_lines(card["examples"])


def _automaton_lines(card: dict[str, Any]) -> Iterator[str]:
    yield visible(f"{card['name']} ({card['kind']}): {card['title']}")
    if card["description"]:
        yield visible(f"  {card['description']}")
    scores = card["scores"]
    for name in [one for one in scores if one not in interval_ends(scores)]:
        number = NOT_MEASURED if scores[name] is None else f"{scores[name]:.4g}"
        yield visible(f"  {name}: {number}{interval_words(scores, name)}")
    labels = {state["id"]: shown_label(state["label"]) for state in card["states"]}
    leaving: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for step in sorted(card["transitions"], key=lambda step: -step["probability"]):
        leaving[step["source"]].append(step)
    for state in card["states"]:
        features = " ".join(str(feature) for feature in state["features"])
        yield f"  state {state['id']}: {labels[state['id']]}  (features {features})"
        for step in leaving[state["id"]]:
            tokens = _joined([token["token_str"] for token in step["tokens"]])
            target = f"{step['target']} {labels.get(step['target'], '')}".strip()
            yield f"    {step['probability']:6.1%} -> {target}: {tokens}"

    for one in card["variants"]:
        features = " ".join(map(str, one["features"][:N_TOKENS]))
        more = len(one["features"]) - N_TOKENS
        features += f" and {more} more" if more > 0 else ""
        numbers = f"{one['bits_saved']:.4g} bits saved, {one['coverage']:.1%} of the text"
        yield f"  variant: {one['kind']} of features {features}; {numbers}"


def _joined(tokens: list[str]) -> str:
    return "  ".join(map(shown_token, tokens[:N_TOKENS])) or "-"


def _example_lines(examples: list[dict[str, Any]]) -> Iterator[str]:
    yield f"  examples: {len(examples) or 'none (the run keeps no activations of it)'}"
    for one in examples:
        words = [*one["tokens"]]
        words[one["focus"]] = f"[[{words[one['focus']]}]]"
        yield f"    {one['act']:8.3g}  {visible(''.join(words))}"


def _neighbours(run: Run, edges: pl.DataFrame, end: str) -> list[dict[str, Any]]:
    labels = dict(run.features.select("feature_idx", "label").iter_rows())
    best = edges.head(N_NEIGHBOURS).select(end, "score").rows()
    return [
        {"feature_idx": feature, "label": labels.get(feature, ""), "score": score}
        for feature, score in best
    ]


def _examples(run: Run, hits_of: Callable[[TokenTable], _Hits]) -> list[dict[str, Any]]:
    """Give the text around the best hits of all shards, one a document while there are others."""
    files = token_files(run.path)
    if not files or "features" not in parquet_columns(files[0]):
        return []
    names = run.vocabulary.sort("token_id")["token_str"].to_list()
    sources = dict(run.documents.select("doc_id", "source").iter_rows())
    found: list[dict[str, Any]] = []
    for table in iter_token_shards(run.path):
        rows, values = hits_of(table)
        best = np.argsort(-values, kind="stable")[: 4 * N_EXAMPLES].tolist()
        found += [_snippet(table, int(rows[i]), float(values[i]), names, sources) for i in best]
    found.sort(key=lambda one: -one["act"])
    seen: dict[int, int] = {}
    for one in found:
        one["_turn"] = seen[one["doc_id"]] = seen.get(one["doc_id"], 0) + 1
    found.sort(key=lambda one: one.pop("_turn"))
    return found[:N_EXAMPLES]


def _snippet(
    table: TokenTable, row: int, act: float, names: list[str], sources: dict[int, str]
) -> dict[str, Any]:
    same = table.window_ids == table.window_ids[row]
    first, last = np.flatnonzero(same)[[0, -1]].tolist()
    first, last = max(first, row - BEFORE), min(last, row + AFTER)
    doc_id = int(table.doc_ids[row])
    return {
        "doc_id": doc_id,
        "source": sources.get(doc_id, ""),
        "pos": int(table.pos[row]),
        "act": act,
        "focus": row - first,
        "tokens": [names[token] for token in table.token_ids[first : last + 1].tolist()],
    }


def _firing(table: TokenTable, feature: int) -> _Hits:
    """Find the tokens on which a feature fires."""
    entries = np.flatnonzero(table.features == feature)
    rows = np.searchsorted(table.indptr, entries, side="right") - 1
    return _Hits(rows, table.acts[entries])


def _following(table: TokenTable, source: int, target: int) -> _Hits:
    """Find the tokens on which a target fires right after its source, in one window."""
    before, after = _firing(table, source), _firing(table, target)
    follows = has_next(table)
    starts = before.rows[follows[before.rows]] + 1
    kept = np.isin(after.rows, starts)
    return _Hits(after.rows[kept], after.values[kept])
