"""Discovery: a run's graph and tokens -> its automata, best first, with nothing named by hand.

1. Candidate sets of features are proposed from the graph (`propose`), and loops that are split over several
   features from the graph and the tokens (`split_loops`).
2. Each is drafted on training text (`assemble`); sets that do not run as automata fall out. The best systems
   are then tried two by two as one.
3. Near-duplicates are folded into the best of them, which keeps them as variants.
4. Automata are ranked within their kind by bits saved x coverage; kinds take turns, the best first.
5. Each gets a name, labels, examples, a sentence, measured effects and scores on held-out text; where
   it is asked for, discovery is repeated on halves of the documents (`stability`).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from circuits.agreement import AGREEMENT, with_effects
from circuits.assemble import Draft, automaton_of, draft_of
from circuits.automaton import Variant
from circuits.describe import describe
from circuits.fidelity import HELD_OUT, Scores
from circuits.no_automata import why_no_automaton
from circuits.propose import MAX_FEATURES, Proposal, most_features, propose
from circuits.rare_parts import with_rare_parts
from circuits.run import Run
from circuits.shape import Text, subsample
from circuits.split_loops import split_loops
from circuits.stability import STABILITY, half_texts, stability
from sae_core.errors import GraphError
from sae_core.files import write_parquet, write_text
from sae_core.store import select_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from circuits.automaton import FeatureAutomaton
    from circuits.graph import FeatureGraph
    from sae_core.schema import TokenTable

MAX_OVERLAP = 0.5  # two sets of one kind sharing more than half of their features are one
SAME_SET = 0.95  # candidates of a kind with this Jaccard similarity are shaped once
SAME_AUTOMATON = 0.8  # two of different kinds with this similarity are one
SHAPE_TOKENS = 250_000  # tokens on which states are shaped; counts of 25 are then shares of 1e-4
MAX_JOINED = 5  # of the best systems, every two that lead to each other are tried as one
MIN_TIED = (
    0.25  # of what comes into and goes out of one of the two, this share is from and to the other
)
MAX_PER_KIND = 10  # more of a kind are not read
KINDS = ("system", "pair", "chain", "loop")
MAX_VARIANTS = 10  # near-duplicates kept of one automaton
SCORES = (*Scores._fields, *HELD_OUT, STABILITY, AGREEMENT)


def find_automata(
    graph: FeatureGraph | Run,
    *,
    n_stability: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[FeatureAutomaton]:
    """Find the automata of a run.

    Args:
        graph: a run, or the graph of one, with kept activations.
        n_stability: halves of the documents on which discovery is repeated, for the score
            `stability`; 0 leaves it None, not measured.
        progress: is told why none was found, and each half that was read.

    Returns:
        Automata, best first; empty when none runs.

    Raises:
        GraphError: the graph belongs to no run, or the run keeps no activations.
        ValueError: n_stability is below 0.
    """
    if n_stability < 0:
        raise ValueError(f"n_stability must be >= 0 halves of the documents, got {n_stability}")
    run = _run_of(graph)
    say = progress or (lambda _: None)
    text, held_out = _texts(run)
    edges = run.graph.edges
    ranked, proposals, sample = _ranked(edges, text)
    if not ranked:
        reason = why_no_automaton(edges, run.graph.reason, proposals, text, sample)
        say(f"No automaton was found: {reason}.")
    halves = half_texts(text, n_stability if ranked else 0)
    values = stability(ranked, (_ranked(*half)[0] for half in halves), say)
    if n_stability and None in values:
        say("Stability is not measured: the text is one document, of which there is no half.")
    found = [
        _finished(draft, value, run, text, held_out)
        for draft, value in zip(ranked, values, strict=True)
    ]
    return [automaton.with_run(run) for automaton in _numbered(found)]


def distinct(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Leave out sets of a kind that hardly differ from an earlier one."""
    kept: list[Proposal] = []
    for one in proposals:
        rivals = (set(other.features) for other in kept if other.kind == one.kind)
        mine = set(one.features)
        if all(len(mine & other) < SAME_SET * len(mine | other) for other in rivals):
            kept.append(one)
    return kept


def unions(drafts: Sequence[Draft], most: int = MAX_FEATURES) -> list[Proposal]:
    """Join the best systems two by two: halves of one language are found apart, and run as one."""
    best = _best(draft for draft in drafts if draft.kind == "system")[:MAX_JOINED]
    sets = [
        sorted(one.features | other.features)
        for one, other in combinations(best, 2)
        if tied(one, other) >= MIN_TIED
    ]
    return [
        Proposal(tuple((feature,) for feature in features), "system")
        for features in sets
        if len(features) <= most
    ]


def tied(one: Draft, other: Draft) -> float:
    """Give how much two automata that ran on one text lead to each other.

    Returns:
        Of the comings and goings of one of them, the share that is from and to the other; of the two
        shares the larger: a part of a language may be visited seldom, but always from the rest.
    """
    is_in = np.stack([one.sequence >= 0, other.sequence >= 0])
    before, after = is_in[:, :-1], is_in[:, 1:]
    goes, comes = before & ~after, ~before & after
    crossings = (goes & after[::-1]).sum(axis=1) + (comes & before[::-1]).sum(axis=1)
    moves = goes.sum(axis=1) + comes.sum(axis=1)
    return float(np.max(crossings / np.maximum(moves, 1)))


def is_part(one: Draft, other: Draft) -> bool:
    """Say whether an automaton is a piece of another kind of one.

    It is where its features are the other's too, and it is mostly left for, or come to from, the rest of
    the other. A loop is no piece: a state that leads to itself is worth a look of its own.
    """
    if one.kind in ("loop", other.kind) or not one.features < other.features:
        return False
    inside, rest = one.sequence >= 0, (other.sequence >= 0) & (one.sequence < 0)
    goes, comes = inside[:-1] & ~inside[1:], ~inside[:-1] & inside[1:]
    to_rest = (goes & rest[1:]).sum() + (comes & rest[:-1]).sum()
    return bool(to_rest > MIN_TIED * (goes.sum() + comes.sum()))


def is_again(one: Draft, other: Draft) -> bool:
    """Say whether an automaton is another one, found as another kind, that is better or as good."""
    if "loop" in (one.kind, other.kind) or one.kind == other.kind:
        return False
    alike = len(one.features & other.features) >= SAME_AUTOMATON * len(
        one.features | other.features
    )
    of = [(_value(draft), KINDS.index(draft.kind)) for draft in (one, other)]
    return alike and of[0] < of[1]  # of equals, the kind that says more than `system`


def rank(drafts: Sequence[Draft]) -> list[Draft]:
    """Fold near-duplicates and put the best first, the kinds taking turns.

    Args:
        drafts: all that run.

    Returns:
        At most MAX_PER_KIND of each kind.
    """
    best = [draft for kind in KINDS for draft in _best(d for d in drafts if d.kind == kind)]
    whole = [
        one
        for one in best
        if not any(is_part(one, other) or is_again(one, other) for other in best)
    ]
    by_kind = {kind: [draft for draft in whole if draft.kind == kind] for kind in KINDS}
    order = sorted(KINDS, key=lambda kind: -_value(by_kind[kind][0]) if by_kind[kind] else 0.0)
    turns = zip_longest(*(by_kind[kind] for kind in order))
    return [draft for turn in turns for draft in turn if draft is not None]


def write_automata(run: Path, automata: Sequence[FeatureAutomaton]) -> None:
    """Write `automata/NAME.json` and `automata/index.parquet` of a run.

    Args:
        run: the run directory.
        automata: best first; names are unique.
    """
    folder = run / "automata"
    wanted = {f"{automaton.name}.json" for automaton in automata}
    if folder.is_dir():
        for old in folder.glob("*.json"):
            if old.name not in wanted:
                old.unlink()
    for automaton in automata:
        write_text(folder / f"{automaton.name}.json", automaton.to_json())
    write_parquet(folder / "index.parquet", index_frame(automata))


def index_frame(automata: Sequence[FeatureAutomaton]) -> pl.DataFrame:
    """Give the table of automata: name, title, kind, rank, sizes, scores and a sentence."""
    schema = {
        "name": pl.String, "title": pl.String, "kind": pl.String, "rank": pl.Int64,
        "n_states": pl.Int64, "n_features": pl.Int64,
    } | dict.fromkeys(SCORES, pl.Float64) | {"description": pl.String}  # fmt: skip
    rows = [
        {
            "name": one.name,
            "title": one.title,
            "kind": one.kind,
            "rank": place,
            "n_states": len(one.states),
            "n_features": len(one.features),
        }
        | {name: one.scores.get(name) for name in SCORES}
        | {"description": one.description}
        for place, one in enumerate(automata, start=1)
    ]
    return pl.DataFrame(rows, schema=schema)


def _run_of(graph: FeatureGraph | Run) -> Run:
    run: Any = getattr(graph, "run", graph)
    if not isinstance(run, Run):
        raise GraphError("this graph belongs to no run; open one with circuits.open_run(path)")
    return run


def _texts(run: Run) -> tuple[Text, TokenTable]:
    """Read the text to count on and the held-out text."""
    tokens = run.tokens()
    held = run.documents.filter("held_out")["doc_id"].to_numpy()
    is_held = np.isin(tokens.doc_ids, held)
    strs = run.vocabulary.sort("token_id")["token_str"].to_list()
    text = Text(select_tokens(tokens, ~is_held), run.mean_acts, strs)
    return text, select_tokens(tokens, is_held)


def _ranked(edges: pl.DataFrame, text: Text) -> tuple[list[Draft], list[Proposal], Text]:
    """Give the drafts that a graph and its text lead to, the sets they come of, and what shaped them."""
    sample = replace(text, tokens=subsample(text.tokens, SHAPE_TOKENS))
    d_sae = len(text.mean_act)
    proposed = with_rare_parts(propose(edges, d_sae), edges, text.tokens, d_sae)
    proposals = distinct([*split_loops(edges, text), *proposed])
    drafts = _drafts(proposals, text, sample)
    drafts += _drafts(unions(drafts, most_features(d_sae)), text, sample)
    return rank(drafts), proposals, sample


def _drafts(proposals: Sequence[Proposal], text: Text, sample: Text) -> list[Draft]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drafts = pool.map(lambda one: draft_of(one, text, sample), proposals)
        return [draft for draft in drafts if draft is not None]


def _finished(
    draft: Draft, value: float | None, run: Run, text: Text, held_out: TokenTable
) -> FeatureAutomaton:
    """Give all that is known of a draft; its name is not yet unique."""
    provenance = {"run": run.hash, "model": run.model_name, "sae": run.sae_name}
    made = automaton_of(draft, text, held_out, provenance)
    known = replace(made, scores=made.scores | {STABILITY: value}, description=describe(made))
    return with_effects(known, run.graph.edges)


def _value(draft: Draft) -> float:
    """Give bits saved x coverage: of other documents than those counted, where there are several."""
    scores = draft.scores
    if scores.bits_per_token is not None:
        return scores.bits_per_token
    return scores.bits_saved * scores.coverage


def _best(drafts: Iterable[Draft]) -> list[Draft]:
    """Fold near-duplicates into the best of them, which keeps them as variants."""
    kept: list[list[Draft]] = []
    for draft in sorted(drafts, key=lambda one: (-_value(one), sorted(one.features))):
        near = next((fold for fold in kept if _overlap(draft, fold[0]) > MAX_OVERLAP), None)
        if near is None:
            kept.append([draft])
        else:
            near.append(draft)
    return [_with_variants(*fold) for fold in kept[:MAX_PER_KIND]]


def _with_variants(best: Draft, *folded: Draft) -> Draft:
    """Keep of what was folded into a draft each set of features once."""
    sets = {best.features: best}
    for draft in folded:
        sets.setdefault(draft.features, draft)
    variants = (
        Variant(one.kind, tuple(sorted(one.features)), one.scores.bits_saved, one.scores.coverage)
        for one in list(sets.values())[1 : MAX_VARIANTS + 1]
    )
    return replace(best, variants=tuple(variants))


def _overlap(one: Draft, other: Draft) -> float:
    smaller = min(len(one.features), len(other.features))
    return len(one.features & other.features) / smaller


def _numbered(found: Sequence[FeatureAutomaton]) -> list[FeatureAutomaton]:
    """Make names unique: the second of a name gets -2, and so on."""
    seen: dict[str, int] = {}
    named = []
    for automaton in found:
        seen[automaton.name] = seen.get(automaton.name, 0) + 1
        n = seen[automaton.name]
        named.append(replace(automaton, name=f"{automaton.name}-{n}") if n > 1 else automaton)
    return named
