"""Settings of a training that contradict each other are refused in one sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import shell
import tiny

from sae_core.train_settings import VARIANTS, TrainSaeConfig

if TYPE_CHECKING:
    from pathlib import Path

SPARSITY = tiny.sparsity(2)


def config(variant: str = "topk", **changes: Any) -> TrainSaeConfig:
    settings: dict[str, Any] = {"d_in": 8, "d_sae": 16, "n_activations": 6400, "batch_size": 64}
    return TrainSaeConfig(**settings | {"variant": variant} | SPARSITY[variant] | changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_with_the_defaults(variant: str) -> None:
    assert config(variant).n_steps == 100


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("topk", "lr"),
        ("topk", "beta1"),
        ("topk", "decay_share"),
        ("topk", "aux_coefficient"),
        ("l1", "l1_coefficient"),
        ("jumprelu", "l0_coefficient"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(variant: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a finite number, got {value}$"):
        config(variant, **{name: value})


@pytest.mark.parametrize("variant", ["topk", "batch_topk", "matryoshka", "jumprelu"])
def test_only_l1_has_a_cost_that_rises(variant: str) -> None:
    with pytest.raises(ValueError, match=f"sparsity_warm_up_steps must be left out: {variant} has"):
        config(variant, sparsity_warm_up_steps=10)
    assert config("l1", sparsity_warm_up_steps=10).sparsity_warm_up_steps == 10


@pytest.mark.parametrize("changes", [{"aux_coefficient": 0.5}, {"k_aux": 8}])
@pytest.mark.parametrize("variant", ["l1", "jumprelu"])
def test_an_auxiliary_loss_is_refused_where_there_is_none(
    variant: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"must be left out: {variant} has no auxiliary loss"):
        config(variant, **changes)
    assert config(variant, aux_coefficient=0).aux_coefficient == 0
    assert config("topk", **changes)


@pytest.mark.parametrize("steps", [(0,), (-3,), (100,), (50, 101)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resampling_outside_the_run_is_refused(variant: str, steps: tuple[int, ...]) -> None:
    match = r"resample_at must be steps before the last of 100, from 1, got -?\d+"
    with pytest.raises(ValueError, match=match):
        config(variant, resample_at=steps, resample_window=1)


def test_resampling_before_anything_can_be_dead_is_refused() -> None:
    match = "resample_at must be >= resample_window = 12500, .*, got 50"
    with pytest.raises(ValueError, match=match):
        config("l1", resample_at=(50,))
    assert config("l1", resample_at=(50, 99), resample_window=50)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"resample_window": 0}, "resample_window must be >= 1, got 0"),
        ({"resample_inputs": 0}, "resample_inputs must be >= 1, got 0"),
        ({"record_every": 0}, "record_every must be >= 1, got 0"),
        ({"sparsity_warm_up_steps": -1}, r"sparsity_warm_up_steps must be in 0\.\.100 steps"),
        ({"sparsity_warm_up_steps": 101}, r"sparsity_warm_up_steps must be in 0\.\.100 steps"),
        ({"seed": -1}, r"seed must be in 0\.\.2\^32 - 1, got -1"),
        ({"seed": 1 << 32}, r"seed must be in 0\.\.2\^32 - 1, got 4294967296"),
        ({"n_activations": 63}, "n_activations must be at least one batch of 64, got 63"),
        ({"k": 3}, "k must be left out: l1 is made sparse by l1_coefficient"),
    ],
)
def test_a_number_out_of_its_range_is_named(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config("l1", **changes)


def test_a_run_shorter_than_its_rise_is_trained_all_the_same() -> None:
    assert config(warm_up_steps=1000).warm_up_steps == 1000


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_training(tmp_path_factory.mktemp("settings"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--sparsity-warm-up-steps 5", "sparsity_warm_up_steps must be left out: topk has"),
        ("--resample-at 90", "resample_at must be steps before the last of 10, from 1, got 90"),
        ("--resample-at 5", "resample_at must be >= resample_window = 12500"),
        ("--lr nan", "lr must be a finite number, got nan"),
        ("--l1 0.1", "l1_coefficient must be left out: topk is made sparse by k"),
    ],
)
def test_the_command_calls_it_wrong_usage_and_begins_nothing(
    parts: Path, tmp_path: Path, more: str, words: str
) -> None:
    result = shell.invoke(*tiny.train_words("sae", parts, tmp_path / "out", n_steps=10, more=more))
    assert result.exit_code == 2
    assert words in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hook_point", ["blocks.1.mlp.hook_post", "mlp", "blocks.0.attn.hook_z"])
def test_m3_a_hook_point_that_the_model_has_not_is_refused_beside_the_one_it_has(
    parts: Path, tmp_path: Path, hook_point: str
) -> None:
    more = f"--hook-point {hook_point}"
    result = shell.invoke(*tiny.train_words("sae", parts, tmp_path / "out", n_steps=10, more=more))
    assert result.exit_code == 1
    said = f"has no hook point {hook_point}; it has blocks.0.mlp.hook_post"
    assert said in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
