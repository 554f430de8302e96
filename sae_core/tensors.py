"""Named tensors in safetensors files: checked by name when read, written whole or not at all."""

from __future__ import annotations

import errno
import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sae_core.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from sae_core.errors import FeatureCircuitError

NO_MEMORY = os.strerror(errno.ENOMEM)  # how a file that cannot be mapped says it


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], error: type[FeatureCircuitError]
) -> dict[str, Tensor]:
    """Read exactly the tensors asked for, upcast to float32.

    Args:
        path: a safetensors file.
        shapes: name -> shape of every tensor that the file must hold, and no other.
        error: class of the error to raise.

    Returns:
        name -> float32 tensor on the CPU, all values finite.

    Raises:
        FeatureCircuitError: of class `error`: the file cannot be read, or a tensor is missing,
            extra, wrongly shaped or not finite; the message names it with the shape found and
            wanted.
    """
    found = read_all_tensors(path, error)
    _check_names(path, found, shapes, error)
    for name, shape in shapes.items():
        if tuple(found[name].shape) != tuple(shape):
            raise error(
                f"{path}: tensor {name} has shape {tuple(found[name].shape)}, {tuple(shape)} was "
                "expected; "
                "the weights and the settings beside them do not belong together"
            )
    tensors = {name: found[name].to(torch.float32, copy=True) for name in shapes}
    check_finite(path, tensors, error)
    return tensors


def read_all_tensors(path: Path, error: type[FeatureCircuitError]) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, as stored.

    Args:
        path: the file.
        error: class of the error to raise.

    Returns:
        name -> tensor on the CPU, in the file's own dtype.

    Raises:
        FeatureCircuitError: of class `error`: the file is absent, truncated or its header is
            broken.
    """
    with _opened(path, error) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def check_finite(
    path: Path | str, tensors: Mapping[str, Tensor], error: type[FeatureCircuitError]
) -> None:
    """Refuse weights that hold NaN or infinity.

    Args:
        path: where they are from, for the message.
        tensors: name -> tensor.
        error: class of the error to raise.

    Raises:
        FeatureCircuitError: of class `error`, naming the first such tensor and how many values are
            bad.
    """
    for name, tensor in tensors.items():
        n_bad = int((~torch.isfinite(tensor)).sum())
        if n_bad:
            raise error(
                f"{path}: tensor {name} holds {n_bad:,} values of {tensor.numel():,} that are "
                "NaN or infinite; "
                "finite weights were expected; use an earlier checkpoint"
            )


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write tensors to one safetensors file that appears whole or not at all.

    Args:
        path: the file.
        tensors: name -> tensor.
        dtype: type on disk; None keeps each tensor's own.
        metadata: strings for the file's header.
    """
    ready = {
        name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    write_bytes(path, save(ready, metadata=metadata))


def read_metadata(path: Path, error: type[FeatureCircuitError]) -> dict[str, str]:
    """Read the strings in a safetensors file's header.

    Args:
        path: the file.
        error: class of the error to raise.

    Returns:
        The header's metadata; empty when there is none.

    Raises:
        FeatureCircuitError: of class `error`: the file is absent or its header is broken.
    """
    with _opened(path, error) as file:
        return dict(file.metadata() or {})


def n_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Give the bytes that the tensors take in memory."""
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())


@contextmanager
def _opened(path: Path, error: type[FeatureCircuitError]) -> Iterator[Any]:
    """Open a safetensors file; what goes wrong with it is said with its name."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
        raise error(f"{path} is not a file, a safetensors file was expected; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as err:
        if NO_MEMORY in str(err):
            raise MemoryError from err
        raise error(
            f"{path} is not a readable safetensors file ({err}); copy or make it again"
        ) from err


def _check_names(
    path: Path,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    error: type[FeatureCircuitError],
) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        shape = tuple(wanted[missing[0]])
        raise error(
            f"{path}: tensor {missing[0]} of shape {shape} is missing (found: "
            f"{', '.join(found) or 'none'}); "
            "give a folder with the whole set of weights"
        )
    extra = [name for name in found if name not in wanted]
    if extra:
        raise error(
            f"{path}: tensor {extra[0]} of shape {tuple(found[extra[0]].shape)} is not one of "
            f"{', '.join(wanted)}; the settings beside it name another architecture"
        )
