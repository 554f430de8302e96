"""A run's automata against one parser: which are scored, on which text, and what comes out.

1. The automata are chosen on text to fit on. HTML and Python: those that cover MIN_COVER of the
   labels that matter, and in detail, at fewer states and by tokens alone, the one that covers most.
2. UTF-8: those whose spans are for more than half bytes of characters beyond ASCII.
3. The text that is scored has no document, and of HTML no package, in common with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits.truth import TOP
from figures.automata_texts import labelled
from figures.automata_truth import covers, levels_of, score_inside
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run
    from circuits.trace import By
    from figures.automata_texts import Labelled, Part
    from figures.automata_truth import Inside

MIN_COVER = 0.1  # of the tokens with a label that matters
MIN_SHARE = 0.5  # of the spans' tokens
WAYS: tuple[By, ...] = ("features", "tokens")


@dataclass(frozen=True)
class KindScores:
    """What a run's automata know of one parser's states."""

    kind: str
    packages: list[str]
    """The packages scored."""

    n_tokens: int
    """Tokens of the text that is scored."""

    found: list[Inside]
    """One an automaton, at all its states, read by features."""

    detail: list[Inside]
    """The automaton that covers most, by features, then by tokens, at all its states and at fewer."""


def kind_scores(
    run: Run,
    automata: Sequence[FeatureAutomaton],
    fit: Sequence[Part],
    scored: Part,
    kind: str,
) -> KindScores | None:
    """Score a run's automata against one parser; None where the parser reads nothing there.

    Args:
        run: the run.
        automata: those of the run to score.
        fit: texts that teach.
        scored: the text to score on.
        kind: one of `circuits.labels.LABELERS`.

    Raises:
        ValueError: HTML of one package both teaches and is scored.
    """
    try:
        target = labelled(scored, kind)
        texts = [labelled(part, kind) for part in fit]
    except GraphError:
        return None
    if kind == "html":
        _refuse_same_packages(texts, target)
    shares = {one.name: covers(one, texts, run, kind) for one in automata}
    if kind == "utf8":
        chosen = [one for one in automata if shares[one.name][1] > MIN_SHARE]
        detail = []
    else:
        best = max(automata, key=lambda one: shares[one.name][0], default=None)
        chosen = [one for one in automata if shares[one.name][0] >= MIN_COVER and one is not best]
        detail = [] if best is None else _detail(best, texts, target, run, kind)
    found = [score_inside(one, texts, target, run, kind=kind) for one in chosen]
    whole = [*detail[:1], *found]
    return KindScores(kind, target.names, len(target.labels), whole, detail)


def _refuse_same_packages(texts: Sequence[Labelled], target: Labelled) -> None:
    known = {name for text in texts for name in text.names} - {TOP}
    if twice := sorted(known & set(target.names)):
        raise ValueError(f"package {twice[0]} would both teach and be scored; leave it out")


def _detail(
    automaton: FeatureAutomaton, texts: Sequence[Labelled], target: Labelled, run: Run, kind: str
) -> list[Inside]:
    n_stored = len(automaton.states)
    return [
        score_inside(level, texts, target, run, kind=kind, by=by, n_stored=n_stored)
        for by in WAYS
        for level in levels_of(automaton)
    ]
