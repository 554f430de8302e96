"""Faults while training a dictionary of any variant, alone and several in one pass.

Ids are of the table of faults. What is interrupted and begun again must end with the bytes of the
run that nothing disturbed, on the CPU and with the same number of threads.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from typing import TYPE_CHECKING, Any

import harsh
import numpy as np
import pytest
import shell
import tiny
import torch

from sae_core.errors import SaeError, StoreError
from sae_core.tensors import read_all_tensors, read_metadata
from sae_core.train_sae import train_sae_on_model, train_saes_on_model
from sae_core.train_settings import VARIANTS, TrainSaeConfig
from sae_core.transformer import load_transformer, save_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

N_STEPS = 48
CHECKPOINT = "checkpoint.safetensors"
FINAL = ("training.json", "sae_weights.safetensors", "cfg.json")
RESAMPLED: dict[str, Any] = {  # more are dead than inputs are looked at, at steps of checkpoints
    "d_sae": 96,
    "resample_at": (12, 30),
    "resample_window": 3,
    "resample_inputs": 32,
}
KINDS: dict[str, dict[str, Any]] = {
    **tiny.sparsity(3),
    "resampled": RESAMPLED | {"variant": "l1", "l1_coefficient": 20.0, "lr": 0.05},
    "resampled topk": RESAMPLED | {"variant": "topk", "k": 1, "aux_coefficient": 0},
}


def config(kind: str, **changes: Any) -> TrainSaeConfig:
    settings: dict[str, Any] = {"d_in": 24, "d_sae": 32, "n_activations": 32 * N_STEPS}
    settings |= {"variant": kind, "batch_size": 32, "block_windows": 8, "warm_up_steps": 5}
    settings |= {"dead_after": 200, "checkpoint_every": 3, "record_every": 1}
    return TrainSaeConfig(**settings | KINDS[kind] | changes)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with harsh.one_thread():
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model and text, and in `whole` every kind trained in one pass, undisturbed."""
    folder = tiny.write_training(tmp_path_factory.mktemp("training"))
    said: list[str] = []
    train(folder, folder / "whole", *KINDS, said=said)
    anew = [line for line in said if line.endswith("32 dead features start anew")]
    assert len(anew) >= 3, said  # as many as inputs; others wait, and are dead still
    return folder


def train(parts: Path, out: Path, *kinds: str, said: list[str] | None = None) -> None:
    configs = {out / kind: config(kind) for kind in kinds}
    say = (said if said is not None else []).append
    train_saes_on_model(parts / "model", parts / "train.bin", configs, progress=say)


def step_of(out: Path) -> int:
    """Give the steps that the checkpoint of a training holds, 0 without one."""
    path = out / CHECKPOINT
    if not path.exists():
        return 0
    return int(json.loads(read_metadata(path, StoreError)["state"])["step"])


def assert_same(parts: Path, out: Path, *kinds: str) -> None:
    for kind in kinds:
        found, whole = out / kind, parts / "whole" / kind
        digests, wanted = shell.digests(found), shell.digests(whole)
        assert {name: digests[name] for name in FINAL} == {name: wanted[name] for name in FINAL}
        tensors = [read_all_tensors(folder / CHECKPOINT, StoreError) for folder in (found, whole)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[1])


# R2: killed trainings


@pytest.mark.parametrize("kind", KINDS)
def test_r2_a_training_killed_at_some_moment_goes_on_to_the_same_bytes(
    parts: Path, tmp_path: Path, kind: str
) -> None:
    after = random.randrange(1, N_STEPS - 4)
    harsh.kill_training(parts, {tmp_path / kind: config(kind)}, after)
    step = step_of(tmp_path / kind)
    assert step % 3 == 0
    assert not (tmp_path / kind / "cfg.json").exists()
    said: list[str] = []
    train(parts, tmp_path, kind, said=said)
    assert (f"resuming at step {step} of {N_STEPS}" in said) == (step > 0)
    assert_same(parts, tmp_path, kind)


@pytest.mark.parametrize("kind", ["resampled", "resampled topk"])
@pytest.mark.parametrize("line", ["step 13/", "step 31/"])
def test_r2_what_was_resampled_at_a_checkpoint_is_not_resampled_again(
    parts: Path, tmp_path: Path, kind: str, line: str
) -> None:
    def stop(said: str) -> None:
        if said.startswith(line):
            raise KeyboardInterrupt

    given = parts / "model", parts / "train.bin", tmp_path / kind, config(kind)
    with pytest.raises(KeyboardInterrupt):
        train_sae_on_model(*given, progress=stop)
    train(parts, tmp_path, kind)
    assert_same(parts, tmp_path, kind)


def test_r2_several_in_one_pass_killed_twice_go_on_to_the_same_bytes(
    parts: Path, tmp_path: Path
) -> None:
    configs = {tmp_path / kind: config(kind) for kind in KINDS}
    n_lines = len(KINDS)  # a step, at least
    for after in (random.randrange(2, 14 * n_lines), random.randrange(2, 14 * n_lines)):
        harsh.kill_training(parts, configs, after)
    assert max(map(step_of, configs)) < N_STEPS
    train(parts, tmp_path, *KINDS)
    assert_same(parts, tmp_path, *KINDS)


def test_r2_those_at_different_steps_go_on_together(parts: Path, tmp_path: Path) -> None:
    def stop(said: str) -> None:
        if said.startswith("step 20/"):
            raise KeyboardInterrupt

    first = parts / "model", parts / "train.bin", tmp_path / "topk", config("topk")
    with pytest.raises(KeyboardInterrupt):
        train_sae_on_model(*first, progress=stop)
    train(parts, tmp_path, "jumprelu")
    train(parts, tmp_path, *KINDS)
    assert_same(parts, tmp_path, *KINDS)


# R4: a full disk


@pytest.mark.parametrize("n_pages", [0, 2, 4])  # a checkpoint takes six
def test_r4_a_disk_that_is_full_in_one_pass_keeps_every_checkpoint(
    parts: Path, tmp_path: Path, n_pages: int
) -> None:
    kinds = VARIANTS
    configs = {kind: config(kind) for kind in kinds}
    with harsh.small_disk(tmp_path / "disk") as disk:

        def fill(said: str) -> None:
            if said.startswith("step 10/") and not (disk / "filler").exists():
                n_free = shutil.disk_usage(disk).free - 4096 * n_pages
                (disk / "filler").write_bytes(b"x" * n_free)

        given = {disk / kind: one for kind, one in configs.items()}
        words = r"/(\w+)/\w+\.\w+ was not written: the disk is full"
        with pytest.raises(StoreError, match=words) as caught:
            train_saes_on_model(parts / "model", parts / "train.bin", given, progress=fill)
        found = re.search(words, str(caught.value))
        assert found is not None
        assert "bytes are needed and" in str(caught.value)
        assert f"is kept in {disk / found[1] / CHECKPOINT}" in str(caught.value)
        assert min(map(step_of, given)) >= 6  # that of step 9 is the first that does not fit
        assert not list(disk.rglob("*.tmp"))
        (disk / "filler").unlink()
        train_saes_on_model(parts / "model", parts / "train.bin", given, progress=[].append)
        assert_same(parts, disk, *kinds)


# M5: a model that yields NaN


@pytest.mark.parametrize("at", [300, 1900])
def test_m5_no_variant_learns_from_a_token_on_which_the_model_fails(
    parts: Path, tmp_path: Path, at: int
) -> None:
    ids = np.fromfile(parts / "train.bin", np.uint16)
    ids[at] = 25  # a token that is nowhere else
    ids.tofile(tmp_path / "train.bin")
    model = load_transformer(parts / "model")
    with torch.no_grad():
        model.W_E[25, :2] = torch.tensor([3e38, -3e38])
    save_model(model, tmp_path / "model")
    configs = {tmp_path / kind: config(kind, n_activations=32 * 600) for kind in KINDS}
    match = f"hold NaN or infinity: on token {at:,} of {tmp_path / 'train.bin'}"
    with pytest.raises(SaeError, match=match):
        train_saes_on_model(tmp_path / "model", tmp_path / "train.bin", configs, progress=[].append)
    for out in configs:
        assert not (out / "cfg.json").exists()
        if (out / CHECKPOINT).exists():  # of blocks before that token's
            tensors = read_all_tensors(out / CHECKPOINT, StoreError)
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
            assert "NaN" not in (out / "metrics.jsonl").read_text()


# S8: a loss that diverges


@pytest.mark.parametrize("kind", VARIANTS)
def test_s8_every_variant_that_diverges_keeps_its_last_good_checkpoint(
    parts: Path, tmp_path: Path, kind: str
) -> None:
    rate = {"lr": 1e18, "warm_up_steps": 10**13}
    fast = config(kind, **rate, checkpoint_every=1, n_activations=32 * 1000)
    given = parts / "model", parts / "train.bin", tmp_path / kind, fast
    with pytest.raises(SaeError, match=r"diverged at step \d+: .*1e\+18, .*seed 0; ") as caught:
        train_sae_on_model(*given, progress=[].append)
    step = step_of(tmp_path / kind)
    assert step > 0
    assert f"diverged at step {step + 1}: " in str(caught.value)
    path = tmp_path / kind / CHECKPOINT
    assert f"the last good checkpoint, of step {step}, is kept in {path}" in str(caught.value)
    tensors = read_all_tensors(path, StoreError)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert not (tmp_path / kind / "cfg.json").exists()


# M10: a device whose memory runs out


@pytest.mark.parametrize("kind", KINDS)
def test_m10_every_variant_goes_through_in_halves_to_nearly_the_same_weights(
    parts: Path, tmp_path: Path, kind: str
) -> None:
    said: list[str] = []
    wide = {"d_sae": 160, "batch_size": 64, "n_activations": 64 * 12, "dead_after": 128, "lr": 1e-3}
    few = config(kind, **wide, **({"resample_at": ()} if "resampled" in kind else {}))
    given = parts / "model", parts / "train.bin"
    whole = train_sae_on_model(*given, tmp_path / "whole", few, progress=[].append).sae
    with harsh.SmallMemory(64 * 160 - 1):
        sae = train_sae_on_model(*given, tmp_path / "halves", few, progress=said.append).sae
    assert any("at a time, with the same result up to rounding" in line for line in said), said
    for name, weight in sae.state_dict().items():
        wanted = whole.state_dict()[name]
        torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-4, msg=name)
