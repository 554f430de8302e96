"""Pickles: weights in files that can run programs when read; named and left alone, or tensors only.

1. `pickle_at` finds the one that a path is, or that lies in a folder, so that a message names it.
2. `read_pickled_tensors` is for a user who asked for it: torch's restricted reader makes tensors,
   and runs nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from sae_core.errors import SaeError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
READ = "SAELens, sparsify and circuit-tracer (safetensors) and Gemma Scope (npz)"


def pickle_at(path: Path) -> Path | None:
    """Give the file that is a pickle by its name: the path itself, or the first in that folder."""
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    found = (one for one in candidates if one.suffix.lower() in SUFFIXES and one.is_file())
    return next(found, None)


def refuse_pickle(path: Path) -> None:
    """Refuse a path that is, or holds, a pickle.

    Raises:
        SaeError: it does; the message names it and the formats that are read.
    """
    found = pickle_at(path)
    if found is not None:
        raise SaeError(
            f"{found} is a pickle, which can run programs when read, and is not read; formats read "
            f"are {READ}; convert it to safetensors"
        )


def read_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a pickle, and nothing else.

    Args:
        path: a state dict that torch wrote.

    Returns:
        name -> tensor on the CPU.

    Raises:
        SaeError: it holds anything but named tensors; nothing of it was run.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # a hostile file can make the reader raise anything
        raise SaeError(
            f"{path} is not a pickle of tensors alone; it was not run; give one that holds a state "
            "dict, or safetensors"
        ) from err
    if not isinstance(found, dict) or not all(torch.is_tensor(value) for value in found.values()):
        raise SaeError(f"{path} holds more than named tensors; a state dict was expected")
    return {str(name): value for name, value in found.items()}
