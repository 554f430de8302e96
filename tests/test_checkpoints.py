from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_core.checkpoints import FORMATS, read_sae, write_sae
from sae_core.errors import SaeError
from sae_core.sae import SaeConfig, SparseAutoencoder

D_IN, D_SAE = 5, 8


def _sae(activation: str = "topk", **changes: Any) -> SparseAutoencoder:
    k = 3 if activation == "topk" else None
    sae = SparseAutoencoder(SaeConfig(D_IN, D_SAE, activation, k, **changes))
    generator = torch.Generator().manual_seed(0)
    for weight in sae.requires_grad_(requires_grad=False).parameters():
        weight.normal_(generator=generator)
    return sae


def _x() -> torch.Tensor:
    return torch.randn(100, D_IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(
    ("to", "activation"),
    [
        ("saelens", "topk"),
        ("saelens", "relu"),
        ("saelens", "jumprelu"),
        ("sparsify", "topk"),
        ("dictionary-learning", "topk"),
        ("dictionary-learning", "relu"),
        ("circuit-tracer", "topk"),
        ("circuit-tracer", "relu"),
        ("circuit-tracer", "jumprelu"),
    ],
)
def test_there_and_back_changes_no_activation(
    tmp_path: Path, to: str, activation: str, *, subtracts: bool
) -> None:
    sae = _sae(activation, apply_b_dec_to_input=subtracts)
    write_sae(sae, tmp_path, to=to)
    again = read_sae(tmp_path, unsafe_import=True)
    assert (sae.encode(_x()) > 0).any()
    torch.testing.assert_close(again.encode(_x()), sae.encode(_x()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(_x()), sae(_x()), atol=1e-5, rtol=1e-5)


def test_sparsify_files_have_its_layout(tmp_path: Path) -> None:
    sae = _sae()
    write_sae(sae, tmp_path, to="sparsify")
    settings = json.loads((tmp_path / "cfg.json").read_text())
    assert settings["activation"] == "topk"
    assert (settings["k"], settings["num_latents"], settings["d_in"]) == (3, D_SAE, D_IN)
    tensors = load_file(tmp_path / "sae.safetensors")
    assert torch.equal(tensors["encoder.weight"], sae.W_enc.T)
    assert set(tensors) == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}


def test_dictionary_learning_files_have_its_layout(tmp_path: Path) -> None:
    sae = _sae()
    write_sae(sae, tmp_path, to="dictionary-learning")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    assert torch.equal(state["decoder.weight"], sae.W_dec.T)
    assert (state["k"].dtype, int(state["k"])) == (torch.int32, 3)
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["dict_size"]) == ("AutoEncoderTopK", D_SAE)


def test_circuit_tracer_encoder_is_the_transpose_of_saelens(tmp_path: Path) -> None:
    sae = _sae("jumprelu", apply_b_dec_to_input=False)
    write_sae(sae, tmp_path, to="circuit-tracer")
    tensors = load_file(tmp_path / "layer_0.safetensors")
    assert torch.equal(tensors["W_enc"], sae.W_enc.T)
    assert torch.equal(tensors["activation_function.threshold"], sae.threshold)


@pytest.mark.parametrize("lower_case", [False, True])
def test_gemma_scope_is_read(tmp_path: Path, *, lower_case: bool) -> None:
    sae = _sae("jumprelu", apply_b_dec_to_input=False)
    arrays = {name: weight.numpy() for name, weight in sae.state_dict().items()}
    if lower_case:
        arrays = {name.replace("W_", "w_"): array for name, array in arrays.items()}
    np.savez(tmp_path / "params.npz", **arrays)
    assert torch.equal(read_sae(tmp_path).encode(_x()), sae.encode(_x()))


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.write_text, (Path("pwned"), "x"))


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("unsafe_import", [False, True])
def test_a_malicious_pickle_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, *, unsafe_import: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ae.pt").write_bytes(
        pickle.dumps({"encoder.weight": _Malicious()}, protocol=protocol)
    )
    wanted = "it was not run" if unsafe_import else "add --unsafe-import to read its tensors only"
    with pytest.raises(SaeError, match=wanted):
        read_sae(tmp_path, unsafe_import=unsafe_import)
    assert not (tmp_path / "pwned").exists()


def test_an_array_of_objects_in_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([_Malicious()], dtype=object))
    with pytest.raises(SaeError, match="not a readable npz of arrays"):
        read_sae(tmp_path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"activation": "groupmax"}, "activation is 'groupmax'; only 'topk' is known"),
        ({"transcode": True}, "transcode is True; only False is known"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"k": 99}, r"k must be in 1\.\.d_sae = 8, got 99"),
        ({"k": "all"}, "sae.safetensors: "),
    ],
)
def test_a_sparsify_config_that_cannot_be_applied_is_named(
    tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    write_sae(_sae(), tmp_path, to="sparsify")
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SaeError, match=match):
        read_sae(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("encoder.bias", None, "tensor encoder.bias is missing"),
        ("W_skip", torch.zeros(5, 5), "tensor W_skip is not known in this format"),
        ("encoder.weight", torch.zeros(8), r"encoder.weight has shape \(8,\), a matrix was"),
        ("W_dec", torch.zeros(5, 8), r"W_dec has shape \(5, 8\), \(8, 5\) was expected"),
        ("b_dec", torch.full((5,), torch.nan), "tensor b_dec holds 5 values of 5 that are NaN"),
    ],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, name: str, value: torch.Tensor | None, match: str
) -> None:
    write_sae(_sae(), tmp_path, to="sparsify")
    path = tmp_path / "sae.safetensors"
    tensors = {key: weight for key, weight in load_file(path).items() if key != name}
    save_file(tensors | ({} if value is None else {name: value}), path)
    with pytest.raises(SaeError, match=match):
        read_sae(tmp_path)


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="sparsify holds topk dictionaries only"):
        write_sae(_sae("relu"), tmp_path, to="sparsify")
    with pytest.raises(SaeError, match="takes topk and relu from us"):
        write_sae(_sae("jumprelu"), tmp_path, to="dictionary-learning")
    with pytest.raises(SaeError, match="cannot rank by decoder norm"):
        write_sae(_sae(rescale_by_decoder_norm=True), tmp_path, to="circuit-tracer")
    with pytest.raises(ValueError, match="format must be one of saelens, sparsify"):
        write_sae(_sae(), tmp_path, to="onnx")


def test_a_folder_without_a_dictionary_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=r"looked for sae_weights\.safetensors, sae\.safetensors"):
        read_sae(tmp_path)


def test_every_format_is_tested() -> None:
    assert FORMATS == ("saelens", "sparsify", "dictionary-learning", "circuit-tracer")
