"""Faults of dictionaries on disk, made for real: S1 to S4, and S6, of the table of faults."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shell
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from sae_core.checkpoints import read_sae
from sae_core.errors import SaeError
from sae_core.sae import SaeConfig, SparseAutoencoder, load_sae, save_sae
from sae_core.train_sae import train_sae
from sae_core.train_settings import TrainSaeConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

D_IN, D_SAE, K = 6, 10, 3
ACTIVATIONS = ("topk", "relu", "jumprelu")
WEIGHTS = "sae_weights.safetensors"


def made(activation: str = "topk", d_sae: int = D_SAE, **changes: Any) -> SparseAutoencoder:
    """Make a dictionary of random weights, whose decoder rows have any norm."""
    k = K if activation == "topk" else None
    sae = SparseAutoencoder(SaeConfig(D_IN, d_sae, activation, k, **changes))
    generator = torch.Generator().manual_seed(0)
    for name, weight in sae.requires_grad_(requires_grad=False).named_parameters():
        weight.normal_(generator=generator)
        if name == "threshold":
            weight.abs_()
    return sae


def inputs(n: int = 100) -> Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1))


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a settings file; None takes one out."""
    fields = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in fields.items() if value is not None}
    path.write_text(json.dumps(kept))


def put(path: Path, **tensors: Tensor | None) -> None:
    """Change tensors of a file; None takes one out."""
    found = load_file(path) | tensors
    save_file({name: t.contiguous() for name, t in found.items() if t is not None}, path)


def pickled(folder: Path, kind: str | None, tensors: dict[str, Tensor], **trainer: Any) -> None:
    """Write ae.pt as dictionary_learning does, and config.json where a class is given."""
    torch.save(tensors, folder / "ae.pt")
    if kind is not None:
        settings = {"trainer": {"dict_class": kind, **trainer}}
        (folder / "config.json").write_text(json.dumps(settings))


def said(read: Callable[[], object]) -> str:
    """Give the one sentence with which something is refused."""
    with pytest.raises(SaeError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# S1: transposed weights


def write_saelens(folder: Path, sae: SparseAutoencoder) -> None:
    tensors = {name: weight.clone() for name, weight in sae.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)  # W_enc (d_in, d_sae), W_dec (d_sae, d_in)
    fields = {"architecture": "topk", "d_in": D_IN, "d_sae": sae.config.d_sae, "k": K}
    (folder / "cfg.json").write_text(json.dumps(fields))


def write_sparsify(folder: Path, sae: SparseAutoencoder) -> None:
    tensors = {"encoder.weight": sae.W_enc.T.contiguous(), "encoder.bias": sae.b_enc}
    save_file(tensors | {"W_dec": sae.W_dec, "b_dec": sae.b_dec}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": K}))


def write_dictionary_learning(folder: Path, sae: SparseAutoencoder) -> None:
    tensors = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T}
    tensors |= {"encoder.bias": sae.b_enc, "b_dec": sae.b_dec, "k": torch.tensor(K)}
    tensors["threshold"] = torch.tensor(-1.0)
    pickled(folder, "AutoEncoderTopK", tensors, k=K)


def write_circuit_tracer(folder: Path, sae: SparseAutoencoder) -> None:
    b_enc = sae.b_enc - sae.b_dec @ sae.W_enc  # it does not subtract b_dec from the input
    tensors = {"W_enc": sae.W_enc.T.contiguous(), "b_enc": b_enc, "k": torch.tensor(K)}
    save_file(tensors | {"W_dec": sae.W_dec, "b_dec": sae.b_dec}, folder / "layer_0.safetensors")


FORMATS = [write_saelens, write_sparsify, write_dictionary_learning, write_circuit_tracer]


@pytest.mark.parametrize("d_sae", [D_IN, D_SAE])
@pytest.mark.parametrize("write", FORMATS)
def test_s1_weights_are_turned_as_the_format_says_square_or_not(
    tmp_path: Path, write: Callable[[Path, SparseAutoencoder], None], d_sae: int
) -> None:
    sae = made(d_sae=d_sae)
    write(tmp_path, sae)
    found = read_sae(tmp_path, unsafe_import=True)
    assert not torch.allclose(sae.W_enc[:D_IN, :D_IN], sae.W_enc[:D_IN, :D_IN].T)
    torch.testing.assert_close(found.W_enc, sae.W_enc)
    torch.testing.assert_close(found.W_dec, sae.W_dec)
    torch.testing.assert_close(found(inputs()), sae(inputs()), rtol=1e-4, atol=1e-5)


def test_s1_a_trained_square_dictionary_is_read_as_it_was(tmp_path: Path) -> None:
    config = TrainSaeConfig(D_IN, D_IN, 2, 640, batch_size=32, warm_up_steps=2)
    sae = train_sae(inputs(200).numpy(), config).sae.requires_grad_(requires_grad=False)
    save_sae(sae, tmp_path)
    assert torch.equal(load_sae(tmp_path).encode(inputs()), sae.encode(inputs()))
    tensors = load_file(tmp_path / WEIGHTS)
    put(tmp_path / WEIGHTS, W_enc=tensors["W_enc"].T, W_dec=tensors["W_dec"].T)
    assert not torch.allclose(load_sae(tmp_path).encode(inputs()), sae.encode(inputs()))


# S2: an architecture or activation that is not known


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gated"}, "architecture 'gated' is not known; known are topk, standard"),
        ({"architecture": ["topk"]}, "architecture \"['topk']\" is not known"),
        ({"architecture": "Standard"}, "architecture 'Standard' is not known"),
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu' is not known; known are relu, topk"),
        ({"activation_fn": "gelu"}, "activation_fn 'gelu' is not known; known are relu, topk"),
    ],
)
def test_s2_what_is_not_known_is_named_beside_what_is(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    save_sae(made("relu"), tmp_path)
    rewrite(tmp_path / "cfg.json", **changes)
    assert words in said(lambda: load_sae(tmp_path))
    result = shell.invoke("evaluate", __file__, "--sae", tmp_path)
    assert result.exit_code == 1
    assert f"Error: {tmp_path}" in result.stderr
    assert words in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("write", "name", "changes", "words"),
    [
        (write_sparsify, "cfg.json", {"activation": "groupmax"}, "'groupmax'; only 'topk' is"),
        (
            write_dictionary_learning,
            "config.json",
            {"trainer": {"dict_class": "GatedAutoEncoder"}},
            "dict_class 'GatedAutoEncoder' is not known; known are AutoEncoder, AutoEncoderNew",
        ),
        (write_dictionary_learning, "config.json", {"trainer": "sgd"}, "dict_class None is not"),
    ],
)
def test_s2_other_formats_name_it_too(
    tmp_path: Path,
    write: Callable[[Path, SparseAutoencoder], None],
    name: str,
    changes: dict[str, Any],
    words: str,
) -> None:
    write(tmp_path, made())
    rewrite(tmp_path / name, **changes)
    assert words in said(lambda: read_sae(tmp_path, unsafe_import=True))


# S3: settings say one thing, weights another


@pytest.mark.parametrize("holds", ACTIVATIONS)
@pytest.mark.parametrize("says", ACTIVATIONS)
def test_s3_a_threshold_and_the_settings_must_agree(tmp_path: Path, says: str, holds: str) -> None:
    save_sae(made(holds), tmp_path)
    architecture = "standard" if says == "relu" else says
    rewrite(tmp_path / "cfg.json", architecture=architecture, k=K if says == "topk" else None)
    if (says == "jumprelu") == (holds == "jumprelu"):
        assert load_sae(tmp_path).config.activation == says
    elif says == "jumprelu":
        words = "tensor threshold of shape (10,) is missing (found: W_dec, W_enc, b_dec, b_enc)"
        assert words in said(lambda: load_sae(tmp_path))
    else:
        words = "tensor threshold of shape (10,) is not one of W_enc, b_enc, W_dec, b_dec; "
        assert words + "the settings beside it name" in said(lambda: load_sae(tmp_path))


def ranked(threshold: float) -> dict[str, Tensor]:
    """Give the tensors of a TopK and of a BatchTopK dictionary, which have the same names."""
    sae = made()
    return {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T,
        "b_dec": sae.b_dec,
        "k": torch.tensor(K, dtype=torch.int32),
        "threshold": torch.tensor(threshold),
    }


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE"])
def test_s3_of_k_and_a_threshold_the_class_says_which_decides(tmp_path: Path, kind: str) -> None:
    pickled(tmp_path, kind, ranked(0.7))
    found = read_sae(tmp_path, unsafe_import=True)
    sae = made()
    acts = torch.relu((inputs() - sae.b_dec) @ sae.W_enc + sae.b_enc)
    if kind == "AutoEncoderTopK":
        assert (found.config.activation, found.config.k) == ("topk", K)
        acts *= acts >= acts.topk(K).values[:, -1:]
    else:
        assert found.config.activation == "jumprelu"
        acts *= acts > 0.7
    torch.testing.assert_close(found.encode(inputs()), acts)


@pytest.mark.parametrize(
    ("kind", "threshold", "words"),
    [
        ("BatchTopKSAE", -1.0, "threshold is -1.0, which means not set"),
        (None, 0.7, "holds k and a threshold, and config.json beside it, which says which"),
    ],
)
def test_s3_where_the_format_does_not_say_it_is_refused(
    tmp_path: Path, kind: str | None, threshold: float, words: str
) -> None:
    pickled(tmp_path, kind, ranked(threshold))
    assert words in said(lambda: read_sae(tmp_path, unsafe_import=True))


def test_s3_k_beside_a_threshold_is_refused_where_only_one_may_be(tmp_path: Path) -> None:
    write_circuit_tracer(tmp_path, made())
    put(tmp_path / "layer_0.safetensors", **{"activation_function.threshold": torch.ones(D_SAE)})
    assert "holds both k and a threshold" in said(lambda: read_sae(tmp_path))


# S4: tensors that are missing, extra, of a wrong shape or not finite


def names_of(activation: str) -> list[str]:
    return list(made(activation).state_dict())


EVERY = [(activation, name) for activation in ACTIVATIONS for name in names_of(activation)]


@pytest.mark.parametrize(("activation", "name"), EVERY)
def test_s4_a_tensor_that_is_wrong_is_named(tmp_path: Path, activation: str, name: str) -> None:
    right = made(activation).state_dict()[name]
    shape = str(tuple(right.shape))
    bad = right.clone()
    bad.view(-1)[3:5] = torch.tensor([torch.nan, torch.inf])
    for value, words in (
        (None, f"tensor {name} of shape {shape} is missing (found: "),
        (right[:-1], f"tensor {name} has shape {tuple(right[:-1].shape)}, {shape} was expected"),
        (right[None], f"tensor {name} has shape {tuple(right[None].shape)}, {shape} was expected"),
        (bad, f"tensor {name} holds 2 values of {right.numel()} that are NaN or infinite"),
        (right.double() * 1e300, f"tensor {name} holds {right.numel()} values of "),  # in float32
    ):
        save_sae(made(activation), tmp_path)
        put(tmp_path / WEIGHTS, **{name: value})
        sentence = said(lambda: load_sae(tmp_path))
        assert sentence.startswith(f"{tmp_path / WEIGHTS}: {words}"), sentence


def test_s4_a_tensor_too_many_is_named_with_its_shape(tmp_path: Path) -> None:
    save_sae(made(), tmp_path)
    put(tmp_path / WEIGHTS, W_skip=torch.zeros(D_IN, D_IN))
    assert "tensor W_skip of shape (6, 6) is not one of W_enc" in said(lambda: load_sae(tmp_path))


def test_s4_weights_beyond_a_type_are_not_written_in_it(tmp_path: Path) -> None:
    sae = made()
    sae.b_enc[4] = 70_000
    words = "tensor b_enc holds 1 values of 10 that are NaN or infinite"
    assert words in said(lambda: save_sae(sae, tmp_path / "half", dtype=torch.float16))
    assert not (tmp_path / "half").exists()
    save_sae(sae, tmp_path)
    assert torch.equal(load_sae(tmp_path).b_enc, sae.b_enc)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("k", 2.0, r"k must be in 1..d_sae = 10, got 2.0"),
        ("k", True, r"k must be in 1..d_sae = 10, got True"),
        ("k", "3", r"k must be in 1..d_sae = 10, got '3'"),
        ("apply_b_dec_to_input", "false", "apply_b_dec_to_input must be true or false, got 'fal"),
        ("rescale_acts_by_decoder_norm", 1, "rescale_acts_by_decoder_norm must be true or false"),
        ("d_sae", 10.0, "d_sae must be a whole number >= 1, got 10.0"),
    ],
)
def test_s4_a_field_of_another_type_is_named(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    save_sae(made(), tmp_path)
    rewrite(tmp_path / "cfg.json", **{field: value})
    assert said(lambda: load_sae(tmp_path)).startswith(f"{tmp_path / 'cfg.json'}: {words}")


# S6: normalisation and decoder norms


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm", "covariance_whitening"])
def test_s6_a_normalisation_that_is_not_done_here_is_refused(tmp_path: Path, how: str) -> None:
    save_sae(made(), tmp_path)
    rewrite(tmp_path / "cfg.json", normalize_activations=how)
    assert f"normalize_activations is '{how}'; only 'none'" in said(lambda: load_sae(tmp_path))


@pytest.mark.parametrize("how", ["none", False, True, "expected_average_only_in"])
def test_s6_a_normalisation_that_is_folded_in_changes_nothing(tmp_path: Path, how: object) -> None:
    save_sae(made(), tmp_path)
    rewrite(tmp_path / "cfg.json", normalize_activations=how)
    assert torch.equal(load_sae(tmp_path).encode(inputs()), made().encode(inputs()))


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_s6_decoder_rows_of_any_norm_are_taken_as_they_are(
    tmp_path: Path, activation: str, *, subtracts: bool
) -> None:
    sae = made(activation, apply_b_dec_to_input=subtracts)
    save_sae(sae, tmp_path)
    found, x = load_sae(tmp_path), inputs()
    assert float((sae.W_dec.norm(dim=1) - 1).abs().max()) > 0.5
    pre = (x - sae.b_dec if subtracts else x) @ sae.W_enc + sae.b_enc
    floor = sae.threshold if activation == "jumprelu" else torch.zeros(D_SAE)
    acts = torch.where(pre > floor, pre, 0).clamp_min(0)
    if activation == "topk":
        acts *= acts >= acts.topk(K).values[:, -1:]
    torch.testing.assert_close(found.encode(x), acts)
    torch.testing.assert_close(found(x), acts @ sae.W_dec + sae.b_dec)


def test_s6_ranking_by_decoder_norm_is_done_as_saelens_does(tmp_path: Path) -> None:
    sae = made()
    sae.W_dec[4] = 0
    save_sae(sae, tmp_path)
    rewrite(tmp_path / "cfg.json", rescale_acts_by_decoder_norm=True)
    found, norms = load_sae(tmp_path), sae.W_dec.norm(dim=1)
    pre = ((inputs() - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
    best = pre.topk(K)
    acts = torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu())
    torch.testing.assert_close(found.encode(inputs()), acts)
    x_hat = (acts / norms).nan_to_num() @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(found(inputs()), x_hat)
    rows = found.encode_sparse(inputs())
    np.testing.assert_allclose(rows.values, acts[acts > 0].numpy(), rtol=1e-5)
    plain = made().encode(inputs())
    assert not torch.equal(acts > 0, plain > 0)


@pytest.mark.parametrize("kind", ["AutoEncoder", "AutoEncoderNew"])
def test_s6_dictionary_learning_gives_only_its_first_class_rows_of_unit_norm(
    tmp_path: Path, kind: str
) -> None:
    sae = made("relu")
    bias = "decoder.bias" if kind == "AutoEncoderNew" else "bias"
    tensors = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T, bias: sae.b_dec}
    pickled(tmp_path, kind, tensors | {"encoder.bias": sae.b_enc})
    found, x = read_sae(tmp_path, unsafe_import=True), inputs()
    centred = x if kind == "AutoEncoderNew" else x - sae.b_dec
    acts = torch.relu(centred @ sae.W_enc + sae.b_enc)
    torch.testing.assert_close(found(x), acts @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-5)
    if kind == "AutoEncoder":
        torch.testing.assert_close(found.W_dec, functional.normalize(sae.W_dec, dim=1))
        acts *= sae.W_dec.norm(dim=1)
    torch.testing.assert_close(found.encode(x), acts, rtol=1e-4, atol=1e-5)
