from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from sae_core.errors import ModelError
from sae_core.transformer import ModelConfig, Transformer, load_transformer, save_model

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.tensor([[0, 5, 7, 7, 9, 2], [0, 1, 2, 3, 4, 5]])


def _naive_logits(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """One window through one block, in numpy and loops, after the module's docstring."""
    weights = {name: weight.numpy().astype(float) for name, weight in model.state_dict().items()}
    n_heads = model.config.n_heads

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        scale = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        return np.asarray((x - x.mean(axis=1, keepdims=True)) / scale * gain)

    x = weights["W_E"][ids] + weights["W_pos"][: len(ids)]
    q, k, v = np.split(norm(x, weights["blocks.0.ln1.w"]) @ weights["blocks.0.attn.W_QKV"], 3, 1)
    d_head = q.shape[1] // n_heads
    mixed = np.zeros_like(q)
    for head in range(n_heads):
        cut = slice(head * d_head, (head + 1) * d_head)
        for pos in range(len(ids)):
            scores = k[: pos + 1, cut] @ q[pos, cut] / np.sqrt(d_head)
            share = np.exp(scores - scores.max())
            mixed[pos, cut] = share / share.sum() @ v[: pos + 1, cut]
    x = x + mixed @ weights["blocks.0.attn.W_O"]
    hidden = norm(x, weights["blocks.0.ln2.w"]) @ weights["blocks.0.mlp.W_in"]
    acts = np.maximum(hidden + weights["blocks.0.mlp.b_in"], 0)
    x = x + acts @ weights["blocks.0.mlp.W_out"] + weights["blocks.0.mlp.b_out"]
    return np.asarray(norm(x, weights["ln_final.w"]) @ weights["W_U"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_equal_those_of_a_numpy_twin(seed: int) -> None:
    model = tiny.transformer(seed)
    found = model(IDS).detach().numpy()
    for row, ids in zip(found, IDS.numpy(), strict=True):
        np.testing.assert_allclose(row, _naive_logits(model, ids), rtol=1e-3, atol=1e-4)


def test_no_position_sees_a_later_token() -> None:
    model = tiny.transformer()
    changed = IDS.clone()
    changed[:, 4:] = 11
    torch.testing.assert_close(model(IDS)[:, :4], model(changed)[:, :4])
    assert not torch.allclose(model(IDS)[:, 4], model(changed)[:, 4])


@pytest.mark.parametrize("layer", [0, 1])
def test_stopping_at_a_hook_point_and_running_on_changes_nothing(layer: int) -> None:
    model = tiny.transformer(n_layers=2)
    state = model.run_to_hook(IDS, layer=layer)
    assert (state.acts >= 0).all()
    assert (state.acts > 0).any()
    torch.testing.assert_close(model.finish(state), model(IDS))


def test_the_final_scale_is_what_the_final_norm_divides_by() -> None:
    model = tiny.transformer()
    resid = model.run_through(IDS)
    centred = resid - resid.mean(dim=-1, keepdim=True)
    by_hand = centred / model.final_scale(resid)[..., None] * model.ln_final.w
    torch.testing.assert_close(model.ln_final(resid), by_hand)


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    first, again, other = (Transformer(tiny.config(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.W_U, again.W_U)
    assert not torch.equal(first.W_U, other.W_U)


def test_a_saved_model_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny.transformer(n_layers=2)
    save_model(model, tmp_path)
    again = load_transformer(tmp_path)
    assert again.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_half_precision_on_disk_is_read_as_float32(tmp_path: Path) -> None:
    model = tiny.transformer()
    save_model(model, tmp_path, dtype=torch.float16)
    again = load_transformer(tmp_path)
    assert again.W_U.dtype is torch.float32
    torch.testing.assert_close(again.W_U, model.W_U.half().float())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"d_model": 0}, "d_model must be a whole number >= 1, got 0"),
        ({"n_ctx": -4}, "n_ctx must be a whole number >= 1, got -4"),
        ({"n_heads": 3}, "n_heads must divide d_model, got 3 heads for 128"),
        ({"d_mlp": 2.5}, "d_mlp must be a whole number"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ModelConfig(**changes)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.0, got 1"):
        tiny.transformer().run_to_hook(IDS, layer=1)


def _break_tensors(folder: Path, fault: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if fault == "missing":
        del tensors["W_U"]
    elif fault == "extra":
        tensors["lm_head"] = torch.zeros(2)
    elif fault == "shape":
        tensors["W_U"] = tensors["W_U"].T.contiguous()
    elif fault == "nan":
        tensors["W_U"][0, 0] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("missing", r"tensor W_U of shape \(16, 300\) is missing"),
        ("extra", r"tensor lm_head of shape \(2,\) is not one of"),
        ("shape", r"tensor W_U has shape \(300, 16\), \(16, 300\) was expected"),
        ("nan", r"tensor W_U holds 1 values of 4,800 that are NaN or infinite"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, fault: str, match: str) -> None:
    save_model(tiny.transformer(), tmp_path)
    _break_tensors(tmp_path, fault)
    with pytest.raises(ModelError, match=match):
        load_transformer(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8 + b"{}", b"\x10\0\0\0\0\0\0\0" + b"{" * 16, None]
)
def test_a_broken_weights_file_is_named(tmp_path: Path, data: bytes | None) -> None:
    save_model(tiny.transformer(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10] if data is None else data)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a readable safetensors file"):
        load_transformer(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is not a readable JSON file"),
        ("[]", "holds a JSON list; an object"),
        ("[" * 1_000_000, "is nested over 64 deep"),
        (" " * (2 << 20), "is larger than 1,048,576 bytes"),
        ('{"d_model": 1, "d_model": 2}', "the key 'd_model' is there twice"),
        ('{"architecture": "gpt2"}', "architecture is 'gpt2', 'sae-automata-transformer'"),
        ('{"architecture": "sae-automata-transformer"}', "field 'd_mlp' is missing or unknown"),
    ],
)
def test_a_broken_config_is_named(tmp_path: Path, text: str, match: str) -> None:
    save_model(tiny.transformer(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=match):
        load_transformer(tmp_path)


def test_a_config_larger_than_memory_is_named_before_it_is_allocated(tmp_path: Path) -> None:
    save_model(tiny.transformer(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"d_vocab": 1 << 50}))
    with pytest.raises(ModelError, match=r"tensor W_E has shape \(300, 16\)"):
        load_transformer(tmp_path)


def test_a_config_with_impossible_sizes_is_named(tmp_path: Path) -> None:
    save_model(tiny.transformer(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_heads": 5}))
    with pytest.raises(ModelError, match=r"config\.json: n_heads must divide d_model"):
        load_transformer(tmp_path)
