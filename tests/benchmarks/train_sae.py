"""How fast dictionaries are trained, beside the limit of the machine and other trainers.

    python tests/benchmarks/train_sae.py [--peers PYTHON] [--steps 2000] [--k 32] [--write PAGE]

1. The embedded model's activations over the package's sample text are written to a file, untimed.
2. Each trainer runs in a process of its own, on the same batches in the same order: 4,096 features,
   2,048 activations a batch, float32. They take turns, a few steps each, until all have done
   `--steps`; those that wait use no time.
3. The limit is the encoder's matrix product alone: (2,048 x 512) @ (512 x 4,096).
4. The table holds the activations a second of the middle turn, their share of the limit, and the
   share of variance that is missed on 16,384 activations that no trainer has seen.

Other trainers need an environment of their own, given by `--peers`:

    python -m venv peers && peers/bin/pip install sae-lens eai-sparsify && \\
        peers/bin/pip uninstall -y torchvision
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from worker import Worker

from figures.tables import markdown, replace_block
from sae_core import shards
from sae_core.activations import ModelSource
from sae_core.language_model import load_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = Path(shards.__file__).parent / "demo" / "sample.parquet"
TRAINER = Path(__file__).with_name("sae_trainers.py")
OURS, PEERS = ("product", "ours", "dense"), ("saelens", "sparsify")
BATCH = 2048
TURN = 20  # steps
HEAD = (
    "trainer",
    "activations a second",
    "of the limit",
    "ours is so many times as fast",
    "FVU, unseen",
)


class Contestant(Worker):
    """A trainer, that waits for its turn."""

    def __init__(self, python: str, name: str, file: Path, k: int) -> None:
        super().__init__(name, [python, str(TRAINER), name, str(file), str(k)])
        self.seconds: list[float] = []

    def turn(self, n_steps: int) -> None:
        """Let it take so many steps."""
        self.seconds.append(float(self.ask(str(n_steps))) / n_steps)

    def fvu(self) -> float:
        """Ask for the share of variance it misses on what it has not seen, and end it."""
        missed = float(self.ask("fvu"))
        self.end()
        return missed


def main() -> None:
    """Print the table."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "activations.npy"
        np.save(file, _activations(), allow_pickle=False)
        names = [(sys.executable, name) for name in OURS]
        if options.peers:
            names += [(options.peers, name) for name in PEERS]
        contestants = [Contestant(python, name, file, options.k) for python, name in names]
        for _ in range(options.steps // TURN):
            for contestant in contestants:
                contestant.turn(TURN)
        text = _table(contestants, options)
        print(text)
        if options.write:
            replace_block(options.write, "trainers", text)
    if not options.peers:
        print("not run, for want of --peers: " + ", ".join(PEERS), file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help="the interpreter of an environment with other trainers")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument(
        "--folder", help="where activations are written; default: the temporary one"
    )
    parser.add_argument("--write", type=Path, help="a page whose block `trainers` gets the table")
    return parser.parse_args()


def _activations() -> NDArray[np.float16]:
    """Give the sample's activations, mixed; the last ones stay unseen."""
    model = load_model()
    texts = pl.read_parquet(SAMPLE)["text"]
    ids = np.concatenate([[0, *model.encode(bytes(text)).token_ids] for text in texts])
    source = ModelSource(
        model.module,
        ids.astype(np.uint16),
        layer=0,
        batch_size=BATCH,
        block_windows=len(ids) // model.n_ctx - 1,
        seed=0,
    )
    batches = [source.batch(step).half().numpy() for step in range(source.batches_a_block)]
    return np.concatenate(batches)


def _table(contestants: list[Contestant], options: argparse.Namespace) -> str:
    speeds = {each.name: BATCH / median(each.seconds) for each in contestants}
    lines = []
    for each in contestants:
        speed, fvu = speeds[each.name], each.fvu()
        lines.append(
            [
                each.name,
                f"{speed:,.0f}",
                f"{speed / speeds['product']:.2f}",
                f"{speeds['ours'] / speed:.1f}",
                "" if each.name == "product" else f"{fvu:.4f}",
            ]
        )
    title = (
        f"d_in 512, d_sae 4,096, k {options.k}, batch {BATCH:,}, float32, "
        f"{options.steps:,} steps, {os.cpu_count()} cores:"
    )
    return f"{title}\n\n{markdown(HEAD, lines, n_words=1)}"


if __name__ == "__main__":
    main()
