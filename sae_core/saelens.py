"""cfg.json in the layout of SAELens: what kind of dictionary it names, and fields of the right type.

Files of before SAELens 6.0 are flat, and name topk by `activation_fn_str`, whatever the
architecture. What cannot be applied is refused by name, with what is known beside it. One that
ranks features by the norm of their decoder rows is read with rows of unit norm, which is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sae_core.errors import SaeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

ARCHITECTURES = {"topk": "topk", "standard": "relu", "jumprelu": "jumprelu"}
ACTIVATION_NAMES = ("activation_fn_str", "activation_fn")  # of files before 6.0
KNOWN_ACTIVATIONS = ("relu", "topk")
MOST = 1 << 24  # of a size; a larger one is a slip
INERT = {  # values that change nothing when a dictionary is used
    "normalize_activations": ("none", None, False, True, "expected_average_only_in"),
    "reshape_activations": ("none", None),
}


def architecture_of(path: Path, fields: dict[str, Any]) -> str:
    """Give the architecture, a key of `ARCHITECTURES`.

    Args:
        path: of the file, for messages.
        fields: its fields.

    Raises:
        SaeError: architecture or activation is not known, or the input is to be normalised or
            reshaped in a way that is not done here.
    """
    found = str(fields.get("architecture", "standard"))
    if found not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise SaeError(f"{path}: architecture {found!r} is not known; known are {known}")
    for name, values in INERT.items():
        if fields.get(name, "none") not in values:
            raise SaeError(
                f"{path}: {name} is {fields[name]!r}; only 'none' can be applied; fold it into "
                "the weights first"
            )
    for name in ACTIVATION_NAMES:
        activation = fields.get(name) or "relu"
        if activation not in KNOWN_ACTIVATIONS:
            known = ", ".join(KNOWN_ACTIVATIONS)
            raise SaeError(f"{path}: {name} {activation!r} is not known; known are {known}")
        if activation == "topk":
            return "topk"
    return found


def size_of(fields: dict[str, Any], name: str) -> int:
    """Give a size.

    Raises:
        ValueError: it is no whole number >= 1, or absurdly large.
    """
    value = fields.get(name)
    if type(value) is not int or not 1 <= value < MOST:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
    return value


def flag_of(fields: dict[str, Any], name: str, *, default: bool) -> bool:
    """Give a field that is true or false.

    Raises:
        ValueError: it is neither.
    """
    value = fields.get(name, default)
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def with_unit_rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give decoder rows of unit norm, and an encoder with which reconstructions stay the same.

    Args:
        weights: W_enc (d_in, d_sae), b_enc (d_sae,) and W_dec (d_sae, d_in).

    Returns:
        The three anew; a row of zeros stays, and its feature is silent.
    """
    norms = weights["W_dec"].norm(dim=1)
    return {
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        "W_dec": weights["W_dec"] / torch.where(norms > 0, norms, 1)[:, None],
    }
