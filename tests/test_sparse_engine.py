"""The compiled engine against the one of tensors, and that one against torch's own gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from sae_core import screening, sparse_engine
from sae_core.active import Active, Aid, Missed
from sae_core.sparse_engine import CpuEngine, TorchEngine
from sae_core.train_loops import Rates

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

N, D_IN, D_SAE = 60, 12, 80
ENDS = ([D_SAE], [5, 40, D_SAE])


@pytest.fixture(autouse=True, params=["full", "screened"])
def _product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "screened":
        monkeypatch.setattr(screening, "LEAST_FEATURES", 1)
        monkeypatch.setattr(screening, "has_bfloat16_products", lambda: True)


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def density(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_engine, "DENSE", request.param)


def engine(kind: type[TorchEngine], seed: int = 0) -> TorchEngine:
    generator = torch.Generator().manual_seed(seed)
    enc, dec = torch.randn(2, D_SAE, D_IN, generator=generator)
    made = kind(enc, functional.normalize(dec, dim=1), print)
    made.b_enc.copy_(torch.randn(D_SAE, generator=generator) * 0.3)
    made.weights_changed()
    return made


def batch(seed: int = 0) -> Tensor:
    return torch.randn(N, D_IN, generator=torch.Generator().manual_seed(100 + seed))


def rates(step: int = 1, lr: float = 1e-2, beta1: float = 0.9) -> Rates:
    return Rates(lr, beta1, 0.999, 2 / N, step)


def assert_same(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


CHOICES: list[Callable[[TorchEngine, Tensor], Active]] = [
    lambda made, x: made.largest(x, 1),
    lambda made, x: made.largest(x, 7),
    lambda made, x: made.above(x, torch.full((D_SAE,), 2.0)),
    lambda made, x: made.above(x, torch.linspace(0, 30, D_SAE)),
    lambda made, x: made.above(x, torch.full((D_SAE,), 1e9)),
]


@pytest.mark.parametrize("choose", CHOICES)
def test_both_engines_find_the_same_features(
    choose: Callable[[TorchEngine, Tensor], Active],
) -> None:
    found = [choose(engine(kind), batch()) for kind in (TorchEngine, CpuEngine)]
    assert_same(*found)
    rows = found[0].rows()
    pairs = list(zip(rows.tolist(), found[0].ids.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.usefixtures("density")
def test_both_engines_miss_the_same(
    choose: Callable[[TorchEngine, Tensor], Active], ends: list[int]
) -> None:
    x = batch()
    active = choose(engine(TorchEngine), x)
    assert_same(*(engine(kind).reconstruct(x, active, ends) for kind in (TorchEngine, CpuEngine)))


def aid_of(made: TorchEngine, x: Tensor, active: Active) -> Aid:
    """Let the features that fire nowhere reconstruct the first rows."""
    silent = torch.ones(D_SAE, dtype=torch.bool)
    silent[active.ids] = False
    assert silent.any()
    found = made.above(x[:7], torch.where(silent, 0.0, 1e9))
    missed = made.reconstruct(x[:7], found, [D_SAE])
    return Aid(found, missed.miss[0].clone(), missed.slopes)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("with_aid", [False, True])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.usefixtures("density")
def test_both_engines_move_the_same(ends: list[int], *, with_aid: bool, beta1: float) -> None:
    made = [engine(kind) for kind in (TorchEngine, CpuEngine)]
    for step in range(1, 16):
        x = batch(step)
        for one in made:
            active = one.above(x, torch.linspace(4, 25 if step % 8 else 9, D_SAE))
            aid = aid_of(one, x, active) if with_aid else None
            missed = one.reconstruct(x, active, ends)
            one.move(x, active, missed, aid, rates(step, beta1=beta1))
    assert len(made[0].n_moves.unique()) > 1  # some features fire less often
    assert_same(tuple(made[0].state().values()), tuple(made[1].state().values()))
    torch.testing.assert_close(made[1].dec.norm(dim=1), torch.ones(D_SAE))
    assert_same(*(one.largest(batch(), 5) for one in made))  # the rounded encoder follows


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.usefixtures("density")
def test_slopes_and_moves_are_those_of_torchs_gradient(ends: list[int]) -> None:
    made, x = engine(TorchEngine), batch()
    weights = [part.clone().requires_grad_() for part in made.weights()]
    enc, b_enc, dec = weights
    acts = torch.relu(x @ enc.T + b_enc)
    acts.retain_grad()
    loss = sum((acts[:, :end] @ dec[:end] - x).square().sum() for end in ends) / N
    torch.autograd.backward(loss)
    active = made.above(x, torch.zeros(D_SAE))
    missed = made.reconstruct(x, active, ends)
    assert acts.grad is not None
    wanted = acts.grad[active.rows(), active.ids.long()]
    torch.testing.assert_close(missed.slopes * 2 / N, wanted, rtol=1e-4, atol=1e-5)
    assert dec.grad is not None
    dec.grad -= (dec.grad * dec).sum(dim=1, keepdim=True) * dec
    optimiser = torch.optim.Adam(weights, lr=1e-2)
    optimiser.step()
    made.move(x, active, missed, None, rates())
    for part, weight in zip(made.weights()[:2], weights[:2], strict=True):
        torch.testing.assert_close(part, weight.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        made.dec, functional.normalize(dec.detach(), dim=1), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_each_feature_takes_the_steps_of_an_adam_of_its_own(beta1: float) -> None:
    made = engine(CpuEngine)
    weights = [row.clone().requires_grad_() for row in made.enc]
    adams = [torch.optim.Adam([weight], lr=1e-2, betas=(beta1, 0.999)) for weight in weights]
    for step in range(1, 30):
        x = batch(step)
        active = made.above(x, torch.linspace(1, 20, D_SAE))
        missed = made.reconstruct(x, active, [D_SAE])
        grads = torch.zeros_like(made.enc).index_add_(
            0, active.ids, missed.slopes[:, None] * x[active.rows()] * 2 / N
        )
        for j in active.ids.unique().tolist():
            weights[j].grad = grads[j]
            adams[j].step()
        made.move(x, active, missed, None, rates(step, beta1=beta1))
    wanted = torch.stack([weight.detach() for weight in weights])
    torch.testing.assert_close(made.enc, wanted, rtol=1e-3, atol=2e-4)


def test_centred_rows_have_the_variance_that_is_said() -> None:
    x, b_dec = batch() + 3, torch.arange(D_IN) / 10
    for kind in (TorchEngine, CpuEngine):
        centred, variance = engine(kind).centre(x, 0.5, b_dec)
        torch.testing.assert_close(centred, 0.5 * x - b_dec)
        wanted = (centred - centred.mean(dim=0)).square().sum()
        torch.testing.assert_close(variance, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_byte(n_threads: int) -> None:
    states = []
    for n in (2, n_threads):
        with sparse_engine.threads(n):
            made = engine(CpuEngine)
            for step in range(1, 5):
                x = batch(step)
                active = made.largest(x, 4)
                missed = made.reconstruct(x, active, [D_SAE])
                made.move(x, active, missed, None, rates(step))
            states.append(made.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_batch_on_which_nothing_fires_moves_nothing() -> None:
    made, x = engine(CpuEngine), batch()
    before = {name: part.clone() for name, part in made.state().items()}
    active = made.above(x, torch.full((D_SAE,), 1e9))
    missed: Missed = made.reconstruct(x, active, [D_SAE])
    torch.testing.assert_close(missed.miss[0], -x)
    made.move(x, active, missed, None, rates(step=50))
    assert all(torch.equal(part, before[name]) for name, part in made.state().items())
