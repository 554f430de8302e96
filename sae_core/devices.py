"""Where a training runs: the device that was asked for, and portions that fit into its memory.

1. `choose_device` refuses a GPU that is not there, before any work.
2. `Portions` sends all rows of a batch through at once. When memory runs out it halves them and
   tries again, down to one row; what the rows add up to stays the same up to rounding.
3. `memory_said` turns what cannot be halved away into one sentence.
4. A child that is forked computes with one thread.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from sae_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sae_core.errors import FeatureCircuitError

DEVICES = re.compile(r"cpu|cuda(?::(\d{1,3}))?")
NO_MEMORY = re.compile(  # what torch says; Python, of a thread's stack; oneDNN, of a product's room
    "DefaultCPUAllocator|can't start new thread|^could not create a primitive$"
)
ADVICE = "take a smaller model, free some of that memory, or run on another device"

Made = TypeVar("Made")


def choose_device(name: str) -> torch.device:
    """Give the device of a name, when it is there.

    Args:
        name: `cpu`, `cuda` (the first GPU) or `cuda:N`.

    Returns:
        The device.

    Raises:
        ValueError: the name is none of these.
        ModelError: there is no such GPU.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    found = DEVICES.fullmatch(name)
    if found is None:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if name != "cpu":
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(found[1] or 0) >= n_gpus:
            there = f"the last one here is cuda:{n_gpus - 1}" if n_gpus else "there is no GPU here"
            raise ModelError(f"the device {name} is asked for, but {there}; use --device cpu")
    return torch.device(name)


class Portions:
    """How many rows of a batch go through the device at once: all, until its memory runs out."""

    def __init__(
        self,
        n_most: int | None,
        unit: str,
        device: torch.device,
        say: Callable[[str], None],
        error: type[FeatureCircuitError],
    ) -> None:
        """Start with `n_most` rows at once, None with all; `unit` names one row, e.g. `window`."""
        self.size = n_most or sys.maxsize
        self.unit = unit
        self.device = device
        self.say = say
        self.error = error

    def slices(self, n_rows: int) -> list[slice]:
        """Give the portions of a batch, in order."""
        starts = range(0, n_rows, self.size)
        return [slice(at, min(at + self.size, n_rows)) for at in starts]

    def fit(self, compute: Callable[[], Made], n_rows: int) -> Made:
        """Compute; when memory runs out, from the start again with half as many rows at once.

        Args:
            compute: goes through `slices`, and may be called again after it failed.
            n_rows: rows of the batch.

        Returns:
            What it gives. That the rows at once became fewer is said in one line.

        Raises:
            FeatureCircuitError: of class `error`: a single row does not fit.
        """
        n_tried = n_at_once = min(self.size, n_rows)
        while True:
            try:
                made = compute()
                break
            except (RuntimeError, MemoryError) as err:
                if not is_out_of_memory(err):
                    raise
                if n_at_once == 1:
                    raise self.error(
                        f"the memory of {self.device} ran out with a single {self.unit} at once; "
                        f"{ADVICE}; what was finished is kept"
                    ) from err
            n_at_once = self._halve(n_at_once)  # here, where no error holds the memory any more
        if n_at_once < n_tried:
            self.say(
                f"the memory of {self.device} ran out with {n_tried} {self.unit}s at once: from "
                f"here on {n_at_once} at a time, with the same result up to rounding"
            )
        return made

    def _halve(self, n_at_once: int) -> int:
        self.size = n_at_once // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self.size


def is_out_of_memory(err: BaseException) -> bool:
    """Say whether an error means that a GPU or this machine has no memory left to give."""
    is_torch = isinstance(err, RuntimeError) and NO_MEMORY.search(str(err)) is not None
    return is_torch or isinstance(err, torch.OutOfMemoryError | MemoryError)


# The threads of OpenMP do not live on in a child that is forked; torch would wait for them forever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


@contextmanager
def memory_said(device: torch.device, error: type[FeatureCircuitError]) -> Iterator[None]:
    """Turn an error of memory into one sentence of class `error`; others pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        raise error(f"the memory of {device} ran out; {ADVICE}; what was finished is kept") from err
