"""The page of the automata's scores: tables, and how the goals were met, from what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from figures.automata_bits import CONTEXT, RIVALS
from figures.automata_machines import AUTOMATON, CLUSTERS
from figures.automata_truth import MAJORITY, TOKEN, ZOOMS
from figures.tables import markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from figures.automata_bits import BitsRow, Lead
    from figures.automata_kinds import KindScores
    from figures.automata_truth import Coverage, Inside

GOAL_UTF8 = 0.97
GOAL_ALL, GOAL_COVERED, GOAL_FEW = 0.95, 0.90, 0.80
MAX_STATES = 40
NONE = "No automaton of this run can be scored here."


def summary_text(bits: Sequence[BitsRow], utf8: KindScores | None, html: KindScores | None) -> str:
    """Give the table of goals and what was reached."""
    rows = [_bits_goal(bits), _utf8_goal(utf8), *_html_goals(html)]
    return markdown(("on held-out text", "goal", "reached", "met"), rows, n_words=4)


def bits_text(rows: Sequence[BitsRow]) -> str:
    """Give the table of next-token predictions, and how many automata are ahead."""
    scored = [row for row in rows if row.bits]
    machines = [AUTOMATON, *RIVALS, *CONTEXT]
    head = (
        *("automaton", "kind", "states", "steps"),
        *machines,
        *(f"ahead of {rival}" for rival in RIVALS),
    )
    cells = [
        (
            f"`{row.name}`",
            row.kind,
            str(row.n_states),
            f"{row.n_steps:,}",
            *(f"{row.bits[what]:.2f}" if what in row.bits else "" for what in machines),
            *(_lead(row.leads.get(rival)) for rival in RIVALS),
        )
        for row in rows
    ]
    title = (
        f"Bits a token, {len(scored)} automata on {sum(row.n_steps for row in scored):,} held-out "
        "steps inside their spans, every machine on the same steps; in brackets 95 % intervals over "
        "documents:"
    )
    return f"{title}\n\n{markdown(head, cells, n_words=2)}\n\n{wins_text(rows)}"


def wins_text(rows: Sequence[BitsRow]) -> str:
    """Say how many automata are ahead of their rivals."""
    many = [row for row in rows if row.n_states > 1 and row.bits]
    n_single = sum(row.n_states == 1 for row in rows)
    if not many:
        return f"No automaton has two states or more; {n_single} have one."
    each = ", ".join(
        f"of the {rival} {sum(row.leads[rival].bits > 0 for row in many)}" for rival in RIVALS
    )
    n_steps = np.array([row.n_steps for row in many])
    means = ", ".join(
        f"{np.average([row.bits[what] for row in many], weights=n_steps):.3f} by {words}"
        for what, words in ((AUTOMATON, "the automata"), *((one, f"the {one}") for one in RIVALS))
    )
    return (
        f"Of {len(many)} automata with two states or more, {sum(row.is_ahead for row in many)} need "
        f"fewer bits than both rivals, {sum(row.is_clearly_ahead for row in many)} of them with both "
        f"intervals above 0 (ahead {each}). Over all their steps: {means}. The {n_single} with one "
        "state are not counted: a state and a cluster that hold the same places are one machine."
    )


def utf8_text(found: KindScores | None) -> str:
    """Give how well the states of each automaton of other scripts tell the byte position."""
    if found is None or not found.found:
        return NONE
    return f"{_title(found)}\n\n{_overview(found, 'tokens beyond ASCII covered')}"


def parser_text(found: KindScores | None, covered: str) -> str:
    """Give what automata know of a parser's states, the best one in detail.

    Args:
        found: the scores.
        covered: what the covered tokens are called.
    """
    if found is None or not found.detail:
        return NONE
    title = (
        f"`{found.detail[0].name}`, which covers most of them in the training text, at fewer states "
        "and read by tokens alone:"
    )
    return "\n\n".join(
        (
            _title(found),
            _overview(found, covered),
            title,
            _table("read by", [one.by for one in found.detail], found.detail, covered),
        )
    )


def _title(found: KindScores) -> str:
    return (
        f"{found.n_tokens:,} tokens of {len(found.packages)} packages "
        f"({', '.join(f'`{name}`' for name in found.packages)}):"
    )


def _overview(found: KindScores, covered: str) -> str:
    return _table("automaton", [f"`{one.name}`" for one in found.found], found.found, covered)


def _table(first: str, firsts: Sequence[str], found: Sequence[Inside], covered: str) -> str:
    others = (TOKEN, CLUSTERS, MAJORITY)
    head = (
        *(first, "states", covered, "interval", "tokens inside", "accuracy inside"),
        *("interval", "macro-F1", *others, "ahead of token", "interval"),
    )
    rows = [
        (
            *(name, str(one.n_states), *_covered(one.coverage), *_accuracy(one)),
            *(_of(one, what) for what in others),
            *_ahead_of_token(one),
        )
        for name, one in zip(firsts, found, strict=True)
    ]
    return markdown(head, rows, n_words=1)


def _covered(coverage: Coverage) -> tuple[str, str]:
    return f"{coverage.share:.3f}", _interval(coverage.low, coverage.high)


def _accuracy(one: Inside) -> tuple[str, str, str, str]:
    if not one.rows:
        return "0", "", "", ""
    row = one.row(AUTOMATON)
    return (
        f"{row.n_tokens:,}",
        f"{row.accuracy:.3f}",
        _interval(row.low, row.high),
        f"{row.macro_f1:.3f}",
    )


def _of(one: Inside, what: str) -> str:
    return next((f"{row.accuracy:.3f}" for row in one.rows if row.what == what), "")


def _ahead_of_token(one: Inside) -> tuple[str, str]:
    if not one.rows or one.row(TOKEN).difference is None:
        return "", ""
    row = one.row(TOKEN)
    return f"{row.difference:+.3f}", _interval(row.difference_low, row.difference_high, "+")


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _lead(lead: Lead | None) -> str:
    if lead is None:
        return ""
    ends = "" if lead.low is None else f" ({lead.low:+.2f} to {lead.high:+.2f})"
    return f"{lead.bits:+.2f}{ends}"


def _met(is_met: bool) -> str:  # noqa: FBT001 - a word for it
    return "yes" if is_met else "no"


def _bits_goal(rows: Sequence[BitsRow]) -> tuple[str, str, str, str]:
    many = [row for row in rows if row.n_states > 1 and row.bits]
    n_ahead = sum(row.is_ahead for row in many)
    return (
        "next token, bits: automata ahead of HMM and k-means",
        "all",
        f"{n_ahead} of {len(many)}",
        _met(bool(many) and n_ahead == len(many)),
    )


def _utf8_goal(found: KindScores | None) -> tuple[str, str, str, str]:
    what = "UTF-8: byte position by state, all tokens in spans of other scripts"
    scored = [one.row(AUTOMATON) for one in (found.found if found else []) if one.rows]
    if not scored:
        return what, f"{GOAL_UTF8}", "no such automaton", "no"
    n_tokens = [row.n_tokens for row in scored]
    mean = float(np.average([row.accuracy for row in scored], weights=n_tokens))
    n_met = sum(row.accuracy >= GOAL_UTF8 for row in scored)
    reached = f"{mean:.3f}; {n_met} of {len(scored)} automata alone"
    return what, f"{GOAL_UTF8}", reached, _met(mean >= GOAL_UTF8)


def _html_goals(found: KindScores | None) -> list[tuple[str, str, str, str]]:
    at_all = f"HTML: parser's state, at most {MAX_STATES} states"
    goal = f"{GOAL_ALL:.2f}, {GOAL_COVERED:.0%} of tags covered"
    if found is None or not found.detail or not found.detail[0].rows:
        return [(at_all, goal, "no such automaton", "no")]
    whole = found.detail[0]
    accuracy, share = whole.row(AUTOMATON).accuracy, whole.coverage.share
    alone = f"the token alone {whole.row(TOKEN).accuracy:.3f}"
    is_met = accuracy >= GOAL_ALL and share >= GOAL_COVERED and whole.n_states <= MAX_STATES
    at_once = f"{accuracy:.3f}, {share:.0%} covered, {whole.n_states} states; {alone}"
    rows = [(at_all, goal, at_once, _met(is_met))]
    few = [one for one in found.detail if one.by == "features" and one.n_states in ZOOMS]
    for one in few:
        words = f"HTML: parser's state, {one.n_states} states"
        reached = one.row(AUTOMATON).accuracy if one.rows else 0.0
        rows.append((words, f"{GOAL_FEW:.2f}", f"{reached:.3f}", _met(reached >= GOAL_FEW)))
    return rows
