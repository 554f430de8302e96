"""Dictionaries in the formats of other projects: read into ours, and written for them.

| format | files | features |
|---|---|---|
| saelens | cfg.json, sae_weights.safetensors | topk, relu, jumprelu |
| sparsify | cfg.json, sae.safetensors | topk |
| dictionary-learning | config.json, ae.pt (a pickle) | topk, relu |
| circuit-tracer | config.yaml, layer_0.safetensors | topk, relu, jumprelu |
| gemma-scope (read only) | params.npz | jumprelu |

Where a format subtracts b_dec from the input and ours did not, or the other way round, the
difference is folded into b_enc, so that activations and reconstructions stay the same.
A pickle is read only when asked for, and then tensors only: nothing in it is run.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae_core.bounded import read_json
from sae_core.errors import SaeError
from sae_core.files import write_bytes, write_json, write_text
from sae_core.sae import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SaeConfig,
    SparseAutoencoder,
    load_sae,
    save_sae,
)
from sae_core.tensors import check_finite, read_all_tensors, write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

FORMATS = ("saelens", "sparsify", "dictionary-learning", "circuit-tracer")
SPARSIFY_FILE = "sae.safetensors"
PICKLE_FILE = "ae.pt"
PICKLE_CONFIG = "config.json"
GEMMA_FILE = "params.npz"
TRACER_FILE = "layer_0.safetensors"
TRACER_CONFIG = "config.yaml"


def read_sae(source: str | Path, *, unsafe_import: bool = False) -> SparseAutoencoder:
    """Read a dictionary in any known format.

    Args:
        source: its folder, or for Gemma Scope the folder of params.npz.
        unsafe_import: also read pickles, through a reader that makes tensors and runs nothing.

    Returns:
        The dictionary, in evaluation mode.

    Raises:
        SaeError: no known format is there, a part of it is not supported, or a tensor is wrong.
    """
    folder = Path(source)
    readers: dict[str, Callable[[Path], SparseAutoencoder]] = {
        WEIGHTS_FILE: load_sae,
        SPARSIFY_FILE: _read_sparsify,
        GEMMA_FILE: _read_gemma_scope,
        TRACER_FILE: _read_circuit_tracer,
    }
    for name, reader in readers.items():
        if (folder / name).is_file():
            sae = reader(folder)
            sae.name = str(source)
            return sae
    if (folder / PICKLE_FILE).is_file():
        sae = _read_dictionary_learning(folder, unsafe_import=unsafe_import)
        sae.name = str(source)
        return sae
    raise SaeError(
        f"{folder} holds no SAE of a known format; looked for {', '.join([*readers, PICKLE_FILE])}"
    )


def write_sae(sae: SparseAutoencoder, folder: str | Path, *, to: str) -> None:
    """Write a dictionary in another project's format.

    Args:
        sae: the dictionary.
        folder: made when it is not there.
        to: one of `FORMATS`.

    Raises:
        SaeError: the format cannot hold this kind of dictionary.
        ValueError: the format is unknown.
    """
    writers = {
        "saelens": save_sae,
        "sparsify": _write_sparsify,
        "dictionary-learning": _write_dictionary_learning,
        "circuit-tracer": _write_circuit_tracer,
    }
    if to not in writers:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {to!r}")
    if sae.config.rescale_by_decoder_norm and to != "saelens":
        raise SaeError(f"{to} cannot rank by decoder norm, as {sae.name} does; use saelens")
    writers[to](sae, Path(folder))


def _build(
    path: Path, config: SaeConfig, weights: Mapping[str, Tensor], threshold: Tensor | None = None
) -> SparseAutoencoder:
    """Make a dictionary of weights in our orientation, checked by name, shape and value."""
    given = dict(weights) | ({} if threshold is None else {"threshold": threshold})
    with torch.device("meta"):
        sae = SparseAutoencoder(config)
    for name, wanted in sae.state_dict().items():
        if given[name].shape != wanted.shape:
            raise SaeError(
                f"{path}: {name} has shape {tuple(given[name].shape)}, {tuple(wanted.shape)} was "
                "expected; the weights do not belong together"
            )
    check_finite(path, given, SaeError)
    ready = {name: weight.to(torch.float32).contiguous() for name, weight in given.items()}
    sae.load_state_dict(ready, assign=True)
    return sae.requires_grad_(requires_grad=False).eval()


def _take(path: Path, tensors: dict[str, Tensor], name: str) -> Tensor:
    """Take a tensor out of those found, or name it as missing."""
    if name not in tensors:
        found = ", ".join(tensors) or "none"
        raise SaeError(f"{path}: tensor {name} is missing (left: {found}); give the whole file")
    return tensors.pop(name)


def _refuse_extra(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if tensors:
        raise SaeError(
            f"{path}: tensor {next(iter(tensors))} is not known in this format; the dictionary "
            "would not be read right"
        )


def _matrix(path: Path, tensors: dict[str, Tensor], name: str) -> Tensor:
    found = _take(path, tensors, name)
    if found.ndim != 2:
        raise SaeError(f"{path}: {name} has shape {tuple(found.shape)}, a matrix was expected")
    return found


def _read_sparsify(folder: Path) -> SparseAutoencoder:
    path, settings = folder / SPARSIFY_FILE, read_json(folder / CONFIG_FILE, SaeError)
    for name, wanted in (
        ("activation", "topk"),
        ("transcode", False),
        ("skip_connection", False),
        ("signed", False),
    ):
        if settings.get(name, wanted) != wanted:
            raise SaeError(
                f"{folder / CONFIG_FILE}: {name} is {settings[name]!r}; only {wanted!r} is known"
            )
    tensors = read_all_tensors(path, SaeError)
    encoder = _matrix(path, tensors, "encoder.weight")  # (d_sae, d_in)
    weights = {
        "W_enc": encoder.T,
        "b_enc": _take(path, tensors, "encoder.bias"),
        "W_dec": _take(path, tensors, "W_dec"),
        "b_dec": _take(path, tensors, "b_dec"),
    }
    _refuse_extra(path, tensors)
    return _build(path, _topk(path, encoder, settings.get("k")), weights)


def _topk(path: Path, encoder: Tensor, k: Any, *, subtracts_b_dec: bool = True) -> SaeConfig:
    d_sae, d_in = encoder.shape
    try:
        return SaeConfig(d_in, d_sae, "topk", k, apply_b_dec_to_input=subtracts_b_dec)
    except (TypeError, ValueError) as err:
        raise SaeError(f"{path}: {err}") from err


def _write_sparsify(sae: SparseAutoencoder, folder: Path) -> None:
    config = sae.config
    if config.k is None:
        raise SaeError(f"sparsify holds topk dictionaries only, {sae.name} is {config.activation}")
    settings = {
        "activation": "topk",
        "expansion_factor": config.d_sae // config.d_in,
        "normalize_decoder": False,
        "num_latents": config.d_sae,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": config.d_in,
    }
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": _encoder_bias(sae, subtracts_b_dec=True),
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    write_tensors(folder / SPARSIFY_FILE, tensors)
    write_json(folder / CONFIG_FILE, settings)


def _encoder_bias(sae: SparseAutoencoder, *, subtracts_b_dec: bool) -> Tensor:
    """Give the b_enc that a format needs which does, or does not, subtract b_dec from x."""
    if sae.config.apply_b_dec_to_input == subtracts_b_dec:
        return sae.b_enc.detach()
    shift = (sae.b_dec @ sae.W_enc).detach()
    return sae.b_enc.detach() + (shift if subtracts_b_dec else -shift)


def _read_circuit_tracer(folder: Path) -> SparseAutoencoder:
    path = folder / TRACER_FILE
    tensors = read_all_tensors(path, SaeError)
    encoder = _matrix(path, tensors, "W_enc")  # (d_sae, d_in)
    weights = {
        "W_enc": encoder.T,
        "b_enc": _take(path, tensors, "b_enc"),
        "W_dec": _take(path, tensors, "W_dec"),
        "b_dec": _take(path, tensors, "b_dec"),
    }
    threshold = tensors.pop("activation_function.threshold", None)
    k = tensors.pop("k", None)
    _refuse_extra(path, tensors)
    if k is not None:
        return _build(path, _topk(path, encoder, int(k), subtracts_b_dec=False), weights)
    d_sae, d_in = encoder.shape
    activation = "relu" if threshold is None else "jumprelu"
    config = SaeConfig(d_in, d_sae, activation, apply_b_dec_to_input=False)
    return _build(path, config, weights, threshold)


def _write_circuit_tracer(sae: SparseAutoencoder, folder: Path) -> None:
    tensors = {
        "W_enc": sae.W_enc.T,
        "b_enc": _encoder_bias(sae, subtracts_b_dec=False),
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    if sae.config.k is not None:
        tensors["k"] = torch.tensor(sae.config.k)
    if sae.config.activation == "jumprelu":
        tensors["activation_function.threshold"] = sae.threshold
    write_tensors(folder / TRACER_FILE, tensors)
    hook = json.dumps(sae.config.hook_point)  # a JSON string is a YAML string
    lines = (
        "model_kind: transcoder_set",
        f"feature_input_hook: {hook}",
        f"feature_output_hook: {hook}",
    )
    write_text(folder / TRACER_CONFIG, "\n".join(lines) + "\n")


def _read_gemma_scope(folder: Path) -> SparseAutoencoder:
    path = folder / GEMMA_FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as err:
        raise SaeError(f"{path} is not a readable npz of arrays ({err})") from err
    tensors = {
        {"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name): value for name, value in found.items()
    }
    encoder = _matrix(path, tensors, "W_enc")  # (d_in, d_sae)
    weights = {"W_enc": encoder} | {
        name: _take(path, tensors, name) for name in ("b_enc", "W_dec", "b_dec")
    }
    threshold = _take(path, tensors, "threshold")
    _refuse_extra(path, tensors)
    d_in, d_sae = encoder.shape
    config = SaeConfig(d_in, d_sae, "jumprelu", apply_b_dec_to_input=False)
    return _build(path, config, weights, threshold)


def _read_dictionary_learning(folder: Path, *, unsafe_import: bool) -> SparseAutoencoder:
    path = folder / PICKLE_FILE
    if not unsafe_import:
        raise SaeError(
            f"{path} is a pickle, which can run programs when read; convert it to safetensors, or "
            "add --unsafe-import to read its tensors only"
        )
    tensors = _unpickle(path)
    tensors.pop("threshold", None)  # topk needs none; it is an estimate for batch-topk
    encoder = _matrix(path, tensors, "encoder.weight")  # (d_sae, d_in)
    weights = {
        "W_enc": encoder.T,
        "b_enc": _take(path, tensors, "encoder.bias"),
        "W_dec": _matrix(path, tensors, "decoder.weight").T,
    }
    d_sae, d_in = encoder.shape
    if "k" in tensors:
        config = _topk(path, encoder, int(tensors.pop("k")))
        weights["b_dec"] = _take(path, tensors, "b_dec")
    elif "decoder.bias" in tensors:
        config = SaeConfig(d_in, d_sae, "relu", apply_b_dec_to_input=False)
        weights["b_dec"] = tensors.pop("decoder.bias")
    else:
        config = SaeConfig(d_in, d_sae, "relu")
        weights["b_dec"] = _take(path, tensors, "bias")
    _refuse_extra(path, tensors)
    return _build(path, config, weights)


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # a hostile file can make the reader raise anything
        raise SaeError(f"{path} is not a pickle of tensors alone ({err}); it was not run") from err
    if not isinstance(found, dict) or not all(torch.is_tensor(value) for value in found.values()):
        raise SaeError(f"{path} holds more than named tensors; a state dict was expected")
    return {str(name): value for name, value in found.items()}


def _write_dictionary_learning(sae: SparseAutoencoder, folder: Path) -> None:
    config = sae.config
    if config.activation == "jumprelu":
        raise SaeError(f"dictionary-learning takes topk and relu from us, {sae.name} is jumprelu")
    state = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": _encoder_bias(sae, subtracts_b_dec=True),
        "decoder.weight": sae.W_dec.T,
    }
    if config.k is None:
        state["bias"] = sae.b_dec
    else:
        state |= {
            "b_dec": sae.b_dec,
            "k": torch.tensor(config.k, dtype=torch.int32),
            "threshold": torch.tensor(-1.0),
        }
    trainer = {
        "dict_class": "AutoEncoder" if config.k is None else "AutoEncoderTopK",
        "activation_dim": config.d_in,
        "dict_size": config.d_sae,
        "k": config.k,
        "submodule_name": config.hook_point,
        "seed": config.seed,
    }
    buffer = io.BytesIO()
    torch.save({name: value.detach().contiguous() for name, value in state.items()}, buffer)
    write_bytes(folder / PICKLE_FILE, buffer.getvalue())
    write_json(folder / PICKLE_CONFIG, {"trainer": trainer, "buffer": {}})
