"""Each variant on planted directions: what fires, what comes out, and how the dead start anew."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from sae_core import activations
from sae_core.errors import SaeError
from sae_core.learner import Learner
from sae_core.train_sae import train_sae
from sae_core.train_settings import UNAIDED, VARIANTS, TrainSaeConfig

D_IN, N_PLANTED, D_SAE = 16, 12, 24
CPU = torch.device("cpu")
SPARSITY = tiny.sparsity(2)


def planted(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sparse sums of 12 unit directions around an offset, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(N_PLANTED, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    coefficients = (rng.random((n, N_PLANTED)) < 0.12) * rng.uniform(2, 6, (n, N_PLANTED))
    return (1.5 + coefficients @ directions).astype(np.float32), directions


def config(variant: str, **changes: object) -> TrainSaeConfig:
    settings: dict[str, object] = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "n_activations": 60_000,
        "variant": variant,
        "batch_size": 256,
        "lr": 5e-3,
        "warm_up_steps": 10,
        "dead_after": 5_000,
        "record_every": 20,
    }
    return TrainSaeConfig(**settings | SPARSITY[variant] | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dictionary_fires_as_it_did_at_the_end_of_training(variant: str) -> None:
    x, _ = planted(20_000)
    settled = config(variant, dead_after=20_000)  # no feature comes back in the last steps
    result = train_sae(10 * x, settled)
    sae = result.sae.requires_grad_(requires_grad=False)
    acts = sae.encode(torch.from_numpy(10 * x[:4096]))
    l0 = float((acts > 0).sum(dim=1).float().mean())
    assert l0 == pytest.approx(result.metrics[-1]["l0"], rel=0.15)
    x_hat = sae.decode(acts)
    missed = (x_hat - 10 * torch.from_numpy(x[:4096])).square().sum()
    total = 100 * np.square(x[:4096] - x.mean(axis=0)).sum()
    assert float(missed) / total == pytest.approx(result.metrics[-1]["fvu"], rel=0.2, abs=0.02)
    norms = sae.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(D_SAE))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_learner_goes_on_from_its_state_to_the_same_bytes(variant: str) -> None:
    x = torch.from_numpy(planted(256 * 30)[0])
    batches = x.split(256)
    whole = Learner(config(variant), x[:512], CPU)
    halves = [Learner(config(variant), x[:512], CPU) for _ in range(2)]
    for step, batch in enumerate(batches, 1):
        if step == 16:
            state = {name: part.clone() for name, part in halves[0].state().items()}
            halves[1].load(state)
        for learner in (whole, halves[step > 15]):
            learner.look(batch)
            learner.learn(step, 1.0)
    found, wanted = halves[1].state(), whole.state()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_groups_of_matryoshka_reconstruct_alone() -> None:
    x, _ = planted(20_000)
    missed = {}
    for variant in ("batch_topk", "matryoshka"):
        sae = train_sae(x, config(variant, d_sae=32)).sae.requires_grad_(requires_grad=False)
        given = torch.from_numpy(x[:4096])
        acts = sae.encode(given)
        acts[:, 16:] = 0
        missed[variant] = float((sae.decode(acts) - given).square().sum())
    assert missed["matryoshka"] < 0.7 * missed["batch_topk"]


def test_a_higher_cost_leaves_fewer_features() -> None:
    x, _ = planted(20_000)
    for variant, name in (("l1", "l1_coefficient"), ("jumprelu", "l0_coefficient")):
        found = [
            train_sae(x, config(variant, **{name: cost})).metrics[-1]["l0"]
            for cost in (0.003, 0.03, 0.3)
        ]
        assert found == sorted(found, reverse=True), (variant, found)
        assert found[2] < 0.7 * found[0]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in UNAIDED])
def test_a_feature_that_comes_back_to_life_learns_as_if_it_were_new(variant: str) -> None:
    x = torch.from_numpy(planted(256)[0])
    learner = Learner(config(variant, aux_coefficient=100.0), x, CPU)
    learner.look(x)
    learner.learn(1, 1.0)
    back, stays = learner.silent.eq(0).nonzero()[:2, 0].tolist()
    learner.silent[back] = learner.config.dead_after + 1
    for moments in learner.engine.v:
        moments[[back, stays]] = 1e6  # with which nothing moves
    before = learner.engine.enc.clone()
    learner.look(x)
    learner.learn(2, 1.0)
    moves = (learner.engine.enc - before).abs().max(dim=1).values
    assert learner.silent[back] == learner.silent[stays] == 0
    assert float(moves[back]) == pytest.approx(learner.config.lr, rel=0.01)
    assert float(moves[stays]) < 0.01 * learner.config.lr


def test_dead_features_start_anew_as_the_paper_says() -> None:
    x = torch.from_numpy(planted(2_000)[0])
    learner = Learner(config("l1", resample_window=2), x, CPU)
    learner.look(x)
    learner.learn(1, 1.0)
    dead, engine = [3, 7], learner.engine
    learner.silent[dead] = 2 * 256
    learner.silent[9] = 2 * 256 - 1
    before = [part.clone() for part in engine.weights()]
    alive = torch.ones(D_SAE, dtype=torch.bool)
    alive[dead] = False
    n_anew = learner.resample(iter(x.split(500)), number=1)
    assert n_anew == 2
    centred = x * learner.scale - learner.b_dec
    units = functional.normalize(centred, dim=1)
    for j in dead:
        at = int((units - engine.dec[j]).square().sum(dim=1).argmin())
        torch.testing.assert_close(engine.dec[j], units[at])
        wanted = 0.2 * before[0][alive].norm(dim=1).mean()
        torch.testing.assert_close(engine.enc[j], units[at] * wanted)
        assert engine.b_enc[j] == 0
        assert all(float(part[j].abs().sum()) == 0 for part in (*engine.m, *engine.v))
        assert learner.silent[j] == 0
    for part, old in zip(engine.weights(), before, strict=True):
        assert torch.equal(part[alive], old[alive])


def test_the_chance_of_a_new_start_is_as_the_squared_loss() -> None:
    x = torch.from_numpy(planted(400)[0])
    drawn = torch.zeros(400)
    learner = Learner(config("l1", resample_window=1), x, CPU)
    learner.look(x)
    loss = learner._seen.missed.errors[-1].clone()
    units = functional.normalize(x * learner.scale - learner.b_dec, dim=1)
    for number in range(400):
        learner.silent[:] = 0
        learner.silent[0] = 256
        learner.engine.dec.copy_(functional.normalize(learner.engine.dec, dim=1))
        learner.resample([x], number)
        drawn[int((units @ learner.engine.dec[0]).argmax())] += 1
    order = loss.argsort(descending=True)
    share = float(drawn[order[:100]].sum() / drawn.sum())
    squares = loss.square()
    wanted = float(squares[order[:100]].sum() / squares.sum())
    assert share == pytest.approx(wanted, abs=0.1)


def test_nothing_dead_means_nothing_new() -> None:
    x = torch.from_numpy(planted(500)[0])
    learner = Learner(config("topk", resample_window=1), x, CPU)
    before = learner.state()["enc"].clone()
    assert learner.resample(iter([x]), number=0) == 0
    assert torch.equal(learner.state()["enc"], before)


def test_training_resamples_at_its_steps_and_says_so() -> None:
    x, _ = planted(2_000)
    said: list[str] = []
    more = {"resample_at": (50, 150), "resample_window": 20, "resample_inputs": 600}
    train_sae(x, config("l1", l1_coefficient=2.0, **more), progress=said.append)
    lines = [line for line in said if "start anew" in line]
    assert [line.split(":")[0] for line in lines] == ["step 50", "step 150"]
    assert any(not line.startswith("step 50: 0 ") for line in lines)


def test_an_iterator_is_looked_ahead_into_and_loses_nothing() -> None:
    source = activations.IteratorSource(iter([np.full((2, 3), at) for at in range(5)]))
    assert [int(source.peek(at)[0, 0]) for at in (0, 2, 1)] == [0, 2, 1]
    assert [int(source.batch(at)[0, 0]) for at in (0, 1, 1, 2, 3)] == [0, 1, 1, 2, 3]
    with pytest.raises(SaeError, match="ended after 5 batches, before step 5"):
        source.peek(5)
