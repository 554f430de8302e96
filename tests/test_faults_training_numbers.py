"""Faults while training: numbers that are not finite, GPUs that are absent or too small.

Ids are of the table of faults. A GPU's memory is made small where torch hands it out: every tensor
beyond a size raises the error that CUDA would raise.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import harsh
import numpy as np
import pytest
import shell
import tiny
import torch

from sae_core.devices import Portions, choose_device, is_out_of_memory
from sae_core.errors import ModelError, SaeError, StoreError
from sae_core.sae import load_sae
from sae_core.tensors import read_all_tensors, read_metadata
from sae_core.train_model import TrainModelConfig, train_model
from sae_core.train_sae import train_sae_on_model
from sae_core.train_settings import TrainSaeConfig
from sae_core.transformer import load_transformer, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

WHAT = ("model", "sae")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return tiny.write_training(tmp_path)


def train(what: str, parts: Path, n_steps: int, more: str) -> Result:
    words = tiny.train_words(what, parts, parts / "out", n_steps=n_steps, more=more)
    return shell.invoke(*words)


def last_line(result: Result) -> str:
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    line: str = result.stderr.splitlines()[-1]
    return line


def kept_step(out: Path) -> int:
    state = read_metadata(out / "checkpoint.safetensors", StoreError)["state"]
    return int(json.loads(state)["step"])


# M5: a model that yields NaN


def break_on(parts: Path, token_id: int) -> None:
    """Make a model, of finite weights, whose norm overflows on one token."""
    model = load_transformer(parts / "model")
    with torch.no_grad():
        model.W_E[token_id, :2] = torch.tensor([3e38, -3e38])
    save_model(model, parts / "model")


@pytest.mark.parametrize("at", [100, 1234, 1900])
def test_m5_a_token_on_which_the_model_fails_is_named_and_not_learnt_from(
    parts: Path, at: int
) -> None:
    ids = np.fromfile(parts / "train.bin", np.uint16)
    ids[at] = 25  # a token that is nowhere else
    ids.tofile(parts / "train.bin")
    break_on(parts, 25)
    line = last_line(train("sae", parts, 600, "--lr 1e-3"))
    assert re.search(r"activations of step \d+ hold NaN or infinity: on token", line)
    document = int((ids[: at + 1] == 0).sum()) - 1
    assert f"on token {at:,} of {parts / 'train.bin'} (document {document}," in line
    out = parts / "out"
    assert not (out / "cfg.json").exists()
    if (out / "checkpoint.safetensors").exists():  # of blocks before that token's
        tensors = read_all_tensors(out / "checkpoint.safetensors", StoreError)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
        assert "NaN" not in (out / "metrics.jsonl").read_text()


# S8: a loss that diverges

DIVERGING = {
    "model": "--lr 300 --warm-up-steps 1000 --checkpoint-every 1",
    "sae": f"--lr 1e18 --warm-up-steps {10**13} --checkpoint-every 1",
}


@pytest.mark.parametrize("what", WHAT)
def test_s8_a_training_that_diverges_keeps_the_last_weights_with_a_finite_loss(
    parts: Path, what: str
) -> None:
    line = last_line(train(what, parts, 1000, DIVERGING[what]))
    found = re.search(r"diverged at step (\d+): .*(inf|nan).* with lr [\de+.]+, .*seed 0; ", line)
    assert found, line
    step = int(found[1])
    assert step > 1
    path = parts / "out" / "checkpoint.safetensors"
    assert f"the last good checkpoint, of step {step - 1}, is kept in {path}" in line
    assert "lower the learning rate" in line
    assert kept_step(parts / "out") == step - 1
    tensors = read_all_tensors(path, StoreError)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    before = path.read_bytes()
    again = last_line(train(what, parts, 1000, DIVERGING[what]))
    assert again == line
    assert path.read_bytes() == before
    assert not (parts / "out" / "config.json").exists()
    assert not (parts / "out" / "cfg.json").exists()


def test_s8_weights_that_go_bad_in_the_last_step_are_not_saved(parts: Path) -> None:
    line = last_line(train("sae", parts, 3, "--lr 1e30 --warm-up-steps 0"))
    assert "diverged at step" in line
    assert "no checkpoint was written" in line
    assert not (parts / "out").exists()
    line = last_line(train("model", parts, 1, "--lr 1e38 --warm-up-steps 0 --snapshots 64"))
    assert "diverged at step 1" in line
    assert not (parts / "out").exists()


# M10: what a device has not


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize("what", WHAT)
def test_m10_an_absent_gpu_is_said_before_any_work(parts: Path, what: str, device: str) -> None:
    line = last_line(train(what, parts, 10, f"--device {device}"))
    assert line.startswith(f"Error: the device {device} is asked for, but there is no GPU here; ")
    assert not (parts / "out").exists()


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:-1", "CUDA"])
@pytest.mark.parametrize("what", WHAT)
def test_m10_a_device_that_has_no_such_name_is_wrong_usage(
    parts: Path, what: str, device: str
) -> None:
    result = train(what, parts, 10, f"--device {device}")
    assert result.exit_code == 2
    assert f"device must be cpu, cuda or cuda:N, got {device!r}" in result.stderr
    assert not (parts / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_m10_the_functions_refuse_an_absent_gpu_too() -> None:
    with pytest.raises(ModelError, match="no GPU here; use --device cpu"):
        choose_device("cuda:3")


def model_config(n_steps: int = 12) -> TrainModelConfig:
    """64 windows of 16 tokens, 48 numbers each in attention: 49,152 in the widest tensor."""
    return TrainModelConfig(
        1024 * n_steps, tiny.config(d_vocab=24), batch_windows=64, precision="float32",
        n_validation_windows=32,
    )  # fmt: skip


def sae_config(n_steps: int = 12) -> TrainSaeConfig:
    """128 rows of 64 features, half of them silent soon: 8,192 in the widest tensor."""
    return TrainSaeConfig(
        24, 64, 3, 128 * n_steps, batch_size=128, block_windows=16, dead_after=128, k_aux=4,
    )  # fmt: skip


def weights_of(what: str, parts: Path, out: Path, said: list[str]) -> dict[str, torch.Tensor]:
    """Train in this process; give the final weights by name."""
    if what == "model":
        texts = parts / "train.bin", parts / "validation.bin"
        train_model(*texts, out, model_config(), progress=said.append)
        return dict(load_transformer(out).state_dict())
    train_sae_on_model(
        parts / "model", parts / "train.bin", out, sae_config(), progress=said.append
    )
    return dict(load_sae(out).state_dict())


@pytest.mark.parametrize(("what", "n_most", "n_lines"), [("model", 7000, 2), ("sae", 6500, 2)])
def test_m10_out_of_memory_the_batch_goes_through_in_halves_to_the_same_weights(
    parts: Path, what: str, n_most: int, n_lines: int
) -> None:
    wanted = weights_of(what, parts, parts / "whole", [])
    said: list[str] = []
    with harsh.SmallMemory(n_most):
        found = weights_of(what, parts, parts / "halves", said)
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
    lines = [line for line in said if "at a time, with the same result up to rounding" in line]
    assert len(lines) == n_lines, said  # one for each thing that was halved, not one a step
    assert all(line.startswith("the memory of cpu ran out with ") for line in lines)
    assert (parts / "halves" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("what", "more", "words"),
    [
        ("model", "--n-ctx 32", " with a single window at once; "),  # 32 x 300 logits
        ("sae", "--features 400", "; "),  # 24 x 400 weights
    ],
)
def test_m10_memory_too_small_for_the_least_is_said_in_one_sentence(
    parts: Path, what: str, more: str, words: str
) -> None:
    with harsh.SmallMemory(300 * 16):  # the model's embedding just fits
        line = last_line(train(what, parts, 10, more))
    assert line.startswith(f"Error: the memory of cpu ran out{words}take a smaller model")
    assert not (parts / "out").exists()


def test_m10_this_machines_own_memory_runs_out_in_a_sentence_too() -> None:
    said: list[str] = []
    portions = Portions(None, "row", torch.device("cpu"), said.append, SaeError)
    with pytest.raises(SaeError, match="ran out with a single row at once; take a smaller model"):
        portions.fit(lambda: torch.empty(10**9 * portions.slices(8)[0].stop, 10**6), 8)
    made = portions.fit(lambda: portions.slices(2), 2)
    assert made == [slice(0, 1), slice(1, 2)]  # what once did not fit is not tried again
    assert said == []


def test_m10_a_product_for_which_there_is_no_room_counts_as_memory() -> None:
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    words = "could not create a primitive descriptor for a matmul primitive"
    assert not is_out_of_memory(RuntimeError(words))


def test_m10_other_errors_are_not_taken_for_memory() -> None:
    said: list[str] = []
    portions = Portions(8, "row", torch.device("cpu"), said.append, SaeError)

    def fail() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        portions.fit(fail, 8)
    assert portions.slices(20) == [slice(0, 8), slice(8, 16), slice(16, 20)]
    assert said == []
