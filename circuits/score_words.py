"""Scores in words for people: names, numbers, intervals, and what was not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_core.tokens import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

HELD_OUT = "held_out_"  # names of scores on unseen text begin so
NOT_MEASURED = "not measured"
INTERVAL = ("_low", "_high")  # names of its ends, after the name of the score


def score_words(scores: Mapping[str, float | int | None]) -> list[tuple[str, str]]:
    """Give scores as (words, number) for people, without places and counts.

    What was not measured says so; held-out scores, none of which was, say it once. The ends of an
    interval stand behind their score.
    """
    held_out = [key for key in scores if key.startswith(HELD_OUT)]
    unseen = bool(held_out) and all(scores[key] is None for key in held_out)
    ends = interval_ends(scores)
    words = []
    for key, value in scores.items():
        if key == "rank" or key.startswith("n_") or (unseen and key.startswith(HELD_OUT)):
            continue
        if key not in ends:
            number = score_number(value) + interval_words(scores, key)
            words.append((visible(key.replace("_", " ")), number))
    return words + ([("held out", NOT_MEASURED)] if unseen else [])


def interval_ends(scores: Mapping[str, float | int | None]) -> set[str]:
    """Name the scores that are ends of another's interval."""
    return {key + end for key in scores for end in INTERVAL}


def interval_words(scores: Mapping[str, float | int | None], key: str) -> str:
    """Give a score's interval as it stands behind the score; "" where there is none.

    Example:
        >>> interval_words({"bits": 0.3, "bits_low": 0.25, "bits_high": 0.35}, "bits")
        ' (0.25 to 0.35)'
    """
    low, high = (scores.get(key + end) for end in INTERVAL)
    if low is None or high is None:
        return ""
    return f" ({score_number(low)} to {score_number(high)})"


def score_number(value: float | None) -> str:
    """Write a score for people; None is what was not measured.

    Example:
        >>> score_number(0.23456), score_number(1200), score_number(None)
        ('0.235', '1,200', 'not measured')
    """
    if value is None:
        return NOT_MEASURED
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
