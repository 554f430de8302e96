"""How long gather takes beside the model and one matrix product, on tokenised text.

    python tests/benchmarks/gather.py [--tokens 200000] [--rounds 5] [--sae DIR] [--only NAME]

1. The package's sample text is cut into windows, untimed.
2. The floor: the embedded model's forward to the hook point over those windows, in gather's batch
   shape, and one product acts @ W_enc with 4,096 columns over the recorded tokens (over all
   positions read, warm-up and padding too, in the row `floor, all positions`).
3. Ours: all that `circuits gather` does after tokenising, from the windows to a complete run on
   disk: forward, dictionary, promotions, token tables, sums, checksums, manifest, merged sums.
4. Floor and ours take turns in one process; the table holds least and middle seconds, and the ratio
   is of the least.

Two dictionaries are random: unit directions, the encoder their transpose; one keeps 16 features a
token (TopK), one those above a threshold that lets 16 through on average. Their features fire with
each other at random, so that nearly every pair is seen and the tables of pairs are as large as they
can be: they are the worst case of counting. Those that the package ships follow, as the usual case, and
one of your own (`--sae`), whose floor is a product with as many columns as it has features.
Other programs (TransformerLens, SAELens) are named when they are not installed; none is timed here.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import resource
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
import polars as pl
import torch

from sae_core import shards, statistics
from sae_core.corpus import Document, DocumentPlan
from sae_core.gather import WARM_UP_SHARE, _Gatherer
from sae_core.language_model import OneLayerModel, load_model
from sae_core.logits import LogitEffects
from sae_core.sae import SaeConfig, SparseAutoencoder, embedded_saes, load_sae
from sae_core.schema import GatherSettings
from sae_core.shards import BATCH_WINDOWS
from sae_core.store import Manifest
from sae_core.window_stream import WindowRow, iter_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLE = Path(shards.__file__).parent / "demo" / "sample.parquet"
HOOK = "blocks.0.mlp.hook_post"
D_SAE, K = 4096, 16
GOAL = 1.6


class Times(NamedTuple):
    """What one dictionary took, in seconds, a round each."""

    forward: list[float]
    product: list[float]
    product_all: list[float]
    ours: list[float]
    parts: dict[str, list[float]]


def main() -> None:
    """Print the table."""
    options = _options()
    model = load_model()
    windows = _windows(model, options.tokens)
    n_tokens = sum(len(row.token_ids) - row.n_warm for row in windows)
    print(f"{n_tokens} tokens in {len(windows)} windows, {torch.get_num_threads()} torch threads")
    for sae in _dictionaries(model, windows, options.sae):
        if not sae.name.startswith(options.only or ""):
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            times = _times(model, sae, windows, Path(folder), options.rounds)
        _print_table(sae, times, n_tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory {peak:.0f} MB")
    for name in ("transformer_lens", "sae_lens"):
        _say_whether(name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="the dictionaries whose name starts so, e.g. topk or A/")
    parser.add_argument("--sae", help="a folder with one more dictionary for the embedded model")
    parser.add_argument("--folder", help="where the runs are written; default: the temporary one")
    return parser.parse_args()


def _windows(model: OneLayerModel, max_tokens: int) -> list[WindowRow]:
    texts = pl.read_parquet(SAMPLE).sample(fraction=1.0, shuffle=True, seed=0)
    documents = (
        Document(row["source"], row["text"], f"{at:064x}")
        for at, row in enumerate(texts.iter_rows(named=True))
    )
    return list(
        iter_windows(
            documents,
            model.encode,
            n_first=model.n_ctx - 1,
            n_ctx=model.n_ctx,
            warm_up=int(model.n_ctx * WARM_UP_SHARE),
            held_out=0.0,
            max_tokens=max_tokens,
        )
    )


def _dictionaries(
    model: OneLayerModel, windows: list[WindowRow], folder: str | None
) -> Iterator[SparseAutoencoder]:
    d_in = model.width(HOOK)
    directions = np.random.default_rng(0).standard_normal((D_SAE, d_in), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ids, kept = _batch(windows[:BATCH_WINDOWS], model)
    x = model.run_to_hook(ids, HOOK).acts[kept]
    for config in (SaeConfig(d_in, D_SAE, "topk", K), SaeConfig(d_in, D_SAE, "jumprelu")):
        sae = SparseAutoencoder(config)
        sae.name = f"topk {K}" if config.k else f"threshold, {K} on average"
        with torch.no_grad():
            sae.W_dec.copy_(torch.from_numpy(directions))
            sae.W_enc.copy_(sae.W_dec.T)
            if config.k is None:
                pre_acts = (x @ sae.W_enc).flatten().sort(descending=True).values
                sae.threshold.fill_(float(pre_acts[K * len(x)]))
        yield sae.requires_grad_(requires_grad=False).eval()
    for name in [*embedded_saes(), *([folder] if folder else [])]:
        yield load_sae(name)


def _batch(windows: list[WindowRow], model: OneLayerModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ids and the recorded positions of a batch: (BATCH_WINDOWS, n_ctx) each."""
    ids = np.zeros((BATCH_WINDOWS, model.n_ctx), np.int64)
    kept = np.zeros(ids.shape, np.bool_)
    for at, row in enumerate(windows):
        lead = int(row.first == 0)
        ids[at, lead : lead + len(row.token_ids)] = row.token_ids
        kept[at, lead + row.n_warm : lead + len(row.token_ids)] = True
    return torch.from_numpy(ids), torch.from_numpy(kept)


def _times(
    model: OneLayerModel,
    sae: SparseAutoencoder,
    windows: list[WindowRow],
    folder: Path,
    rounds: int,
) -> Times:
    size = BATCH_WINDOWS
    batches = [_batch(windows[at : at + size], model) for at in range(0, len(windows), size)]
    times = Times([], [], [], [], defaultdict(list))
    _gather(model, sae, windows[: 2 * size], folder / "warm")  # compiles and loads
    _floor(model, sae, batches[:2])
    for at in range(rounds):
        for kept, new in zip(times[:3], _floor(model, sae, batches), strict=True):
            kept.append(new)
        gc.collect()
        parts: dict[str, float] = defaultdict(float)
        with _measured(parts):
            begin = time.perf_counter()
            _gather(model, sae, windows, folder / f"run{at}")
            times.ours.append(time.perf_counter() - begin)
        for name, seconds in parts.items():
            times.parts[name].append(seconds)
    return times


def _floor(
    model: OneLayerModel,
    sae: SparseAutoencoder,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[float, float, float]:
    """Time the forward passes, the products over recorded tokens, and over all positions."""
    spent = [0.0, 0.0, 0.0]
    with torch.inference_mode():
        for ids, kept in batches:
            begin = time.perf_counter()
            acts = model.run_to_hook(ids, HOOK).acts
            spent[0] += time.perf_counter() - begin
            for at, rows in ((1, acts[kept]), (2, acts.flatten(0, 1))):
                begin = time.perf_counter()
                torch.mm(rows, sae.W_enc)
                spent[at] += time.perf_counter() - begin
    return spent[0], spent[1], spent[2]


def _gather(
    model: OneLayerModel, sae: SparseAutoencoder, windows: list[WindowRow], run: Path
) -> None:
    settings = GatherSettings(
        model=model.name,
        model_hash="",
        tokenizer_hash="",
        sae=sae.name,
        sae_hash="",
        hook_point=HOOK,
        d_sae=sae.config.d_sae,
        d_vocab=model.d_vocab,
        n_ctx=model.n_ctx,
        warm_up=int(model.n_ctx * WARM_UP_SHARE),
        held_out=0.0,
        max_tokens=None,
        keep_acts=True,
        documents_hash="",
    )
    run.mkdir()
    plan = DocumentPlan((), skip_bad_rows=False)
    worker = _Gatherer(run, settings, model, sae, plan)
    manifest = Manifest(sae.config.d_sae, model.d_vocab, complete=False)
    worker.work(manifest, iter(windows), None)


def _parts() -> list[tuple[str, Any, str]]:
    """List what is timed by itself: what it is called, where it lives, its name there."""
    return [
        ("forward", OneLayerModel, "run_to_hook"),
        ("dictionary", SparseAutoencoder, "encode_sparse"),
        ("norm's scale", OneLayerModel, "final_scale"),
        ("medians of the logit effects", LogitEffects, "of"),
        ("promotions", LogitEffects, "promotions"),
        ("token tables", shards, "write_tokens"),
        ("counting", statistics, "collect"),
        ("writing sums", statistics, "save"),
        ("checksums", shards, "sha256_of"),
        ("merging at the end", _Gatherer, "_finish"),
    ]


@contextmanager
def _measured(spent: dict[str, float]) -> Iterator[None]:
    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[name] += time.perf_counter() - begin

        return call

    with ExitStack() as stack:
        for name, home, attribute in _parts():
            call = timed(getattr(home, attribute), name)
            replaced = staticmethod(call) if (home, attribute) == (LogitEffects, "of") else call
            stack.enter_context(mock.patch.object(home, attribute, replaced))
        yield


def _print_table(sae: SparseAutoencoder, times: Times, n_tokens: int) -> None:
    floors = [a + b for a, b in zip(times.forward, times.product, strict=True)]
    floors_all = [a + b for a, b in zip(times.forward, times.product_all, strict=True)]
    rows = {
        "model's forward": times.forward,
        "one product acts @ W_enc": times.product,
        "floor: forward and product": floors,
        "floor, all positions": floors_all,
        "gather": times.ours,
    }
    rows |= {f"  {name}": seconds for name, seconds in times.parts.items()}
    least = min(floors)
    print(f"\n{sae.name}: {sae.config.d_sae} features\n")
    print(f"| {'part':30} | least s | middle s | us a token | x floor |")
    print(f"|{'-' * 32}|---------|----------|------------|---------|")
    for name, seconds in rows.items():
        low, middle = min(seconds), float(np.median(seconds))
        each = low / n_tokens * 1e6
        print(f"| {name:30} | {low:7.3f} | {middle:8.3f} | {each:10.2f} | {low / least:7.2f} |")
    ratio = min(times.ours) / least
    print(f"\ngather / floor = {ratio:.2f} (goal: at most {GOAL})")


def _say_whether(name: str) -> None:
    """Say whether another program is here to compare with."""
    found = importlib.util.find_spec(name) is not None
    print(f"{name}: {'installed' if found else 'not installed'}, not timed")


if __name__ == "__main__":
    main()
