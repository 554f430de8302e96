"""Causal effects of a run's edges: its own model and dictionary at work on its own text.

1. The model and dictionary that the run names are loaded; other weights than its own are refused.
2. Positions at which the sources fire are drawn (`sae_core.draw_plan`) from the documents that the
   graph is made of: those that are not held out.
3. Their windows are read again as they were gathered. One forward pass of a window serves all its
   draws; each draw reads one token more (`sae_core.causal`).
4. What was measured is kept in `graph/causal.parquet` (source, target, causal, causal_stderr,
   n_draws) with its settings in `graph/causal.json`; with the same settings it is not measured again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sae_core.causal import EdgeSums, draw_next
from sae_core.draw_plan import ReadWindows, batches, plan_draws, portions
from sae_core.files import read_json, read_parquet, write_json, write_parquet
from sae_core.regather import reader_of
from sae_core.store import read_manifest, read_tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

N_DRAWS = 1000  # of each source: a standard error of about 0.01 where a firing moves half the mass
BATCH_WINDOWS = 8
ENTRIES_AT_ONCE = 1 << 22  # next-token probabilities held at once: 32 MB a table of float64
KEY = ["source", "target"]
EFFECT_SCHEMA: dict[str, Any] = {
    "source": pl.UInt32,
    "target": pl.UInt32,
    "causal": pl.Float64,
    "causal_stderr": pl.Float64,
    "n_draws": pl.Int64,
}


def measure_effects(
    run: str | PathLike[str],
    edges: pl.DataFrame,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> pl.DataFrame:
    """Measure what ablating the source does to the target, for edges of a run; see `EffectMeter`.

    Args:
        run: the run directory; its model and dictionary must be here.
        edges: source, target; each edge once.
        n_draws: tokens drawn for each source, >= 2.
        seed: of the draws.
        progress: is called with the draws done so far.

    Returns:
        source, target, causal, causal_stderr, n_draws; `circuits.build_graph` takes it.
    """
    meter = EffectMeter(Path(run))
    return meter.measure(edges, n_draws=n_draws, seed=seed, progress=progress)


class EffectMeter:
    """What measures the edges of one run: model, dictionary and tokens, loaded once."""

    def __init__(self, run: Path) -> None:
        """Load; nothing is measured yet.

        Raises:
            ModelError, SaeError: the run was made elsewhere, or its model or dictionary is not here.
            StoreMismatchError: their weights are not those that made the run.
            StoreError: the run keeps no activations, or is damaged.
        """
        self.run = run
        self.manifest = read_manifest(run)
        self.reader = reader_of(run)
        self.tokens = read_tokens(run, held_out=False)
        self.windows = ReadWindows.of(
            self.tokens,
            warm_up=int(self.manifest.settings["warm_up"]),
            has_start=self.reader.model.start_token is not None,
        )

    def measure(
        self,
        edges: pl.DataFrame,
        *,
        n_draws: int = N_DRAWS,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> pl.DataFrame:
        """Measure the effects of edges; see `sae_core.causal`.

        Args:
            edges: source, target; each edge once.
            n_draws: tokens drawn for each source, >= 2.
            seed: the same seed gives the same draws, whatever other edges are asked for.
            progress: is called with the draws done so far.

        Returns:
            source, target, causal (change of P(target at the next token) by a firing of the
            source), causal_stderr, n_draws, in the order of `edges`; null where the source never
            fires before a token.

        Raises:
            ValueError: n_draws is below 2.
        """
        if n_draws < 2:
            raise ValueError(f"n_draws must be >= 2, for a standard error, got {n_draws}")
        source, target = (edges[name].to_numpy() for name in KEY)
        model, sae, hook_point = self.reader
        sums = EdgeSums(source, target, self.manifest.d_sae)
        planned = plan_draws(
            self.tokens, self.windows, np.unique(source), n_draws=n_draws, seed=seed
        )
        n_columns = max(1, ENTRIES_AT_ONCE // (BATCH_WINDOWS * model.d_vocab))
        n_done = 0
        for chosen, draws in batches(planned, BATCH_WINDOWS):
            read = self.windows.token_ids(self.tokens, chosen, model.start_token)
            ids = torch.from_numpy(read)
            state = model.run_to_hook(ids, hook_point)
            for part in portions(draws, n_columns):
                drawn = draw_next(model, sae, ids, state, part, hook_point=hook_point)
                sums.add(part.sources, drawn)
            n_done += len(draws.rows)
            if progress:
                progress(n_done)
        columns = (source, target, *sums.effects())
        rows = dict(zip(EFFECT_SCHEMA, columns, strict=True))
        return pl.DataFrame(rows, schema=EFFECT_SCHEMA).fill_nan(None)

    def measure_once(
        self, edges: pl.DataFrame, *, progress: Callable[[int], None] | None = None
    ) -> pl.DataFrame:
        """Give the effects of edges as `measure` does; those that the run keeps are only read.

        Raises:
            StoreError: what is kept is damaged, or the run cannot be written.
        """
        kept, missing = self._kept(), self.missing(edges)
        if len(missing):
            kept = pl.concat([kept, self.measure(missing, progress=progress)]).sort(KEY)
            table, settings = self._files
            settings.unlink(missing_ok=True)  # a table without settings is not read
            write_parquet(table, kept.rechunk())
            write_json(settings, self._settings)
        return edges.select(KEY).join(kept, on=KEY, how="left", maintain_order="left")

    def missing(self, edges: pl.DataFrame) -> pl.DataFrame:
        """Give source and target of the edges whose effects the run does not keep."""
        return edges.select(KEY).join(self._kept(), on=KEY, how="anti", maintain_order="left")

    def _kept(self) -> pl.DataFrame:
        """Give the effects that the run keeps; none where they are of other draws or another text."""
        table, settings = self._files
        if table.is_file() and settings.is_file() and read_json(settings) == self._settings:
            return read_parquet(table)
        return pl.DataFrame(schema=EFFECT_SCHEMA)

    @property
    def _files(self) -> tuple[Path, Path]:
        return self.run / "graph" / "causal.parquet", self.run / "graph" / "causal.json"

    @property
    def _settings(self) -> dict[str, Any]:
        return {"run": self.manifest.to_json()["checksum"], "n_draws": N_DRAWS, "seed": 0}
