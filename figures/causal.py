"""How well the weights tell what ablation does to edges: docs/causal.md, .json and .svg, remade.

    python -m figures.causal circuits-demo/run

1. Edges are chosen at random, as many from each tenth of the order by score.
2. Their effect is measured twice, by draws that share nothing. The rank correlation of the halves,
   Spearman-Brown corrected, is the reliability of their mean; its square root is the correlation
   that a perfect prediction would have with that mean.
3. Predictions are correlated with the mean; intervals are 95 % ones, edges drawn with replacement.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy import stats

from circuits.build import build_graph
from circuits.effects import edges_by_decile
from circuits.palette import ACCENTS, INKS
from figures.tables import block, markdown, replace_block
from sae_core.console import say
from sae_core.files import write_json, write_text
from sae_core.run_effects import N_DRAWS, EffectMeter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

DOCS = Path(__file__).parents[1] / "docs"
N_EACH = 30  # edges of each tenth
HALVES = (1, 2)  # seeds of the draws
PREDICTIONS = {
    "predicted": "`predicted`: the weights, on the run's unigram",
    "predicted_in_context": "`predicted_in_context`: the nats given to tokens that came, where they were in doubt",
    "score": "`score`, by which edges are ordered",
    "promoted_nats": "`promoted_nats`",
    "p_target_given_source": "`p_target_given_source`",
}
DRAWN = "predicted_in_context"
MEASURED = ("causal", "causal_stderr", "half_1", "half_2")
N_RESAMPLES = 1000
N_CLEAR = 2  # standard errors from 0
LINEAR = 1e-3  # effects below are drawn on a linear scale
DIGITS = 7


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the three files."""
    parser = argparse.ArgumentParser(prog="python -m figures.causal", description=__doc__)
    parser.add_argument("run", type=Path, help="Run directory with its model and activations.")
    parser.add_argument("--each", type=int, default=N_EACH, help="Edges of each tenth.")
    parser.add_argument("--draws", type=int, default=N_DRAWS, help="Draws a source and half.")
    parser.add_argument("--docs", type=Path, default=DOCS, help="Folder to write to.")
    given = parser.parse_args(words)
    edges = compute(given.run, n_each=given.each, n_draws=given.draws)
    found = summary(edges) | {"n_draws": given.draws}
    kept = edges.select("source", "target", "decile", *PREDICTIONS, *MEASURED).to_dicts()
    rows = [{name: _rounded(value) for name, value in row.items()} for row in kept]
    write_json(given.docs / "causal.json", {"summary": found, "edges": rows})
    page = given.docs / "causal.md"
    if not page.is_file():
        write_text(page, f"# Causal effects\n\n{block('causal', '')}\n")
    replace_block(page, "causal", page_text(found, edges))
    draw(edges, given.docs / "causal.svg")
    say(f"{page}: in context {found['correlations'][DRAWN][0]:.3f}")


def compute(run: Path, *, n_each: int, n_draws: int) -> pl.DataFrame:
    """Measure edges of each tenth, twice.

    Args:
        run: with its model and kept activations; its graph is built anew.
        n_each: edges of each tenth of the order by score.
        n_draws: tokens drawn for each source in each half.

    Returns:
        Columns of `edges`, causal and causal_stderr filled, and decile, half_1, half_2.
    """
    meter = EffectMeter(run)
    graph = build_graph(run)
    chosen = edges_by_decile(graph.edges, n_each)
    halves = [meter.measure(chosen, n_draws=n_draws, seed=seed) for seed in HALVES]
    first, second = (half["causal"] for half in halves)
    errors = [half["causal_stderr"] for half in halves]
    return chosen.with_columns(
        ((first + second) / 2).alias("causal"),
        ((errors[0] ** 2 + errors[1] ** 2) ** 0.5 / 2).alias("causal_stderr"),
        first.alias("half_1"),
        second.alias("half_2"),
    )


def summary(edges: pl.DataFrame) -> dict[str, Any]:
    """Give how reliable the effects are, and how well each prediction orders them.

    Args:
        edges: as `compute` gives them.

    Returns:
        n_edges, n_sources, halves, reliability, ceiling; correlations: name -> value, low, high.
    """
    halves = _rank_correlation(edges["half_1"].to_numpy(), edges["half_2"].to_numpy())
    reliability = 2 * halves / (1 + halves)
    return {
        "n_edges": len(edges),
        "n_sources": edges["source"].n_unique(),
        "halves": _rounded(halves),
        "reliability": _rounded(reliability),
        "ceiling": _rounded(max(reliability, 0.0) ** 0.5),
        "correlations": {
            name: _with_interval(edges[name].to_numpy(), edges["causal"].to_numpy())
            for name in PREDICTIONS
        },
    }


def page_text(found: dict[str, Any], edges: pl.DataFrame) -> str:
    """Give the block of docs/causal.md."""
    reliability, ceiling = found["reliability"], found["ceiling"]
    rows = [
        (
            words,
            f"{value:.3f}",
            f"{low:.3f} to {high:.3f}",
            *(f"{value / limit:.2f}" if limit > 0 else "" for limit in (reliability, ceiling)),
        )
        for name, words in PREDICTIONS.items()
        for value, low, high in [found["correlations"][name]]
    ]
    head = ("prediction", "Spearman", "95 % interval", "over reliability", "over its root")
    intro = (
        "What the graph says of an edge before any intervention, beside what ablation of its source "
        "does to P(target fires at the next token), a firing of the source: "
        f"{found['n_edges']} edges, as many from each tenth of the order by score, "
        f"{found['n_sources']} sources, two halves of {found['n_draws']:,} draws a source."
    )
    limit = (
        f"The halves correlate by {found['halves']:.3f} (Spearman), so that their mean has a "
        f"reliability of {reliability:.3f} (Spearman-Brown); a perfect prediction would correlate "
        f"with it by {ceiling:.3f}, the root of that."
    )
    tenths = (
        "By tenth of the order by score, and in the picture, what is predicted in context; *clear*: "
        "more than two standard errors from 0."
    )
    picture = "![Measured effect over predicted effect, an edge a dot](causal.svg)"
    table = markdown(head, rows, n_words=1)
    return "\n\n".join((intro, limit, table, tenths, _decile_table(edges), picture))


def draw(edges: pl.DataFrame, path: Path) -> None:
    """Draw measured effects over predicted ones; same numbers, same bytes.

    Args:
        edges: as `compute` gives them.
        path: the SVG that is written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra, needed for this picture alone
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "causal-effects", "font.size": 10}
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        _fill_axes(figure.add_subplot(), edges)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _fill_axes(axes: Axes, edges: pl.DataFrame) -> None:
    groups = (("best tenth", 1, 1, "o"), ("2nd to 5th", 2, 5, "s"), ("6th to 10th", 6, 10, "^"))
    for at, (words, low, high, marker) in enumerate(groups):
        part = edges.filter(pl.col("decile").is_between(low, high))
        axes.errorbar(
            part[DRAWN],
            part["causal"],
            yerr=part["causal_stderr"],
            fmt=marker,
            ms=4,
            lw=0.6,
            color=ACCENTS[at],
            alpha=0.7,
            label=words,
        )
    soft = INKS["light"].soft
    axes.axline((0, 0), slope=1, color=soft, lw=0.8, ls="--")
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set(
        xlabel="rise of P(target), predicted in context",
        ylabel="measured rise of P(target), by ablation",
    )
    axes.spines[["top", "right"]].set_visible(False)


def _decile_table(edges: pl.DataFrame) -> str:
    rows = []
    for part in edges.partition_by("decile", maintain_order=True):
        causal, predicted = part["causal"].to_numpy(), part[DRAWN].to_numpy()
        clear = np.abs(causal) > N_CLEAR * part["causal_stderr"].to_numpy()
        halves = _rank_correlation(part["half_1"].to_numpy(), part["half_2"].to_numpy())
        rows.append(
            (
                *(str(part["decile"][0]), str(len(part))),
                *(f"{np.median(predicted):.5f}", f"{np.median(causal):.5f}"),
                *(f"{np.median(part['causal_stderr'].to_numpy()):.5f}", f"{clear.mean():.0%}"),
                *(f"{halves:.2f}", f"{_rank_correlation(predicted, causal):.2f}"),
            )
        )
    head = (
        *("tenth", "edges", "predicted, median", "measured, median", "standard error, median"),
        *("clear", "Spearman of the halves", "Spearman of predicted"),
    )
    return markdown(head, rows, n_words=0)


def _with_interval(
    prediction: NDArray[np.float64], causal: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Give the rank correlation and its 95 % interval."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(causal), (N_RESAMPLES, len(causal)))
    values = [_rank_correlation(prediction[rows], causal[rows]) for rows in draws]
    low, high = np.nanquantile(values, (0.025, 0.975))
    value = _rank_correlation(prediction, causal)
    return _rounded(value), _rounded(float(low)), _rounded(float(high))


def _rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Give Spearman's correlation; 0 where one of the two does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


def _rounded(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
