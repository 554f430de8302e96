from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from sae_core import sparsify
from sae_core.errors import SaeError
from sae_core.sae import (
    SaeConfig,
    SparseAutoencoder,
    embedded_saes,
    load_sae,
    save_sae,
    to_sparse,
    top_k_mask,
)

if TYPE_CHECKING:
    from pathlib import Path

D_IN, D_SAE = 6, 10


def _sae(activation: str = "topk", seed: int = 0, **changes: object) -> SparseAutoencoder:
    k = 3 if activation == "topk" else None
    config = replace(SaeConfig(D_IN, D_SAE, activation, k), **changes)  # type: ignore[arg-type]
    sae = SparseAutoencoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.normal_(generator=generator)
            if name == "threshold":
                weight.abs_()
    return sae.eval().requires_grad_(requires_grad=False)


def _x(seed: int = 0, n: int = 50) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed + 100))


def _naive_acts(sae: SparseAutoencoder, x: np.ndarray) -> np.ndarray:
    """One token, feature by feature, after the module's docstring."""
    config = sae.config
    weights = {name: weight.numpy() for name, weight in sae.state_dict().items()}
    centred = x - weights["b_dec"] if config.apply_b_dec_to_input else x
    pre = centred @ weights["W_enc"] + weights["b_enc"]
    acts = np.maximum(pre, 0)
    if config.activation == "jumprelu":
        acts[pre <= weights["threshold"]] = 0
    if config.k is not None:
        norms = np.linalg.norm(weights["W_dec"], axis=1)
        rank = acts * norms if config.rescale_by_decoder_norm else acts
        order = sorted(range(len(acts)), key=lambda i: (-rank[i], i))
        acts[order[config.k :]] = 0
    return np.asarray(acts)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("activation", "changes"),
    [
        ("topk", {}),
        ("topk", {"apply_b_dec_to_input": False}),
        ("topk", {"rescale_by_decoder_norm": True}),
        ("relu", {}),
        ("jumprelu", {}),
    ],
)
def test_activations_equal_those_of_a_naive_twin(
    activation: str, changes: dict[str, object], seed: int
) -> None:
    sae = _sae(activation, seed, **changes)
    x = _x(seed)
    wanted = np.stack([_naive_acts(sae, row) for row in x.numpy()])
    assert (wanted > 0).any()
    np.testing.assert_allclose(sae.encode(x).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_equal_values_go_to_the_lowest_feature() -> None:
    acts = torch.tensor([[2.0, 5.0, 2.0, 2.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [1.0] * 5])
    wanted = [[1, 1, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert top_k_mask(acts, 3).int().tolist() == wanted


def test_at_most_k_features_fire() -> None:
    fires = (_sae().encode(_x(n=500)) > 0).sum(dim=1)
    assert int(fires.max()) == 3
    assert int(fires.min()) >= 0


def test_leading_axes_are_kept() -> None:
    sae, x = _sae(), _x(n=12)
    folded = sae.encode(x.view(3, 4, D_IN))
    assert torch.equal(folded.view(12, D_SAE), sae.encode(x))
    assert sae.decode(folded).shape == (3, 4, D_IN)


@pytest.mark.parametrize("slab_rows", [7, 50, 2048])
@pytest.mark.parametrize(
    ("activation", "changes"),
    [
        ("topk", {}),
        ("topk", {"k": 1}),
        ("topk", {"k": D_SAE}),
        ("topk", {"apply_b_dec_to_input": False}),
        ("topk", {"rescale_by_decoder_norm": True}),
        ("relu", {}),
        ("jumprelu", {}),
    ],
)
def test_sparse_rows_hold_what_fires_in_ascending_order(
    activation: str,
    changes: dict[str, object],
    slab_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparsify, "SLAB_ROWS", slab_rows)
    sae, x = _sae(activation, **changes), _x()
    dense = sae.encode(x).numpy()
    rows = sae.encode_sparse(x)
    assert rows.indptr.dtype == np.int64
    assert rows.indices.dtype == np.uint32
    assert rows.values.dtype == np.float32
    again = np.zeros_like(dense)
    for token in range(len(dense)):
        cut = slice(rows.indptr[token], rows.indptr[token + 1])
        assert (np.diff(rows.indices[cut].astype(int)) > 0).all()
        again[token, rows.indices[cut]] = rows.values[cut]
    np.testing.assert_allclose(again, dense, rtol=1e-6)
    assert np.array_equal(again > 0, dense > 0)
    assert (rows.values > 0).all()


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu", "identity"])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_sparse_rows_decode_to_what_dense_ones_do(activation: str, n: int) -> None:
    sae = _sae(activation) if activation != "identity" else SparseAutoencoder.neurons(D_IN)
    x = _x(n=50)[:n]
    found = sae.decode_sparse(sae.encode_sparse(x))
    assert found.shape == (n, D_IN)
    torch.testing.assert_close(found, sae(x))


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_a_token_that_is_no_number_shows_in_its_row(activation: str) -> None:
    sae, x = _sae(activation), _x(n=5)
    x[2, 0] = torch.nan
    rows = sae.encode_sparse(x)
    bad = np.flatnonzero(~np.isfinite(rows.values))
    assert bad.tolist() == [rows.indptr[2]]
    assert rows.indptr[3] == rows.indptr[2] + 1


def test_no_token_gives_no_rows() -> None:
    rows = to_sparse(torch.zeros(0, D_SAE))
    assert rows.indptr.tolist() == [0]
    assert len(rows.values) == 0


def test_neurons_change_nothing() -> None:
    sae = SparseAutoencoder.neurons(D_IN)
    x = _x().relu()
    assert torch.equal(sae(x), x)
    assert torch.equal(sae.encode(x), x)
    assert torch.equal(x @ sae.W_dec + sae.b_dec, x)
    assert sae.name == "neurons"


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_a_saved_dictionary_encodes_the_same(tmp_path: Path, activation: str) -> None:
    sae = _sae(activation, hook_point="blocks.2.mlp.hook_post", model_hash="abc", seed=7)
    save_sae(sae, tmp_path)
    again = load_sae(tmp_path)
    assert again.config == sae.config
    assert again.weights_hash == sae.weights_hash
    assert torch.equal(again.encode(_x()), sae.encode(_x()))


def test_neurons_are_saved_as_the_dictionary_they_equal(tmp_path: Path) -> None:
    save_sae(SparseAutoencoder.neurons(D_IN), tmp_path)
    x = _x().relu()
    torch.testing.assert_close(load_sae(tmp_path)(x), x)


def test_the_files_have_the_layout_of_saelens(tmp_path: Path) -> None:
    save_sae(_sae(), tmp_path, dtype=torch.float16)
    fields = json.loads((tmp_path / "cfg.json").read_text())
    assert fields["architecture"] == "topk"
    assert fields["k"] == 3
    assert fields["dtype"] == "float16"
    assert fields["normalize_activations"] == "none"
    assert fields["metadata"]["hook_name"] == "blocks.0.mlp.hook_post"
    shapes = {
        name: tuple(weight.shape)
        for name, weight in load_file(tmp_path / "sae_weights.safetensors").items()
    }
    wanted = {"W_enc": (6, 10), "b_enc": (10,), "W_dec": (10, 6), "b_dec": (6,)}
    assert shapes == wanted


def test_a_square_dictionary_is_not_transposed(tmp_path: Path) -> None:
    sae = SparseAutoencoder(SaeConfig(4, 4, "relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.arange(16.0).view(4, 4))
    save_sae(sae, tmp_path)
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert load_sae(tmp_path).encode(one).tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_a_flat_config_from_before_saelens_6_is_read(tmp_path: Path) -> None:
    sae = _sae()
    save_sae(sae, tmp_path)
    flat = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "hook_name": "blocks.1.mlp.hook_post",
        "hook_layer": 1,
        "normalize_activations": False,
        "dtype": "torch.float32",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    again = load_sae(tmp_path)
    assert again.config.hook_point == "blocks.1.mlp.hook_post"
    assert torch.equal(again.encode(_x()), sae.encode(_x()))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "gated"}, "architecture 'gated' is not known; known are topk, standard"),
        ({"architecture": None}, "architecture 'None' is not known"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"d_in": "6"}, "d_in must be a whole number >= 1, got '6'"),
        ({"d_sae": 1 << 60}, "d_sae must be a whole number"),
        ({"d_sae": 1 << 23, "d_in": 1 << 23}, "tensor W_enc has shape"),
        ({"d_sae": 11}, r"tensor W_enc has shape \(6, 10\), \(6, 11\) was expected"),
        ({"k": 0}, r"k must be in 1\.\.d_sae = 10, got 0"),
        ({"k": None}, "k belongs to topk; got k None with topk"),
        ({"k": "3"}, "cfg.json"),
    ],
)
def test_a_config_that_cannot_be_applied_is_named(
    tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    save_sae(_sae(), tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SaeError, match=match):
        load_sae(tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 1_000_000, " " * (2 << 20), '{"k": 1, "k": 2}', "[]"])
def test_a_hostile_config_is_named(tmp_path: Path, text: str) -> None:
    save_sae(_sae(), tmp_path)
    (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(SaeError, match=r"cfg\.json"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("W_dec", None, r"tensor W_dec of shape \(10, 6\) is missing"),
        ("threshold", torch.zeros(10), r"tensor threshold of shape \(10,\) is not one of W_enc"),
        ("b_enc", torch.zeros(6), r"tensor b_enc has shape \(6,\), \(10,\) was expected"),
        ("b_dec", torch.full((6,), torch.inf), "tensor b_dec holds 6 values of 6 that are NaN"),
    ],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, name: str, value: torch.Tensor | None, match: str
) -> None:
    save_sae(_sae(), tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    tensors = {key: weight for key, weight in load_file(path).items() if key != name}
    save_file(tensors | ({} if value is None else {name: value}), path)
    with pytest.raises(SaeError, match=match):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ((0, 4, "relu", None), "d_in and d_sae must be >= 1, got 0 and 4"),
        ((4, 4, "gelu", None), "activation must be one of topk, relu, jumprelu, identity"),
        ((4, 4, "relu", 2), "k belongs to topk; got k 2 with relu"),
        ((4, 4, "topk", None), "k belongs to topk; got k None with topk"),
        ((4, 4, "topk", 5), r"k must be in 1\.\.d_sae = 4, got 5"),
        ((4, 8, "identity", None), "identity needs d_in = d_sae, got 4 and 8"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: tuple[int, int, str, int | None], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        SaeConfig(*settings)


def test_an_unknown_name_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=r"no SAE '.*Z/9': it is not an embedded one .*neurons"):
        load_sae(f"{tmp_path}/Z/9")


def test_neurons_by_name_take_the_models_width(tmp_path: Path) -> None:
    model = tiny.language_model(tmp_path)
    assert load_sae("neurons", model=model).config.d_sae == 24
    with pytest.raises(ValueError, match="the neurons of which model"):
        load_sae("neurons")


def test_every_embedded_dictionary_loads() -> None:
    for name in embedded_saes():
        assert load_sae(name).name == name
