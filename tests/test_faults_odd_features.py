"""Fault S7: features that are dead, always on, or copies of others, from training to the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import shell
import tiny
import torch

from sae_core.learner import Learner
from sae_core.sae import SaeConfig, SparseAutoencoder, save_sae
from sae_core.train_sae import train_sae
from sae_core.train_settings import VARIANTS, TrainSaeConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

D_IN, D_SAE = 24, 32
CPU = torch.device("cpu")
SPARSITY = tiny.sparsity(3)


def config(variant: str, **changes: Any) -> TrainSaeConfig:
    settings: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "n_activations": 64 * 100}
    settings |= {"variant": variant, "batch_size": 64, "lr": 1e-2, "warm_up_steps": 5}
    return TrainSaeConfig(**settings | {"dead_after": 300} | SPARSITY[variant] | changes)


def activations(n: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, D_IN)).astype(np.float32)


def assert_usable(sae: SparseAutoencoder, x: np.ndarray) -> None:
    for name, weight in sae.state_dict().items():
        assert bool(torch.isfinite(weight).all()), name
    assert bool(torch.isfinite(sae(torch.from_numpy(x))).all())


# In training


DEADLY: dict[str, dict[str, Any]] = {
    "l1": {"l1_coefficient": 1000.0},
    "jumprelu": {"l0_coefficient": 1e6},
}


@pytest.mark.parametrize("variant", DEADLY)
def test_s7_training_goes_on_when_every_feature_is_dead_and_says_so(variant: str) -> None:
    x, more = activations(), DEADLY[variant] | {"lr": 0.1, "record_every": 50}
    result = train_sae(x, config(variant, **more))
    last = result.metrics[-1]
    assert (last["l0"], last["n_dead"]) == (0.0, D_SAE)
    assert np.isfinite(last["fvu"])
    assert_usable(result.sae, x)
    said: list[str] = []
    more |= {"resample_at": (80,), "resample_window": 10, "resample_inputs": 640}
    assert_usable(train_sae(x, config(variant, **more), progress=said.append).sae, x)
    assert f"step 80: {D_SAE} dead features start anew" in said


@pytest.mark.parametrize("n_equal", [1, 40])
@pytest.mark.parametrize("variant", VARIANTS)
def test_s7_activations_that_are_nearly_all_equal_divide_by_nothing(
    variant: str, n_equal: int
) -> None:
    x = np.repeat(activations(n_equal), 640 // n_equal, axis=0)
    result = train_sae(x, config(variant))
    assert np.isfinite(result.metrics[-1]["fvu"])
    assert_usable(result.sae, x)


@pytest.mark.parametrize("factor", [1e25, 1e-25])
@pytest.mark.parametrize("variant", VARIANTS)
def test_s7_activations_whose_squares_are_beyond_float32_are_learnt_like_others(
    variant: str, factor: float
) -> None:
    x = activations(320)
    plain, scaled = (train_sae(x * np.float32(f), config(variant)) for f in (1, factor))
    assert scaled.metrics[-1]["fvu"] == pytest.approx(plain.metrics[-1]["fvu"], rel=0.01)
    assert_usable(scaled.sae, x * np.float32(factor))
    torch.testing.assert_close(scaled.sae.W_dec, plain.sae.W_dec, rtol=0.1, atol=0.05)


def make_dead(weights: dict[str, torch.Tensor]) -> None:
    weights["b_enc"].fill_(-1e6)


def make_always_on(weights: dict[str, torch.Tensor]) -> None:
    weights["b_enc"][5] = 100


def make_copies(weights: dict[str, torch.Tensor]) -> None:
    for weight in weights.values():
        weight[1::2] = weight[::2].clone()


ODD = {"dead": make_dead, "always on": make_always_on, "copies": make_copies}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("variant", VARIANTS)
def test_s7_training_goes_on_from_odd_features(variant: str, odd: str) -> None:
    x = torch.from_numpy(activations(64 * 20))
    learner = Learner(config(variant), x, CPU)
    engine = learner.engine
    ODD[odd]({"enc": engine.enc, "b_enc": engine.b_enc, "dec": engine.dec})
    engine.weights_changed()
    for step, batch in enumerate(x.split(64), 1):
        assert bool(torch.isfinite(learner.look(batch).fvu))
        learner.learn(step, 1.0)
    sae = learner.finished("")
    assert_usable(sae, x.numpy())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


# From text to the graph


class Found(NamedTuple):
    """What the commands say of a dictionary."""

    evaluated: dict[str, Any]
    features: pl.DataFrame
    edges: pl.DataFrame


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "model")
    for name in ("a", "b"):
        shell.write_text(folder / "texts" / f"{name}.html", 150, seed=ord(name))
    return folder


def write_odd(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], activation: str
) -> None:
    sae = SparseAutoencoder(SaeConfig(D_IN, D_SAE, activation, 4 if activation == "topk" else None))
    generator = torch.Generator().manual_seed(0)
    for weight in sae.requires_grad_(requires_grad=False).parameters():
        weight.normal_(generator=generator)
    change({"enc": sae.W_enc.T, "b_enc": sae.b_enc, "dec": sae.W_dec})
    save_sae(sae, folder)


@pytest.fixture(params=["topk", "relu"])
def all_commands(
    parts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[str], Found]:
    def run(odd: str) -> Found:
        sae, out, texts = tmp_path / "sae", tmp_path / "run", parts / "texts"
        write_odd(sae, ODD[odd], request.param)
        given = ("--model", parts / "model", "--sae", sae)
        rows = shell.rows_of(shell.invoke("evaluate", texts, *given, "--json"))
        for words in (
            ("gather", texts, "-o", out, "--held-out", 0, *given),
            ("graph", out),
            ("automata", out),
            ("page", out, "-o", tmp_path / "page.html"),
            ("verify", out),
        ):
            result = shell.invoke(*words)
            assert result.exit_code == 0, result.stderr
            assert "nan" not in result.stdout.lower()
        edges = pl.read_parquet(out / "graph" / "edges.parquet")
        return Found(dict(rows[0]), pl.read_parquet(out / "features.parquet"), edges)

    return run


def assert_numbers(found: Found) -> None:
    """Expect only numbers that are finite, or null where there is nothing to measure."""
    for table in (found.features, found.edges):
        for column in table.select(pl.selectors.float()):
            assert column.drop_nulls().is_finite().all(), column.name
    numbers = [value for value in found.evaluated.values() if isinstance(value, float)]
    assert np.isfinite(numbers).all()


def test_s7_all_dead_is_said_and_gives_an_empty_graph(
    all_commands: Callable[[str], Found],
) -> None:
    found = all_commands("dead")
    assert_numbers(found)
    assert (found.evaluated["n_dead"], found.evaluated["dead_share"]) == (D_SAE, 1)
    assert (found.evaluated["l0"], found.evaluated["density_histogram"]) == (0, {})
    assert len(found.features) == D_SAE
    assert found.features["n_fires"].sum() == 0
    assert found.features["density"].sum() == 0
    assert len(found.edges) == 0


def test_s7_one_always_on_is_said_and_says_nothing_about_what_follows(
    all_commands: Callable[[str], Found],
) -> None:
    found = all_commands("always on")
    assert_numbers(found)
    assert found.features["density"][5] == 1
    assert found.evaluated["density_histogram"]["0.0"] >= 1
    always = found.edges.filter((pl.col("source") == 5) | (pl.col("target") == 5))
    assert len(always) == 0
    assert len(found.edges) > 0


def test_s7_copies_are_said_and_all_get_the_same_edges(
    all_commands: Callable[[str], Found],
) -> None:
    found = all_commands("copies")
    assert_numbers(found)
    assert found.evaluated["decoder_cosine"] == pytest.approx(1)
    fires = found.features["n_fires"].to_numpy()
    assert fires.sum() > 0
    if found.evaluated["l0"] > 4:  # with topk a copy may be the one too many
        assert np.array_equal(fires[::2], fires[1::2])
        pairs = set(found.edges.select("source", "target").rows())
        assert {(source ^ 1, target ^ 1) for source, target in pairs} == pairs
    assert len(found.edges) > 0
