"""Dictionaries in the formats of other projects: read into ours, and written for them.

| format | files | features |
|---|---|---|
| saelens | cfg.json, sae_weights.safetensors | topk, relu, jumprelu |
| sparsify | cfg.json, sae.safetensors | topk |
| dictionary-learning | config.json, ae.pt (a pickle) | topk, relu, jumprelu (read only) |
| circuit-tracer | config.yaml, layer_0.safetensors | topk, relu, jumprelu |
| gemma-scope (read only) | params.npz | jumprelu |

Where a format subtracts b_dec from the input and ours did not, or the other way round, the
difference is folded into b_enc, so that activations and reconstructions stay the same. Where both
k and a threshold are there, the format's own rule says which decides, or the file is refused.
A pickle is read only when asked for, and then tensors only: nothing in it is run.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae_core.bounded import read_json
from sae_core.errors import SaeError
from sae_core.files import write_bytes, write_json, write_text
from sae_core.pickles import read_pickled_tensors, refuse_pickle
from sae_core.sae import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SaeConfig,
    SparseAutoencoder,
    load_sae,
    save_sae,
)
from sae_core.saelens import with_unit_rows
from sae_core.tensors import check_finite, read_all_tensors, write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

FORMATS = ("saelens", "sparsify", "dictionary-learning", "circuit-tracer")
SPARSIFY_FILE = "sae.safetensors"
PICKLE_FILE = "ae.pt"
PICKLE_CONFIG = "config.json"
DICT_CLASSES = ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE")
GEMMA_FILE = "params.npz"
BAD_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError)
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
    refuse_pickle(folder)
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
    given = {name: weight.to(torch.float32) for name, weight in weights.items()}
    if threshold is not None:
        given["threshold"] = threshold.to(torch.float32)
    with torch.device("meta"):
        sae = SparseAutoencoder(config)
    for name, wanted in sae.state_dict().items():
        if given[name].shape != wanted.shape:
            raise SaeError(
                f"{path}: {name} has shape {tuple(given[name].shape)}, {tuple(wanted.shape)} was "
                "expected; the weights do not belong together"
            )
    check_finite(path, given, SaeError)
    ready = {name: weight.contiguous() for name, weight in given.items()}
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
    if k is not None and threshold is not None:
        raise SaeError(f"{path} holds both k and a threshold; only one of them can decide")
    if k is not None:
        config = _topk(path, encoder, _scalar(path, k, "k"), subtracts_b_dec=False)
        return _build(path, config, weights)
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
    except (OSError, ValueError, TypeError, MemoryError, EOFError, *BAD_ZIP) as err:
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
    tensors, kind = read_pickled_tensors(path), _dict_class(folder)
    encoder = _matrix(path, tensors, "encoder.weight")  # (d_sae, d_in)
    weights = {
        "W_enc": encoder.T,
        "b_enc": _take(path, tensors, "encoder.bias"),
        "W_dec": _matrix(path, tensors, "decoder.weight").T,
    }
    if kind in {"AutoEncoderTopK", "BatchTopKSAE"} or (kind is None and "k" in tensors):
        return _read_ranked(path, tensors, weights, kind)
    d_sae, d_in = encoder.shape
    is_new = kind == "AutoEncoderNew" or (kind is None and "decoder.bias" in tensors)
    weights["b_dec"] = _take(path, tensors, "decoder.bias" if is_new else "bias")
    _refuse_extra(path, tensors)
    config = SaeConfig(d_in, d_sae, "relu", apply_b_dec_to_input=not is_new)
    if not is_new and not _has_unit_rows(weights["W_dec"]):  # as its own reader does
        weights |= with_unit_rows({name: weight.float() for name, weight in weights.items()})
    return _build(path, config, weights)


def _dict_class(folder: Path) -> str | None:
    """Give the class that config.json names; None without that file."""
    path = folder / PICKLE_CONFIG
    if not path.exists():
        return None
    trainer = read_json(path, SaeError).get("trainer")
    found = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if found not in DICT_CLASSES:
        known = ", ".join(DICT_CLASSES)
        raise SaeError(f"{path}: dict_class {found!r} is not known; known are {known}")
    return str(found)


def _read_ranked(
    path: Path, tensors: dict[str, Tensor], weights: dict[str, Tensor], kind: str | None
) -> SparseAutoencoder:
    """Read one that holds both k and a threshold: its class says which of them decides."""
    weights["b_dec"] = _take(path, tensors, "b_dec")
    config = _topk(path, weights["W_enc"].T, _scalar(path, _take(path, tensors, "k"), "k"))
    threshold = _scalar(path, tensors.pop("threshold", torch.tensor(-1.0)), "threshold")
    _refuse_extra(path, tensors)
    is_set = threshold >= 0
    if is_set and kind is None:
        raise SaeError(
            f"{path} holds k and a threshold, and {PICKLE_CONFIG} beside it, which says which of "
            "them decides, is missing; put it there"
        )
    if kind != "BatchTopKSAE":
        return _build(path, config, weights)
    if not is_set:
        raise SaeError(f"{path}: threshold is {threshold}, which means not set; train it on")
    d_sae = config.d_sae
    jumprelu = SaeConfig(config.d_in, d_sae, "jumprelu")
    return _build(path, jumprelu, weights, torch.full((d_sae,), threshold))


def _scalar(path: Path, tensor: Tensor, name: str) -> float | int:
    if tensor.numel() != 1:
        raise SaeError(f"{path}: {name} has shape {tuple(tensor.shape)}, one number was expected")
    found: float | int = tensor.item()
    return found


def _has_unit_rows(W_dec: Tensor) -> bool:
    norms = W_dec.norm(dim=1)
    return torch.allclose(norms, torch.ones_like(norms))


def _write_dictionary_learning(sae: SparseAutoencoder, folder: Path) -> None:
    config = sae.config
    if config.activation == "jumprelu":
        raise SaeError(f"dictionary-learning takes topk and relu from us, {sae.name} is jumprelu")
    # Its reader gives rows of AutoEncoder unit norm, which would change activations
    is_new = config.k is None and not _has_unit_rows(sae.W_dec)
    state = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": _encoder_bias(sae, subtracts_b_dec=not is_new),
        "decoder.weight": sae.W_dec.T,
    }
    if config.k is None:
        state["decoder.bias" if is_new else "bias"] = sae.b_dec
    else:
        state |= {
            "b_dec": sae.b_dec,
            "k": torch.tensor(config.k, dtype=torch.int32),
            "threshold": torch.tensor(-1.0),
        }
    trainer = {
        "dict_class": "AutoEncoderTopK" if config.k else DICT_CLASSES[is_new],
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
