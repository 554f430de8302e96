"""Confusion matrices as pictures: what a parser says against what an automaton's states tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.palette import ACCENTS, INKS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

CELL = 0.46  # inches
MARGINS = (2.1, 1.9)
DARK = 0.5  # share from which the number is written in white
LEAST = 0.005  # share from which a number is written


def draw_confusion(
    table: NDArray[np.int64], names: Sequence[str], path: Path, *, title: str, told_by: str
) -> None:
    """Draw a confusion matrix, each row in shares of its tokens; same numbers, same bytes.

    Args:
        table: (n_labels, n_labels) tokens; rows are true labels, columns told ones.
        names: of the labels; those that never occur, true or told, are left out.
        path: the SVG that is written.
        title: of the picture.
        told_by: what told the labels.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra, needed for pictures alone
    from matplotlib.figure import Figure  # noqa: PLC0415

    true, told = np.flatnonzero(table.sum(axis=1)), np.flatnonzero(table.sum(axis=0))
    part = table[np.ix_(true, told)]
    size = (MARGINS[0] + CELL * max(4, len(told)), MARGINS[1] + CELL * len(true))
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        _fill_axes(axes, part)
        n_tokens = part.sum(axis=1)
        axes.set_yticks(
            np.arange(len(true)) + 0.5,
            [f"{names[label]}  {n:,}" for label, n in zip(true.tolist(), n_tokens, strict=True)],
        )
        axes.set_xticks(
            np.arange(len(told)) + 0.5,
            [names[label] for label in told.tolist()],
            rotation=45,
            ha="right",
            rotation_mode="anchor",
        )
        axes.set(xlabel=f"told by {told_by}", ylabel="the parser says, tokens")
        figure.suptitle(title, fontsize=10)
        figure.savefig(
            path, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.2
        )


def _fill_axes(axes: Axes, table: NDArray[np.int64]) -> None:
    from matplotlib.colors import LinearSegmentedColormap  # noqa: PLC0415

    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    inks = INKS["light"]
    shades = LinearSegmentedColormap.from_list("shares", [inks.paper, ACCENTS[0]])
    axes.pcolormesh(shares, cmap=shades, vmin=0, vmax=1, edgecolors=inks.rule, linewidth=0.4)
    for (row, column), share in np.ndenumerate(shares):
        if share >= LEAST:
            ink = inks.paper if share > DARK else inks.ink
            text = f"{100 * share:.0f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, size=8)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
