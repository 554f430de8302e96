from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core import byte_tokenizer, embedded
from sae_core.byte_tokenizer import ByteTokenizer
from sae_core.errors import ModelError, SaeError
from sae_core.language_model import OneLayerModel, check_fits, hash_weights, load_model
from sae_core.sae import SaeConfig, SparseAutoencoder
from sae_core.schema import HookPoint

HOOK = "blocks.0.mlp.hook_post"
HOSTILE = [
    b"",
    b" ",
    b"\0\0\0",
    b"\xef\xbb\xbf<html>",
    "grün 中文 தமிழ்".encode("utf-16"),
    "grün".encode("latin-1"),
    "\ud800\udfff".encode("utf-8", "surrogatepass"),
    b"<|endoftext|>",
    b"a<|endoftext|>\xff<|endoftext|>",
    b"\xe4\xb8",
    b"\xf4\x90\x80\x80",
    b"\xc0\xaf",
    "\u202e\u200b\u0435\u0301\U0001f469\u200d\U0001f467".encode(),
    bytes(range(256)),
    b"\r\n\r\n \t \x1b[31m",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> OneLayerModel:
    return load_model(folder)


@pytest.mark.parametrize("data", HOSTILE)
def test_any_bytes_come_back_exactly(model: OneLayerModel, data: bytes) -> None:
    encoding = model.encode(data)
    assert model.tokenizer.decode(encoding.token_ids) == data
    assert 0 not in encoding.token_ids
    assert (np.diff(encoding.byte_end, prepend=0) > 0).all()
    if data:
        assert encoding.byte_end[-1] == len(data)


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)))
def test_the_bytes_of_each_token_lie_where_it_says(data: bytes) -> None:
    tokenizer = _shared_tokenizer()
    encoding = tokenizer.encode(data)
    start = 0
    for token_id, end in zip(encoding.token_ids, encoding.byte_end, strict=True):
        assert tokenizer.vocabulary[token_id] == data[start:end]
        start = int(end)
    assert start == len(data)


_TOKENIZERS: list[ByteTokenizer] = []


def _shared_tokenizer() -> ByteTokenizer:
    if not _TOKENIZERS:
        path = Path(__file__).parent.parent / "sae_core" / "demo" / "model" / "tokenizer.json"
        _TOKENIZERS.append(ByteTokenizer(path))
    return _TOKENIZERS[0]


def test_cutting_a_long_text_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _shared_tokenizer()
    rng = random.Random(0)
    words = [
        "the",
        "<div",
        'class="a"',
        "MAX_VALUE",
        "  ",
        "\n\t",
        "x",
        "中文",
        "don't",
        "</p>",
        "42",
    ]
    text = "".join(rng.choice(words) + rng.choice([" ", " ", "\n", ""]) for _ in range(5000))
    whole = tokenizer.encode(text.encode()).token_ids
    monkeypatch.setattr(byte_tokenizer, "PIECE_CHARS", 50)
    assert len(byte_tokenizer._pieces(text)) > 100
    assert np.array_equal(tokenizer.encode(text.encode()).token_ids, whole)


def test_a_long_text_without_a_safe_cut_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_tokenizer, "PIECE_CHARS", 10)
    monkeypatch.setattr(byte_tokenizer, "MAX_PIECE_CHARS", 20)
    assert byte_tokenizer._pieces("a" * 45) == ["a" * 20, "a" * 20, "a" * 5]
    data = ("a" * 999 + "\n").encode()
    assert _shared_tokenizer().decode(_shared_tokenizer().encode(data).token_ids) == data


def test_the_model_says_its_sizes(model: OneLayerModel, folder: Path) -> None:
    assert (model.d_model, model.d_vocab, model.n_ctx, model.n_layers) == (16, 300, 16, 1)
    assert model.name == str(folder)
    assert model.hook_points == (HookPoint(0),)
    assert model.width(HOOK) == model.width(HookPoint(0)) == 24
    assert len(model.vocabulary) == 300
    assert model.vocabulary[0] == b""
    assert len(set(model.vocabulary)) == 300


def test_activations_and_logits_are_those_of_the_transformer(model: OneLayerModel) -> None:
    ids = torch.from_numpy(model.encode(tiny.TEXT.encode()).token_ids[None, :16])
    state = model.run_to_hook(ids, HOOK)
    assert state.acts.shape == (1, 16, 24)
    torch.testing.assert_close(model.logits(state), model.module(ids))
    assert model.final_scale(state).shape == (1, 16)


def test_the_weights_hash_sees_each_weight(tmp_path: Path, model: OneLayerModel) -> None:
    again = OneLayerModel(tiny.write_model(tmp_path / "again"))
    assert again.weights_hash == model.weights_hash
    other = OneLayerModel(tiny.write_model(tmp_path / "other", seed=1))
    assert other.weights_hash != model.weights_hash


def test_a_window_that_is_too_long_is_refused(model: OneLayerModel) -> None:
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        model.run_to_hook(torch.zeros(1, 17, dtype=torch.int64), HOOK)


def test_an_unknown_hook_point_lists_the_known_ones(model: OneLayerModel) -> None:
    with pytest.raises(ModelError, match=r"no hook point blocks\.3\.x; it has blocks\.0\.mlp"):
        model.run_to_hook(torch.zeros(1, 2, dtype=torch.int64), "blocks.3.x")


def test_an_unknown_model_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'gelu-1l': /.*gelu-1l/config\.json is not"):
        load_model("gelu-1l")
    with pytest.raises(ModelError, match="nothing is downloaded; give a folder"):
        load_model(tmp_path)


def test_an_unknown_name_lists_the_embedded_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it is not an embedded one \(A.*\), and nothing is down"):
        load_model(str(tmp_path / "none"))


@pytest.fixture
def two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships two models with one tokenizer between them."""
    monkeypatch.setattr(embedded, "DEMO", tmp_path)
    tiny.write_model(tmp_path / "model")
    tiny.write_model(tmp_path / "model-B", seed=1)
    (tmp_path / "model-B" / "tokenizer.json").unlink()
    return tmp_path


def test_embedded_models_are_had_by_name_and_the_first_by_default(two_models: Path) -> None:
    first, second = load_model(), load_model("B")
    assert (first.name, second.name) == ("embedded", "B")
    assert load_model("A").weights_hash == load_model("embedded").weights_hash == first.weights_hash
    assert second.tokenizer.path == first.tokenizer.path == two_models / "model" / "tokenizer.json"
    assert second.weights_hash == hash_weights(tiny.transformer(1))
    assert second.weights_hash != first.weights_hash
    assert second.tokenizer_hash == first.tokenizer_hash
    with pytest.raises(ModelError, match=r"no model 'C': .*not an embedded one \(A, B\)"):
        load_model("C")


def test_an_embedded_model_with_a_tokenizer_of_its_own_keeps_it(two_models: Path) -> None:
    own = tiny.write_tokenizer(two_models / "model-B" / "tokenizer.json")
    assert load_model("B").tokenizer.path == own


@pytest.mark.usefixtures("two_models")
def test_a_name_that_is_a_folder_too_is_refused_until_written_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_model(tmp_path / "work" / "B", seed=2)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ModelError, match=r"'B' is the name of an embedded .*; write \./B for the"):
        load_model("B")
    folder = load_model("./B")
    assert folder.weights_hash == load_model(Path("B")).weights_hash
    assert folder.name == load_model(folder.name).name == "./B"
    assert load_model("A").name == "embedded"


def test_a_gpu_that_is_not_there_is_said(folder: Path) -> None:
    if torch.cuda.is_available():
        assert load_model(folder, device="cuda").device.type == "cuda"
    else:
        with pytest.raises(ModelError, match="there is no GPU here; use cpu"):
            load_model(folder, device="cuda")


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    tiny.write_model(tmp_path)
    tiny.write_tokenizer(tmp_path / "tokenizer.json", d_vocab=290)
    with pytest.raises(ModelError, match=r"has 290 tokens, the logits of .* have 300"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"), [("{", "is no tokenizer"), ("\0" * 9, "is no tokenizer"), (None, "No such")]
)
def test_a_broken_tokenizer_is_named(tmp_path: Path, text: str | None, match: str) -> None:
    tiny.write_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ModelError, match=rf"tokenizer\.json.*{match}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("found", "put", "match"),
    [
        ('"normalizer":null', '"normalizer":{"type":"Lowercase"}', "has a normaliser"),
        ('"add_prefix_space":false', '"add_prefix_space":true', "changes text: 2 bytes became"),
        ('"Ċ"', '"€"', "is not written in the byte-level alphabet"),
    ],
)
def test_a_tokenizer_that_changes_text_is_refused(
    tmp_path: Path, found: str, put: str, match: str
) -> None:
    path = tiny.write_tokenizer(tmp_path / "tokenizer.json")
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":"))
    assert found in text
    path.write_text(text.replace(found, put))
    with pytest.raises(ModelError, match=match):
        ByteTokenizer(path).encode(b"ab")


def test_a_dictionary_that_fits_gets_its_hook_point(model: OneLayerModel) -> None:
    sae = SparseAutoencoder.neurons(24)
    assert check_fits(model, sae) == check_fits(model, sae, HOOK) == HookPoint(0)


def test_a_dictionary_of_another_width_is_refused(model: OneLayerModel) -> None:
    sae = SparseAutoencoder(SaeConfig(512, 1024, "relu"))
    sae.name = "A/9"
    with pytest.raises(SaeError, match=r"SAE A/9 reads 512 numbers, .* of model .* has 24"):
        check_fits(model, sae)
    with pytest.raises(ModelError, match=r"no hook point blocks\.7"):
        check_fits(model, sae, "blocks.7.mlp.hook_post")


@pytest.mark.usefixtures("two_models")
def test_a_dictionary_of_another_model_is_refused_with_the_name_of_its_own() -> None:
    first, second = load_model("A"), load_model("B")
    sae = SparseAutoencoder(SaeConfig(24, 30, "relu", model_hash=second.weights_hash))
    sae.name = "B/0"
    assert check_fits(second, sae) == HookPoint(0)
    with pytest.raises(
        SaeError, match=r"B/0 was trained on another model than embedded.*--model B$"
    ):
        check_fits(first, sae)
    sae.name = "pages/sae"
    with pytest.raises(SaeError, match=r"give --model with the folder of that one$"):
        check_fits(first, sae)
    sae.name = "A/0"  # trained before its model was shipped anew
    with pytest.raises(SaeError, match=r"give --model with the folder of that one$"):
        check_fits(first, sae)
