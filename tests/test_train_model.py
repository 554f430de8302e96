from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from sae_core.errors import ModelError
from sae_core.token_file import WindowSampler, read_token_ids, spread_windows
from sae_core.train_model import TrainModelConfig, UnembedLoss, mean_loss, train_model
from sae_core.transformer import load_transformer

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {
    "batch_windows": 4,
    "warm_up_steps": 5,
    "checkpoint_every": 3,
    "validate_every": 10,
    "n_validation_windows": 8,
}


def _config(n_steps: int, **changes: object) -> TrainModelConfig:
    settings = SETTINGS | {"n_tokens": n_steps * 4 * 16, "model": tiny.config(d_vocab=24)} | changes
    return TrainModelConfig(**settings)  # type: ignore[arg-type]


def _train(
    folder: Path, config: TrainModelConfig, out: str = "out", said: list[str] | None = None
) -> list[dict[str, float]]:
    train, validation = folder / "train.bin", folder / "validation.bin"
    if not train.exists():
        tiny.write_tokens(train)
        tiny.write_tokens(validation, seed=1)
    lines = [] if said is None else said
    return train_model(train, validation, folder / out, config, progress=lines.append).metrics


def test_training_learns_what_follows_what(tmp_path: Path) -> None:
    rows = _train(tmp_path, _config(150, lr=1e-2))
    assert rows[-1]["validation_loss"] < 1.0 < np.log(20) < rows[0]["train_loss"] + 0.5
    assert [row["step"] for row in rows] == list(range(10, 160, 10))
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_the_saved_model_has_the_loss_of_the_curve(tmp_path: Path) -> None:
    rows = _train(tmp_path, _config(20))
    ids = read_token_ids(tmp_path / "validation.bin", n_ctx=16, d_vocab=24)
    windows = spread_windows(ids, n_ctx=16, n_most=8)
    model = load_transformer(tmp_path / "out")
    assert mean_loss(model, windows) == pytest.approx(rows[-1]["validation_loss"], abs=1e-4)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    first = _train(tmp_path, _config(9))
    assert _train(tmp_path, _config(9)) == first


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    _train(tmp_path, _config(6))
    with pytest.raises(ModelError, match=r"was made with lr = 0\.003, now 0\.004 is asked for"):
        _train(tmp_path, _config(6, lr=4e-3))
    tiny.write_tokens(tmp_path / "train.bin", seed=9)
    with pytest.raises(ModelError, match="was made with train_sha256"):
        _train(tmp_path, _config(6))


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    _train(tmp_path, _config(6))
    path = tmp_path / "out" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"checkpoint\.safetensors is not a readable"):
        _train(tmp_path, _config(6))


def test_snapshots_are_the_weights_after_so_many_tokens(tmp_path: Path) -> None:
    _train(tmp_path, _config(9, snapshots=(1, 65, 300, 9 * 64)))
    folders = sorted((tmp_path / "out" / "snapshots").iterdir())
    assert [folder.name for folder in folders] == [f"{n:011d}" for n in (1, 65, 300, 576)]
    snapshots = [load_transformer(folder).state_dict() for folder in folders]
    final = load_transformer(tmp_path / "out").state_dict()
    for name, weight in final.items():
        assert torch.equal(snapshots[-1][name], weight.half().float()), name
    for early, late in pairwise(snapshots):  # each is of another step
        assert not torch.equal(early["W_U"], late["W_U"])


def test_a_snapshot_is_of_the_step_that_reaches_its_tokens(tmp_path: Path) -> None:
    _train(tmp_path, _config(9, snapshots=(64, 65, 127, 128)))
    one, *two = [
        (tmp_path / "out" / "snapshots" / f"{n:011d}" / "model.safetensors").read_bytes()
        for n in (64, 65, 127, 128)
    ]
    assert two[0] == two[1] == two[2] != one


def test_tokens_left_over_from_the_last_batch_still_give_a_snapshot(tmp_path: Path) -> None:
    n_tokens = 9 * 64 + 5
    _train(tmp_path, _config(9, n_tokens=n_tokens, snapshots=(n_tokens,)))
    found = load_transformer(tmp_path / "out" / "snapshots" / f"{n_tokens:011d}").W_U
    assert torch.equal(found, load_transformer(tmp_path / "out").W_U.half().float())


def test_snapshots_decide_no_weight(tmp_path: Path) -> None:
    _train(tmp_path, _config(6))
    _train(tmp_path, _config(6, snapshots=(64,)), out="kept")
    one, other = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("out", "kept")]
    assert one == other


def test_a_snapshot_asked_for_too_late_is_said(tmp_path: Path) -> None:
    _train(tmp_path, _config(6))
    said: list[str] = []
    _train(tmp_path, _config(6, snapshots=(64,)), said=said)
    assert "00000000064 cannot be made: the checkpoint is already past 64 tokens" in said[-1]
    assert not (tmp_path / "out" / "snapshots").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sliced_loss_equals_cross_entropy_and_its_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 8, generator=generator, requires_grad=True)
    W_U = torch.randn(8, 30, generator=generator, requires_grad=True)
    targets = torch.randint(30, (700,), generator=generator)
    exact = functional.cross_entropy(x @ W_U, targets)
    wanted = torch.autograd.grad(exact, (x, W_U))
    loss = UnembedLoss.apply(x, W_U, targets, dtype)  # type: ignore[no-untyped-call]
    found = torch.autograd.grad(loss, (x, W_U))
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    assert loss.item() == pytest.approx(exact.item(), rel=tolerance)
    for grad, exact_grad in zip(found, wanted, strict=True):
        assert (grad - exact_grad).norm() < tolerance * exact_grad.norm()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    sampler = WindowSampler(ids, n_ctx=10, batch_windows=3, seed=5)
    batches = [sampler.batch(step) for step in range(80)]
    fresh = WindowSampler(ids, n_ctx=10, batch_windows=3, seed=5)
    for step in (79, 3, 40):
        np.testing.assert_array_equal(fresh.batch(step), batches[step])
    other = WindowSampler(ids, n_ctx=10, batch_windows=3, seed=6)
    assert not np.array_equal(other.batch(0), batches[0])


def test_an_epoch_reads_each_window_once() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    sampler = WindowSampler(ids, n_ctx=10, batch_windows=1, seed=0)
    starts = sorted(int(sampler.batch(step)[0, 0]) for step in range(sampler.n_windows))
    assert len(starts) == 99
    assert set(np.diff(starts)) == {10}
    assert sampler.batch(0).shape == (1, 11)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = _config(100, lr=1.0, warm_up_steps=10, decay_share=0.2)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[:2] == [0.1, 0.2]
    assert set(rates[10:81]) == {1.0}
    assert rates[90] == 0.5
    assert rates[99] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (None, "cannot be read"),
        (b"abc", "has 3 bytes; whole uint16 ids"),
        (b"\0\0" * 8, "of at least two windows"),
        (b"\xff\xff" * 64, "holds token id 65535; ids below d_vocab 24"),
    ],
)
def test_a_bad_token_file_is_named(tmp_path: Path, data: bytes | None, match: str) -> None:
    path = tmp_path / "train.bin"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ModelError, match=match):
        read_token_ids(path, n_ctx=16, d_vocab=24)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.0},
        {"decay_share": 0.0},
        {"precision": "float8"},
        {"n_tokens": 10},
        {"batch_windows": 0},
        {"warm_up_steps": -1},
        {"snapshots": (0,)},
        {"snapshots": (64, 641)},
        {"validate_every": 0},
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|got"):
        _config(10, **changes)
