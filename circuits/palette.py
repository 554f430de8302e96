"""Colours of pictures and pages: safe for colour-blind readers, on light and on dark paper.

Five are those of Okabe and Ito, without black and yellow, which vanish, and without vermilion,
which many see as orange. Rust, violet and brown were searched for among colours that stand out from
either paper, as far as can be from the others and each other, as simulated for colour-blind eyes.

Source: Okabe and Ito 2008, "Color Universal Design"; Machado et al. 2009, "A Physiologically-based
Model for Simulation of Color Vision Deficiency".
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Theme = Literal["light", "dark"]

ACCENTS = (
    *("#0072b2", "#d98200", "#009e73", "#b85c92"),
    *("#aa4c0e", "#3a9fd8", "#7033cc", "#675232"),
)
SHADE_MIN, SHADE_MAX = 0.10, 0.56  # opacity of an accent behind text; above, text loses contrast
N_LEVELS = 5


class Inks(NamedTuple):
    """The colours of one theme."""

    paper: str
    card: str
    rule: str
    ink: str
    soft: str
    levels: tuple[str, ...]
    """Arrow colours, the least probable first."""


INKS: dict[Theme, Inks] = {
    "light": Inks(
        paper="#ffffff",
        card="#ffffff",
        rule="#cbd2da",
        ink="#1c2530",
        soft="#5a6675",
        levels=("#a9b3bf", "#8a96a5", "#6b7889", "#4e5b6d", "#344053"),
    ),
    "dark": Inks(
        paper="#12161b",
        card="#1a2027",
        rule="#3a4550",
        ink="#e8edf2",
        soft="#a3afbc",
        levels=("#5c6875", "#76838f", "#919daa", "#b0bbc6", "#d3dbe3"),
    ),
}


def accent(order: int) -> str:
    """Give the colour of the state at a place; after the last colour it starts again."""
    return ACCENTS[order % len(ACCENTS)]


def shade(value: float) -> float:
    """Give the opacity behind a token with this share of the largest activation."""
    return round(SHADE_MIN + (SHADE_MAX - SHADE_MIN) * min(max(value, 0.0), 1.0), 2)


def level(probability: float) -> int:
    """Give the place in `Inks.levels` of an arrow with this probability."""
    return min(int(min(max(probability, 0.0), 1.0) ** 0.5 * N_LEVELS), N_LEVELS - 1)


def blend(colour: str, paper: str, opacity: float) -> str:
    """Mix two colours.

    Example:
        >>> blend("#000000", "#ffffff", 0.5)
        '#808080'
    """
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(paper[1:]), strict=True)
    return "#" + bytes(round(a * opacity + b * (1 - opacity)) for a, b in pairs).hex()
