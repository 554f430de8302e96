"""A harsh world: processes that are killed or short of memory, disks that are full.

Children are forked from a process that has loaded all that they need, so that each starts at once.
What they run is named here, where they can find it again.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import shell
import torch
from torch.overrides import TorchFunctionMode

from sae_core.errors import SaeError
from sae_core.train_sae import train_saes_on_model

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection

    from sae_core.sae import SparseAutoencoder
    from sae_core.train_settings import TrainSaeConfig

PIECES = [1 << n for n in range(26, 18, -1)]  # 64 MB to 512 KB
SPIN = 100_000  # rounds of a loop: some milliseconds
PRELOADED = ["cli", "sae_core.commands", "sae_core.train_sae", "pytest"]
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(PRELOADED)


class Ended(NamedTuple):
    """How a command in a child ended."""

    exit_code: int
    stdout: str
    stderr: str


def run_limited(room: int, *words: object) -> Ended:
    """Run a command in a child that may take `room` bytes of address space more than it has."""
    ended: Ended = told_by(_command, room, [str(word) for word in words])
    return ended


def told_by(task: Callable[..., Any], *given: object) -> Any:
    """Run a task of this module in a child; give what it sends, its last argument being the way."""
    here, there = CHILDREN.Pipe()
    child = CHILDREN.Process(target=task, args=(*given, there))
    child.start()
    there.close()
    try:
        told = here.recv()
    except EOFError:
        child.join()
        pytest.fail(f"the child ended with {child.exitcode} and said nothing")
    child.join()
    assert child.exitcode == 0
    return told


def kill_training(parts: Path, configs: Mapping[Path, TrainSaeConfig], after: int) -> None:
    """Train in a child, and kill it at some moment after that many lines of progress."""
    here, there = CHILDREN.Pipe()
    child = CHILDREN.Process(target=_train, args=(parts, dict(configs), there))
    child.start()
    there.close()
    for _ in range(after):
        here.recv()
        here.send("go on")
    for _ in range(random.randrange(SPIN)):  # some moment of the steps that follow
        pass
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL


class SmallMemory(TorchFunctionMode):
    """A device that has no room for a tensor of more than `n_most` elements."""

    def __init__(self, n_most: int) -> None:
        super().__init__()
        self.n_most = n_most

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if (
            isinstance(made, torch.Tensor)
            and made.is_floating_point()
            and made.numel() > self.n_most
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much.")
        return made


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a disk of 8 MB at a folder; without the rights to mount one, skip the test."""
    with _mounted(folder, ["-t", "tmpfs", "-o", "size=8m", "tmpfs"]):
        yield folder


@contextmanager
def read_only(folder: Path, place: Path) -> Iterator[Path]:
    """Give a folder that nobody can write: mounted so at a place for root, else by its permissions."""
    if os.geteuid() == 0:
        with _mounted(place, ["--bind", str(folder)], ["-o", "remount,ro,bind"]):
            yield place
        return
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)


@contextmanager
def _mounted(place: Path, *options: list[str]) -> Iterator[None]:
    """Mount something at a place, in one step or several; where that cannot be, skip the test."""
    place.mkdir()
    try:
        for words in options:
            command = ["mount", *words, str(place)]
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here; that needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as children do."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def limit_memory(room: int) -> None:
    """Let this process take `room` bytes of address space more than it has."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, mapped + room))


def _command(room: int, words: list[str], there: Connection) -> None:
    torch.set_num_threads(1)
    limit_memory(room)
    result = shell.invoke(*words)
    there.send(Ended(result.exit_code, result.stdout, result.stderr))


def _train(parts: Path, configs: dict[Path, TrainSaeConfig], there: Connection) -> None:
    torch.set_num_threads(1)

    def say(line: str) -> Any:
        there.send(line)
        there.recv()

    train_saes_on_model(parts / "model", parts / "train.bin", configs, progress=say)


def train_starved(
    parts: Path, configs: dict[Path, TrainSaeConfig], line: str, there: Connection
) -> None:
    """Train, with hardly any memory left from some line of progress on; send the error."""
    torch.set_num_threads(1)
    taken: list[bytearray] = []

    def say(said: str) -> None:
        if said.startswith(line):
            limit_memory(PIECES[-1])
            for size in PIECES:  # what was freed, and would be used again
                with suppress(MemoryError):
                    while True:
                        taken.append(bytearray(size))

    try:
        train_saes_on_model(parts / "model", parts / "train.bin", configs, progress=say)
    except SaeError as err:
        there.send(str(err))
    else:
        there.send("")


def encode_starved(sae: SparseAutoencoder, x: torch.Tensor, room: int, there: Connection) -> None:
    """Encode with `room` bytes left; send the rows, or the error's sentence."""
    torch.set_num_threads(1)
    sae.encode_sparse(x[:2])  # compiled loops are loaded
    limit_memory(room)
    try:
        there.send(tuple(sae.encode_sparse(x)))
    except SaeError as err:
        there.send(str(err))
