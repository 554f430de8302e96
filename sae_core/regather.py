"""A run's own model at work again: its neurons on its text, or its dictionary on other text.

1. The model and dictionary that the run names are loaded; other weights than its own are refused.
2. For neurons, documents are rebuilt from the run's tokens and written to a table.
3. Texts are gathered with activations only: every document is held out, so that nothing is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from sae_core.errors import ModelError, StoreMismatchError
from sae_core.files import write_parquet
from sae_core.gather import gather
from sae_core.language_model import OneLayerModel, load_model
from sae_core.sae import SparseAutoencoder, load_sae
from sae_core.store import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

ALL = 1 - 2**-33  # a share of held-out documents that leaves none to count
# Neurons are dense: sums of their pairs would be large, and nobody asks for them.


class Reader(NamedTuple):
    """What made a run."""

    model: OneLayerModel

    sae: SparseAutoencoder

    hook_point: str
    """Where in the model the dictionary reads."""


def gather_neurons(
    run: Path,
    documents: Mapping[int, bytes],
    out: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a run of the neurons' activations on documents of another run.

    Args:
        run: the run whose model and hook point are used.
        documents: the bytes of each, by its id in that run.
        out: the new run; its documents are called by those ids.
        progress: is called with the bytes of text read so far.

    Returns:
        The new run.

    Raises:
        ModelError: the run was made elsewhere, or its model is not here.
        StoreMismatchError: the model's weights are not those that made the run.
    """
    model, at = _model_of(run)
    table = out.with_name(f"{out.name}.texts.parquet")
    rows = {"source": [str(doc_id) for doc_id in documents], "text": list(documents.values())}
    write_parquet(table, pl.DataFrame(rows, schema={"source": pl.String, "text": pl.Binary}))
    neurons = load_sae("neurons", model=model, hook_point=at)
    gather([table], out=out, model=model, sae=neurons, held_out=ALL, progress=progress)
    table.unlink(missing_ok=True)
    return out


def gather_like(run: Path, texts: Sequence[str], out: Path) -> Path:
    """Write a run of other texts, read with the model and dictionary of a run.

    Args:
        run: the run that names them.
        texts: files, folders, globs or "-".
        out: the new run.

    Returns:
        The new run.

    Raises:
        ModelError, SaeError: the run was made elsewhere, or its model or dictionary is not here.
        StoreMismatchError: their weights are not those that made the run.
        TextError: nothing to read.
    """
    reader = reader_of(run)
    gather(
        texts,
        out=out,
        model=reader.model,
        sae=reader.sae,
        hook_point=reader.hook_point,
        held_out=ALL,
    )
    return out


def reader_of(run: Path) -> Reader:
    """Load the model and the dictionary that made a run.

    Raises:
        ModelError, SaeError: the run was made elsewhere, or its model or dictionary is not here.
        StoreMismatchError: their weights are not those that made the run.
    """
    model, at = _model_of(run)
    settings = read_manifest(run).settings
    sae = load_sae(settings["sae"], model=model, hook_point=at)
    if sae.weights_hash != settings["sae_hash"]:
        raise StoreMismatchError(f"SAE {sae.name} has changed since {run} was made; gather again")
    return Reader(model, sae, at)


def _model_of(run: Path) -> tuple[OneLayerModel, str]:
    settings = read_manifest(run).settings
    if not settings.get("model_hash"):
        raise ModelError(
            f"{run} was made elsewhere and names no model; what needs one cannot be had here"
        )
    model = load_model(settings["model"])
    if model.weights_hash != settings["model_hash"]:
        raise StoreMismatchError(
            f"model {model.name} has changed since {run} was made; gather again"
        )
    return model, str(settings["hook_point"])
