"""Faults while training, made for real: kills, signals, full disks; ids are of the table of faults.

Every fault is followed by the same command again, whose final files must equal, byte for byte,
those of a run that nothing disturbed.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from typing import TYPE_CHECKING

import harsh
import pytest
import shell
import tiny

from sae_core.errors import StoreError
from sae_core.tensors import read_metadata
from sae_core.train_model import TrainModelConfig, train_model
from sae_core.train_sae import train_sae_on_model
from sae_core.train_settings import TrainSaeConfig

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

N_STEPS = 160
PAGE = 4096
SNAPSHOT_TOKENS = 11 * 64  # after step 11, between the checkpoints of steps 9 and 12
SNAPSHOT = f"snapshots/{SNAPSHOT_TOKENS:011d}"
SNAPSHOTS = f"--snapshots {SNAPSHOT_TOKENS},{100 * 64}"
BETWEEN = {  # what is written after step 9, in order
    "model": (
        f"{SNAPSHOT}/model.safetensors",
        f"{SNAPSHOT}/config.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
    ),
    "sae": ("metrics.jsonl", "checkpoint.safetensors"),
}
FINAL = {  # what is written after the last step, in order
    "model": ("tokenizer.json", "model.safetensors", "config.json"),
    "sae": ("training.json", "sae_weights.safetensors", "cfg.json"),
}
RESUME = "run the same command again to go on"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, tokenizer and model, and both trainings that nothing disturbed."""
    folder = tiny.write_training(tmp_path_factory.mktemp("training"))
    for what in FINAL:
        result = train(what, folder, folder / f"whole-{what}")
        assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute here as in the processes that `shell` starts, so that sums are equal to the bit."""
    with harsh.one_thread():
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    with harsh.small_disk(tmp_path / "disk") as folder:
        yield folder


def words_of(what: str, folder: Path, out: Path) -> list[str]:
    more = SNAPSHOTS if what == "model" else ""
    return tiny.train_words(what, folder, out, n_steps=N_STEPS, more=more)


def train(what: str, folder: Path, out: Path) -> Result:
    return shell.invoke(*words_of(what, folder, out))


def step_of(out: Path) -> int:
    """Give the steps that the checkpoint of a training holds, 0 without one."""
    path = out / "checkpoint.safetensors"
    if not path.exists():
        return 0
    return int(json.loads(read_metadata(path, StoreError)["state"])["step"])


def finals(out: Path, what: str) -> dict[str, str]:
    """Give the hashes of what a training is for: its final files and snapshots."""
    found = shell.digests(out)
    return {name: found[name] for name in found if name in FINAL[what] or "snapshots" in name}


def wait_for(process: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not holds() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()


def assert_goes_on(what: str, parts: Path, out: Path) -> None:
    """Expect the same command again to end with the bytes of the run that nothing disturbed."""
    step = step_of(out)
    result = train(what, parts, out)
    assert result.exit_code == 0, result.stderr
    assert (f"resuming at step {step} of {N_STEPS}" in result.stderr) == (step > 0)
    whole = parts / f"whole-{what}"
    assert finals(out, what) == finals(whole, what)
    assert len(finals(out, what)) == (7 if what == "model" else 3)


def recorded(out: Path) -> list[int]:
    """Give the steps of a curve's rows."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


# R2 and R3: kills and signals


@pytest.mark.parametrize("moment", ["first write", 20, 90])
@pytest.mark.parametrize("what", FINAL)
def test_r2_a_killed_training_goes_on_to_the_same_bytes(
    what: str, moment: str | int, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = shell.start(*words_of(what, parts, out))
    if isinstance(moment, int):
        wait_for(process, lambda: step_of(out) >= moment)
    else:
        wait_for(process, out.exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / FINAL[what][-1]).exists()
    assert_goes_on(what, parts, out)
    assert recorded(out) == recorded(parts / f"whole-{what}")


@pytest.mark.parametrize(
    ("what", "number", "code"), [("model", signal.SIGINT, 130), ("sae", signal.SIGTERM, 143)]
)
def test_r3_a_signal_stops_a_training_and_names_the_checkpoint(
    what: str, number: int, code: int, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = shell.start(*words_of(what, parts, out))
    wait_for(process, lambda: step_of(out) > 0)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == code
    assert stdout == b""
    lines = stderr.decode().splitlines()
    kept = f"of step {step_of(out)}, is kept in {out / 'checkpoint.safetensors'}"
    assert kept in lines[-2]
    assert RESUME in lines[-1]
    assert not list(out.glob("*.tmp"))
    assert_goes_on(what, parts, out)


# R8: two writers


@pytest.mark.parametrize("what", FINAL)
def test_r8_a_second_training_in_the_same_folder_is_refused_until_the_first_is_gone(
    what: str, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = shell.start(*words_of(what, parts, out))
    wait_for(process, lambda: step_of(out) > 0)
    process.send_signal(signal.SIGSTOP)
    second = train(what, parts, out)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert second.exit_code == 1
    said = second.stderr.splitlines()[-1]
    assert f"{out} is being written by process {process.pid}" in said
    assert "wait for it" in said
    assert_goes_on(what, parts, out)


# R4: full disks


def every(files: dict[str, tuple[str, ...]]) -> list[tuple[str, int]]:
    return [(what, at) for what, names in files.items() for at in range(len(names))]


def stop_at_10(line: str) -> None:
    """Be told of progress; interrupt at step 10, when the checkpoint is of step 9."""
    if line.startswith("step 10/"):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stopped(parts: Path) -> Path:
    """Both trainings with a checkpoint of step 9 and a row of the curve, but no snapshot yet."""
    folder = parts / "stopped"
    every = {"warm_up_steps": 5, "checkpoint_every": 3}
    model = TrainModelConfig(
        64 * N_STEPS, tiny.config(), batch_windows=4, validate_every=5, **every
    )
    texts = parts / "train.bin", parts / "validation.bin"
    with pytest.raises(KeyboardInterrupt):
        train_model(*texts, folder / "model", model, progress=stop_at_10)
    sae = TrainSaeConfig(
        24, 32, 3, 32 * N_STEPS, batch_size=32, block_windows=8, record_every=5, **every
    )
    with pytest.raises(KeyboardInterrupt):
        train_sae_on_model(parts / "model", texts[0], folder / "sae", sae, progress=stop_at_10)
    return folder


def pages(*paths: Path) -> int:
    """Give the room that files take on the small disk."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in paths)


def assert_full(what: str, parts: Path, out: Path, room: int, name: str) -> None:
    """Expect a training with so little room left to stop at one file, and to go on with more."""
    filler = out.parent / "filler"
    room += PAGE  # of the lock
    filler.write_bytes(b"x" * (shutil.disk_usage(out).free - room))
    assert shutil.disk_usage(out).free == room
    step, before = step_of(out), shell.digests(out)
    result = train(what, parts, out)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert f"Error: {out / name} was not written: the disk is full" in last
    assert re.search(r"; [\d,]+ bytes are needed and [\d,]+ are free;", last)
    assert f"of step {step}, is kept in {out / 'checkpoint.safetensors'}" in last
    after = shell.digests(out)
    assert name not in after or after[name] == before[name]
    assert step_of(out) == step
    assert not [path for path in after if path.endswith(".tmp")]
    filler.unlink()
    assert_goes_on(what, parts, out)


@pytest.mark.parametrize(("what", "at"), every(BETWEEN))
def test_r4_a_full_disk_in_mid_training_leaves_the_checkpoint(
    what: str, at: int, parts: Path, stopped: Path, disk: Path
) -> None:
    out, whole = disk / what, parts / f"whole-{what}"
    shutil.copytree(stopped / what, out)
    room = pages(*(whole / name for name in BETWEEN[what][:at]))
    assert_full(what, parts, out, room, BETWEEN[what][at])


@pytest.mark.parametrize("what", FINAL)
def test_r4_a_disk_with_no_room_at_all_is_said_before_training(
    what: str, parts: Path, disk: Path
) -> None:
    (disk / "filler").write_bytes(b"x" * shutil.disk_usage(disk).free)
    out = disk / what
    result = train(what, parts, out)
    assert result.exit_code == 1
    said = f"Error: {out} was not written: the disk is full"
    assert said in result.stderr.splitlines()[-1]
    assert "bytes are needed and 0 are free" in result.stderr.splitlines()[-1]
    (disk / "filler").unlink()
    assert_goes_on(what, parts, out)


@pytest.mark.parametrize(("what", "at"), every(FINAL))
def test_r4_a_full_disk_at_the_end_leaves_no_half_model(
    what: str, at: int, parts: Path, disk: Path
) -> None:
    out, whole = disk / what, parts / f"whole-{what}"
    shutil.copytree(whole, out)
    for name in FINAL[what]:
        (out / name).unlink()
    room = pages(*(whole / name for name in FINAL[what][:at]))
    assert_full(what, parts, out, room, FINAL[what][at])
