"""The training curves of several dictionaries in one picture: error, and features fallen silent.

Rows of metrics.jsonl in, an SVG with text as text out; same numbers, same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from circuits.palette import ACCENTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import polars as pl
    from matplotlib.axes import Axes

DASHES = ("-", "--", ":", "-.")  # a line is known by its dashes too, where colours look alike
ACTIVATIONS_SHOWN = 1e6


class Curve(NamedTuple):
    """How the training of one dictionary went."""

    name: str
    """Of the dictionary."""

    n_features: int
    """In training."""

    rows: pl.DataFrame
    """n_activations, fvu and n_dead, a row each now and then, ascending."""


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw error and silent features over activations, a line a dictionary.

    Args:
        curves: at least one.
        path: the SVG that is written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra, needed for this picture alone
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "dictionary-curves", "font.size": 10}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        error, silent = figure.subplots(1, 2)
        for at, curve in enumerate(curves):
            _draw(curve, error, silent, at)
        _label(error, "fraction of variance unexplained")
        _label(silent, "silent features (% of all)")
        figure.legend(
            *error.get_legend_handles_labels(),
            loc="outside upper center",
            ncols=min(len(curves), 6),
            frameon=False,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(curve: Curve, error: Axes, silent: Axes, at: int) -> None:
    seen = curve.rows["n_activations"] / ACTIVATIONS_SHOWN
    style: Any = {
        "color": ACCENTS[at % len(ACCENTS)],
        "ls": DASHES[at % len(DASHES)],
        "lw": 1.8,
        "label": curve.name,
    }
    error.plot(seen, curve.rows["fvu"], **style)
    silent.plot(seen, 100 * curve.rows["n_dead"] / curve.n_features, **style)


def _label(axes: Axes, quantity: str) -> None:
    axes.set_xscale("log", subs=[2, 5])
    axes.xaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    axes.set(xlabel="activations trained on (millions)", ylabel=quantity)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
