"""Trainers for `train_sae.py`, one a process: a number of steps in, the seconds they took out.

    python tests/benchmarks/sae_trainers.py NAME ACTIVATIONS.npy K

Each is its package's own TopK trainer step, with its own defaults, at one learning rate; nothing but
torch and numpy is imported beside the package that is timed.
"""

# ruff: noqa: PLC0415 - each process imports the one package that it times
from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch

D_IN, D_SAE, BATCH, N_UNSEEN = 512, 4096, 2048, 16_384
LR = 1e-3


class Batches:
    """The file's rows in their order, again and again, but for the last ones."""

    def __init__(self, path: str) -> None:
        self.rows = np.load(path, mmap_mode="r", allow_pickle=False)
        self.n = (len(self.rows) - N_UNSEEN) // BATCH
        self.step = 0

    def next(self) -> torch.Tensor:
        """Give (2048, 512) float32."""
        at = self.step % self.n * BATCH
        self.step += 1
        return torch.from_numpy(self.rows[at : at + BATCH].astype(np.float32))

    def unseen(self) -> torch.Tensor:
        """Give the rows that are never trained on."""
        return torch.from_numpy(self.rows[-N_UNSEEN:].astype(np.float32))


class Product:
    """No trainer: the encoder's matrix product alone."""

    def __init__(self, first: torch.Tensor, k: int) -> None:  # noqa: ARG002
        self.W = torch.randn(D_IN, D_SAE)
        self.out = torch.empty(BATCH, D_SAE)

    def step(self, x: torch.Tensor) -> None:
        """Multiply."""
        torch.mm(x, self.W, out=self.out)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Give nothing of use."""
        return x


class Ours:
    """The sparse trainer."""

    def __init__(self, first: torch.Tensor, k: int) -> None:
        from sae_core.learner import Learner
        from sae_core.sparse_engine import threads
        from sae_core.train_settings import TrainSaeConfig

        config = TrainSaeConfig(D_IN, D_SAE, k, n_activations=1 << 40, lr=LR)
        self.threads = threads
        self.learner = Learner(config, first, torch.device("cpu"))
        self.n = 0

    def step(self, x: torch.Tensor) -> None:
        """Train."""
        self.n += 1
        with self.threads(1):
            self.learner.look(x)
            self.learner.learn(self.n, min(1.0, self.n / 200))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct."""
        return self.learner.finished("")(x)


class Dense:
    """TopK in plain PyTorch: automatic gradients, fused Adam, unit rows."""

    def __init__(self, first: torch.Tensor, k: int) -> None:
        self.k = k
        self.scale = float(1 / (first - first.mean(0)).square().sum(1).mean().sqrt())
        dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1)
        self.enc, self.dec = (part.requires_grad_() for part in (dec.T.clone(), dec))
        self.b_enc = torch.zeros(D_SAE, requires_grad=True)
        self.b_dec = (first.mean(0) * self.scale).requires_grad_()
        weights = [self.enc, self.b_enc, self.dec, self.b_dec]
        self.optimiser = torch.optim.Adam(weights, lr=LR, fused=True)

    def step(self, x: torch.Tensor) -> None:
        """Train."""
        x = x * self.scale
        loss = (x - self._through(x)).square().sum() / len(x)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.dec.copy_(torch.nn.functional.normalize(self.dec, dim=1))

    def _through(self, x: torch.Tensor) -> torch.Tensor:
        values, at = torch.relu((x - self.b_dec) @ self.enc + self.b_enc).topk(self.k, sorted=False)
        acts = torch.zeros(len(x), D_SAE).scatter(1, at, values)
        return acts @ self.dec + self.b_dec

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct."""
        return self._through(x * self.scale) / self.scale


class SaeLens:
    """SAELens' TopK trainer: its own training pass and losses, Adam."""

    def __init__(self, first: torch.Tensor, k: int) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

        config = TopKTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            k=k,
            rescale_acts_by_decoder_norm=False,
            apply_b_dec_to_input=True,
        )
        self.sae = TopKTrainingSAE(config)
        self.scale = float(1 / (first - first.mean(0)).square().sum(1).mean().sqrt())
        self.optimiser = torch.optim.Adam(self.sae.parameters(), lr=LR)
        self.since = torch.zeros(D_SAE)
        self.n = 0

    def step(self, x: torch.Tensor) -> None:
        """Train."""
        from sae_lens.saes.sae import TrainStepInput

        self.sae.train()
        given = TrainStepInput(
            sae_in=x * self.scale,
            coefficients={},
            dead_neuron_mask=self.since > 1000,
            n_training_steps=self.n,
            is_logging_step=False,
        )
        out = self.sae.training_forward_pass(given)
        self.optimiser.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.optimiser.step()
        acts = out.feature_acts.detach()
        acts = acts.to_dense() if acts.is_sparse else acts
        self.since = torch.where((acts > 0).any(dim=0), 0, self.since + 1)
        self.n += 1

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct."""
        self.sae.eval()
        return self.sae(x * self.scale) / self.scale


class Sparsify:
    """EleutherAI's sparsify: its sparse coder's own loss, and Adam."""

    def __init__(self, first: torch.Tensor, k: int) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        self.sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=k), device="cpu")
        self.scale = float(1 / (first - first.mean(0)).square().sum(1).mean().sqrt())
        self.sae.b_dec.data = (first * self.scale).mean(0)
        self.optimiser = torch.optim.Adam(self.sae.parameters(), lr=LR)

    def step(self, x: torch.Tensor) -> None:
        """Train."""
        loss = self.sae(x * self.scale).fvu
        self.optimiser.zero_grad()
        loss.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimiser.step()
        self.sae.set_decoder_norm_to_unit_norm()

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct."""
        return self.sae(x * self.scale).sae_out / self.scale


TRAINERS: dict[str, Any] = {
    "product": Product,
    "ours": Ours,
    "dense": Dense,
    "saelens": SaeLens,
    "sparsify": Sparsify,
}


def main() -> None:
    """Answer lines of stdin; answers start with `= `, as a library may print what it likes."""
    name, path, k = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.manual_seed(0)
    batches = Batches(path)
    first = torch.cat([batches.next() for _ in range(2)])
    batches.step = 0
    trainer = TRAINERS[name](first, k)
    print("= ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "fvu":
            print(f"= {_fvu(trainer, batches.unseen())}", flush=True)
            continue
        seconds = 0.0
        for _ in range(int(line)):
            batch = batches.next()
            started = time.perf_counter()
            trainer.step(batch)
            seconds += time.perf_counter() - started
        print(f"= {seconds}", flush=True)


@torch.no_grad()
def _fvu(trainer: Any, x: torch.Tensor) -> float:
    missed = sum(
        float((part - trainer.reconstruct(part)).square().sum()) for part in x.split(BATCH)
    )
    return missed / float((x - x.mean(0)).square().sum())


if __name__ == "__main__":
    main()
