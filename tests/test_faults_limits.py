"""Faults C6 and C7: any number of threads, forked processes, and less memory than is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import harsh
import numpy as np
import pytest
import shell
import tiny
import torch

import cli
from sae_core.memory import A_THREAD, COMPILED
from sae_core.sae import SaeConfig, SparseAutoencoder, load_sae
from sae_core.sparsify import Room
from sae_core.train_sae import train_saes_on_model
from sae_core.train_settings import TrainSaeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEGABYTE = 10**6
RESERVED = COMPILED + A_THREAD  # kept free below a limit on address space
LIMIT = "the limit on address space (ulimit -v) leaves"

ENCODE_AND_TRAIN = """
import hashlib, json, os, signal, sys
import numpy as np
import torch
from sae_core.sae import SaeConfig, SparseAutoencoder
from sae_core.train_sae import train_sae
from sae_core.train_settings import TrainSaeConfig

SPARSITY = {"topk": {"k": 3}, "matryoshka": {"k": 3}, "l1": {"l1_coefficient": 0.1}}
generator = torch.Generator().manual_seed(0)
sae = SparseAutoencoder(SaeConfig(24, 300, "topk", 5))
for weight in sae.requires_grad_(requires_grad=False).parameters():
    weight.normal_(generator=generator)
x = torch.randn(3000, 24, generator=generator)


def digest(arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in arrays)).hexdigest()


def trained(variant):
    given = {"variant": variant, "batch_size": 256, "warm_up_steps": 2} | SPARSITY[variant]
    config = TrainSaeConfig(24, 48, n_activations=256 * 8, **given)
    return train_sae(x.numpy(), config).sae.state_dict()


def all_of_it():
    weights = {variant: trained(variant) for variant in SPARSITY}
    return {
        "sparse": digest(sae.encode_sparse(x)),
        "dense": digest([sae.encode(x).numpy()]),
        "weights": {variant: digest(found.values()) for variant, found in weights.items()},
        "W_dec": {variant: found["W_dec"].tolist() for variant, found in weights.items()},
    }


def forked():
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # a child that waits for threads which are not there
        os.write(there, json.dumps(all_of_it()).encode())
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as file:
        told = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(told)


found = {}
for n_threads in (1, 2, 4, 7):
    torch.set_num_threads(n_threads)
    found[n_threads] = [all_of_it(), all_of_it() if n_threads == 4 else None]
found["forked"] = [forked(), None]
print(json.dumps(found))
"""


# C6: any number of threads, and forks


@pytest.fixture(scope="module")
def by_threads() -> dict[str, list[dict[str, Any]]]:
    """What one process finds with each number of threads, and a child that it forks after."""
    env = shell.environment()
    env.pop("OMP_NUM_THREADS")
    command = [sys.executable, "-c", ENCODE_AND_TRAIN]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    assert list(found) == ["1", "2", "4", "7", "forked"]
    return found


@pytest.mark.parametrize("what", ["sparse", "dense"])
def test_c6_encodings_are_the_same_bytes_with_any_number_of_threads_and_in_a_fork(
    by_threads: dict[str, list[dict[str, Any]]], what: str
) -> None:
    assert len({first[what] for first, _ in by_threads.values()}) == 1


def test_c6_training_gives_the_same_bytes_with_the_same_number_of_threads(
    by_threads: dict[str, list[dict[str, Any]]],
) -> None:
    first, again = by_threads["4"]
    assert first["weights"] == again["weights"]


def test_c6_a_forked_process_trains_with_one_thread(
    by_threads: dict[str, list[dict[str, Any]]],
) -> None:
    assert by_threads["forked"][0]["weights"] == by_threads["1"][0]["weights"]


@pytest.mark.parametrize("n_threads", ["2", "4", "7"])
def test_c6_training_with_other_threads_differs_by_rounding_only(
    by_threads: dict[str, list[dict[str, Any]]], n_threads: str
) -> None:
    """Sums are added up in another order; equal bytes are not promised, equal features are."""
    for variant, W_dec in by_threads[n_threads][0]["W_dec"].items():
        wanted = by_threads["1"][0]["W_dec"][variant]
        np.testing.assert_allclose(W_dec, wanted, atol=1e-3, err_msg=variant)


SHARED_ROOM = """
import os, signal
import torch
from sae_core.sparsify import Room

room = Room()
if (child := os.fork()) == 0:
    signal.alarm(60)  # a child that waits for threads which are not there
    os._exit(room.map(lambda begin, end: end - begin, [0, 3, 7]) != [3, 4])
assert os.waitpid(child, 0)[1] == 0
"""


def test_c6_what_was_made_ready_before_a_fork_works_after_it() -> None:
    command = [sys.executable, "-c", SHARED_ROOM]
    done = subprocess.run(
        command, env=shell.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_c6_a_thread_that_cannot_start_is_an_error_and_no_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Room()
    started[0].join(60)
    assert not started[0].is_alive()


# C7: less memory than is needed


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with harsh.one_thread():
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_training(tmp_path_factory.mktemp("training"))


def train_words(parts: Path, out: Path, more: str = "", features: int = 8192) -> list[str]:
    sizes = f"--features {features} --batch-size 1024 --activations {1024 * 6} {more}"
    return tiny.train_words("sae", parts, out, n_steps=6, more=sizes)


def needed(line: str) -> int:
    """Read out of a sentence how many bytes are needed."""
    found = re.search(r"([\d,]+) MB of memory", line)
    assert found, line
    return int(found[1].replace(",", "")) * MEGABYTE


def test_c7_an_estimate_comes_before_the_work_and_is_of_the_right_size(
    parts: Path, tmp_path: Path
) -> None:
    ended = harsh.run_limited(RESERVED + 2000 * MEGABYTE, *train_words(parts, tmp_path / "out"))
    assert ended.exit_code == 0, ended.stderr
    first = ended.stderr.splitlines()[0]
    assert re.fullmatch(rf"about \d+ MB of memory is needed, {re.escape(LIMIT)} [\d,]+ MB", first)
    assert 30 * MEGABYTE < needed(first) < 120 * MEGABYTE  # 34 MB are the hidden layer of a batch


def test_c7_a_limit_too_low_for_all_rows_at_once_sends_fewer_through(
    parts: Path, tmp_path: Path
) -> None:
    harsh.run_limited(RESERVED + 2000 * MEGABYTE, *train_words(parts, tmp_path / "whole"))
    ended = harsh.run_limited(RESERVED + 40 * MEGABYTE, *train_words(parts, tmp_path / "few"))
    assert ended.exit_code == 0, ended.stderr
    first = ended.stderr.splitlines()[0]
    found = re.search(r": (\d+) rows of a batch at a time instead of 1024, with the same", first)
    assert found, first
    assert 0 < int(found[1]) < 1024
    wanted = load_sae(tmp_path / "whole").state_dict()
    for name, weight in load_sae(tmp_path / "few").state_dict().items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", ["", "--variant l1 --l1 0.1"])
def test_c7_a_limit_too_low_for_anything_is_said_before_the_work_and_nothing_is_lost(
    parts: Path, tmp_path: Path, variant: str
) -> None:
    out = tmp_path / "out"
    words = train_words(parts, out, variant, 1024 if variant else 8192)
    if variant:
        at = words.index("--active")
        del words[at : at + 2]
    for _ in range(2):  # with nothing there, and with a finished training
        before = shell.digests(out) if out.exists() else None
        ended = harsh.run_limited(RESERVED + 3 * MEGABYTE, *words)
        assert ended.exit_code == 1
        assert ended.stdout == ""
        (line,) = ended.stderr.splitlines()
        assert line.startswith("Error: the training needs ")
        assert LIMIT in line
        assert "take fewer features, or fewer --block-windows, or raise the limit; nothing" in line
        assert (shell.digests(out) if out.exists() else None) == before
        assert shell.invoke(*words).exit_code == 0


def starved_config(checkpoint_every: int) -> TrainSaeConfig:
    sizes = {"batch_size": 512, "block_windows": 8, "record_every": 1, "warm_up_steps": 5}
    more = {"dead_after": 512 * 13, "checkpoint_every": checkpoint_every}
    return TrainSaeConfig(24, 8192, 3, 512 * 18, **sizes, **more)


@pytest.mark.parametrize("checkpoint_every", [3, 9])  # fails at a checkpoint; at the dead's aid
def test_c7_memory_that_is_gone_in_mid_training_is_one_sentence_and_nothing_is_lost(
    parts: Path, tmp_path: Path, checkpoint_every: int
) -> None:
    given, config = (parts / "model", parts / "train.bin"), starved_config(checkpoint_every)
    out = {tmp_path / "out": config}
    sentence = harsh.told_by(harsh.train_starved, parts, out, "step 11/")
    assert sentence.startswith("the memory of cpu ran out")
    assert "what was finished is kept" in sentence
    assert "\n" not in sentence
    said: list[str] = []
    train_saes_on_model(*given, out, progress=said.append)
    assert "resuming at step 9 of 18" in said
    train_saes_on_model(*given, {tmp_path / "whole": config}, progress=[].append)
    for name in ("sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def wide(activation: str) -> SparseAutoencoder:
    sae = SparseAutoencoder(SaeConfig(8, 16384, activation, 3 if activation == "topk" else None))
    generator = torch.Generator().manual_seed(0)
    for weight in sae.requires_grad_(requires_grad=False).parameters():
        weight.normal_(generator=generator)
    sae.b_enc.sub_(8)  # few fire
    return sae


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_c7_encoding_with_too_little_memory_goes_through_in_parts(activation: str) -> None:
    sae, x = wide(activation), torch.randn(2048, 8, generator=torch.Generator().manual_seed(1))
    rows = harsh.told_by(harsh.encode_starved, sae, x, 100 * MEGABYTE)  # of 134 and more
    for found, wanted in zip(rows, sae.encode_sparse(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_c7_memory_too_small_for_one_token_is_one_sentence() -> None:
    sae = SparseAutoencoder(SaeConfig(1, 1 << 23, "relu"))  # a token takes more than malloc keeps
    sae.requires_grad_(requires_grad=False).b_enc.sub_(8)
    sentence = harsh.told_by(harsh.encode_starved, sae, torch.ones(4, 1), 50_000)
    assert sentence.startswith("the memory of cpu ran out with a single token at once; ")


def test_c7_memory_that_torch_cannot_get_is_said_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def allocate(*_: object, **__: object) -> None:
        torch.empty(1 << 62, dtype=torch.uint8)

    monkeypatch.setattr(cli.demo, "callback", allocate)
    done = shell.invoke("demo")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: memory ran out; ")
