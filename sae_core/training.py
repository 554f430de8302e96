"""What both trainers share: a learning-rate schedule, and checkpoints to go on from exactly.

A checkpoint is replaced whole, and only by weights that are known to be good: those of step s are
written once the gradient of step s + 1 was finite. A signal, a full disk or a divergence leaves the
one before, and the message names it.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sae_core.errors import FeatureCircuitError, StoreError
from sae_core.files import DirectoryLock, write_text
from sae_core.tensors import n_bytes, read_all_tensors, read_metadata, write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

CHECKPOINT_FILE = "checkpoint.safetensors"
METRICS_FILE = "metrics.jsonl"
JSON_BYTES = 4096  # room for the settings written beside weights
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Progress(NamedTuple):
    """How far a checkpoint is."""

    step: int
    """Steps done."""

    metrics: list[dict[str, float]]
    """The curve so far, one row now and then."""

    tensors: dict[str, Tensor]
    """All that decides what comes next, by name."""


def trapezoid(step: int, *, n_steps: int, warm_up_steps: int, decay_share: float) -> float:
    """Give the share of the full learning rate at a step: linear rise, plateau, linear fall to 0.

    Args:
        step: 0 <= step < n_steps.
        n_steps: steps of the whole run.
        warm_up_steps: steps of the rise.
        decay_share: last share of the steps, over which it falls, in [0, 1]; 0 keeps it.

    Returns:
        A factor in (0, 1].

    Example:
        >>> [trapezoid(s, n_steps=100, warm_up_steps=10, decay_share=0.2) for s in (0, 50, 90)]
        [0.1, 1.0, 0.5]
    """
    rise = (step + 1) / warm_up_steps if warm_up_steps else 1.0
    fall = (n_steps - step) / math.ceil(decay_share * n_steps) if decay_share else 1.0
    return min(1.0, rise, fall)


def save_checkpoint(
    folder: Path, progress: Progress, settings: Mapping[str, Any], error: type[FeatureCircuitError]
) -> None:
    """Replace the curve and the checkpoint of a run; both appear whole or not at all.

    Args:
        folder: gets metrics.jsonl and checkpoint.safetensors.
        progress: step, curve and tensors.
        settings: everything that decides the weights; compared by `load_checkpoint`.
        error: class of the error to raise.

    Raises:
        FeatureCircuitError: of class `error`: a tensor is not finite; nothing is written.
        StoreError: the folder cannot be written or the disk is full.
    """
    for name, value in progress.tensors.items():
        if not bool(torch.isfinite(value).all()):
            said = f"lr {settings['lr']}, seed {settings['seed']}"
            refuse_divergence({name: math.nan}, progress.step, folder, said, error)
    state = {"settings": settings, "step": progress.step, "metrics": progress.metrics}
    rows = "".join(json.dumps(row) + "\n" for row in progress.metrics)
    with space_said(folder, n_bytes(progress.tensors) + len(rows)):
        write_text(folder / METRICS_FILE, rows)  # first: a whole checkpoint then has its curve
        metadata = {"state": json.dumps(state)}
        write_tensors(folder / CHECKPOINT_FILE, progress.tensors, metadata=metadata)


def load_checkpoint(
    folder: Path,
    settings: Mapping[str, Any],
    take: Callable[[dict[str, Tensor]], None],
    error: type[FeatureCircuitError],
) -> Progress | None:
    """Read the checkpoint of a run with the same settings.

    Args:
        folder: where `save_checkpoint` wrote.
        settings: everything that decides the weights, as asked for now.
        take: puts the tensors, by name, where they belong; a KeyError or RuntimeError of it means
            that they do not fit.
        error: class of the error to raise.

    Returns:
        How far the run is; None when there is no checkpoint.

    Raises:
        FeatureCircuitError: of class `error`: the file is broken, or was made with other settings;
            the message names the first field that differs and both values.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        state = json.loads(read_metadata(path, error)["state"])
        _check_same(path, state["settings"], json.loads(json.dumps(settings)), error)
        tensors = read_all_tensors(path, error)
        take(tensors)
        return Progress(int(state["step"]), state["metrics"], tensors)
    except (KeyError, ValueError, RuntimeError) as err:
        raise error(f"{path} is no checkpoint of this program ({err}); delete it") from err


def tensors_of(module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give a module's weights and an optimiser's moments by name, for a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for name, weight in module.named_parameters():
        tensors[f"weights.{name}"] = weight
        moments = optimiser.state[weight]
        tensors |= {f"optimiser.{name}.{key}": value for key, value in moments.items()}
    return tensors


@torch.no_grad()
def put_back(
    module: torch.nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `tensors_of` gave."""
    for name, weight in module.named_parameters():
        weight.copy_(tensors[f"weights.{name}"])
        prefix = f"optimiser.{name}."
        optimiser.state[weight] = {
            key.removeprefix(prefix): value.to(weight.device, copy=True)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }


def refuse_divergence(
    values: Mapping[str, float],
    step: int,
    folder: Path | None,
    settings: str,
    error: type[FeatureCircuitError],
) -> None:
    """Stop a training whose numbers are no longer finite.

    Args:
        values: name -> number of this step, e.g. its loss.
        step: the step.
        folder: where the checkpoint is; None when none is written.
        settings: the settings to blame, for the message.
        error: class of the error to raise.

    Raises:
        FeatureCircuitError: of class `error`: a value is NaN or infinite.
    """
    if all(math.isfinite(value) for value in values.values()):
        return
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    raise error(
        f"training diverged at step {step}: {said}, with {settings}; {kept(folder)}; "
        "lower the learning rate"
    )


def kept(folder: Path | None) -> str:
    """Say which checkpoint a folder holds."""
    path = None if folder is None else folder / CHECKPOINT_FILE
    if path is None or not path.exists():
        return "no checkpoint was written"
    step = json.loads(read_metadata(path, StoreError)["state"])["step"]
    return f"the last good checkpoint, of step {step}, is kept in {path}"


@contextmanager
def stop_said(folder: Path | None, say: Callable[[str], None]) -> Iterator[None]:
    """Say which checkpoint is kept when a signal, not an error, ends what is inside."""
    try:
        yield
    except BaseException as err:
        if folder is not None and not isinstance(err, Exception):
            say(kept(folder))
        raise


@contextmanager
def space_said(folder: Path, n_needed: int) -> Iterator[None]:
    """Say how much room was needed when the disk is full.

    Args:
        folder: the run's folder, on the same disk as what is written.
        n_needed: bytes of the weights, to be written beside those that they replace.

    Raises:
        StoreError: the disk is full; the message names the file and both numbers of bytes.
    """
    try:
        yield
    except (OSError, StoreError) as err:
        cause = err.__cause__ if isinstance(err, StoreError) else err
        if not isinstance(cause, OSError) or cause.errno not in DISK_FULL:
            raise
        said = str(err)
        if isinstance(err, OSError):
            said = f"{err.filename or folder} was not written: the disk is full"
        there = next(path for path in (folder, *folder.parents) if path.exists())
        n_free = shutil.disk_usage(there).free
        raise StoreError(
            f"{said}; {n_needed + JSON_BYTES:,} bytes are needed and {n_free:,} are free; {kept(folder)}"
        ) from err


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Let one training at a time write a folder.

    Raises:
        StoreError: another process writes it, or it cannot be written.
    """
    with ExitStack() as held:
        with space_said(folder, 0):
            held.enter_context(DirectoryLock(folder))
        yield


def to_stderr(line: str) -> None:
    """Write one line of progress."""
    sys.stderr.write(line + "\n")


def _check_same(
    path: Path,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    error: type[FeatureCircuitError],
) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise error(
                f"{path} was made with {name} = {found.get(name)}, now {wanted.get(name)} is "
                "asked for; "
                "use the old settings, another output folder, or delete it"
            )
