"""A tiny model with its tokenizer and text, made in a second: real files, small sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sae_core.language_model import OneLayerModel
from sae_core.transformer import ModelConfig, Transformer, save_model

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "<div class=\"a\">\n\t<span>MAX_VALUE = 'grün' + \u0ba3\u4e2d\n</span></div>\nthe cat sat\n"
WORDS = "alpha beta gamma delta epsilon zeta class href title object "


def write_tokenizer(path: Path, *, d_vocab: int = 300) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT * 20 + WORDS * 20], trainer)
    assert tokenizer.get_vocab_size() == d_vocab
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def config(**changes: int) -> ModelConfig:
    sizes = {"d_model": 16, "n_heads": 2, "d_mlp": 24, "n_ctx": 16, "d_vocab": 300} | changes
    return ModelConfig(**sizes)


def transformer(seed: int = 0, **changes: int) -> Transformer:
    model = Transformer(config(**changes), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases and gains away from their start, so that a lost one shows
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
            if name in {"W_E", "W_pos"}:
                weight.mul_(30)
    return model.eval()


def write_model(folder: Path, *, seed: int = 0, **changes: int) -> Path:
    tokenizer = write_tokenizer(folder / "tokenizer.json")
    save_model(transformer(seed, **changes), folder, tokenizer=tokenizer)
    return folder


def language_model(folder: Path) -> OneLayerModel:
    return OneLayerModel(write_model(folder))


def write_tokens(path: Path, *, n_documents: int = 40, seed: int = 0) -> Path:
    """Documents that count upwards from a random start: easy to learn, impossible by unigram."""
    rng = np.random.default_rng(seed)
    documents = [
        np.concatenate([[0], 1 + (start + np.arange(50)) % 20])
        for start in rng.integers(20, size=n_documents)
    ]
    np.concatenate(documents).astype(np.uint16).tofile(path)
    return path


def write_training(folder: Path) -> Path:
    """Write what both trainers read: model/, tokenizer.json, train.bin and validation.bin."""
    write_model(folder / "model")
    write_tokenizer(folder / "tokenizer.json")
    write_tokens(folder / "train.bin")
    write_tokens(folder / "validation.bin", n_documents=4, seed=1)
    return folder


def sparsity(k: int) -> dict[str, dict[str, Any]]:
    """Give what makes each variant of a dictionary sparse: k, or a cost for which few fire."""
    given = {name: {"k": k} for name in ("topk", "batch_topk", "matryoshka")}
    return given | {"jumprelu": {"l0_coefficient": 0.02}, "l1": {"l1_coefficient": 0.1}}


def train_words(what: str, folder: Path, out: Path, *, n_steps: int, more: str = "") -> list[str]:
    """Give the words of a command that trains a `model` of 64 tokens a step, or a `sae` of 32."""
    if what == "model":
        words = ["train-model", folder / "train.bin", folder / "validation.bin"]
        words += ["--tokenizer", folder / "tokenizer.json", "--tokens", 64 * n_steps]
        sizes = "--d-model 16 --n-heads 2 --d-mlp 24 --n-ctx 16 --batch-windows 4"
        words += f"{sizes} --validate-every 5".split()
    else:
        words = ["train-sae", folder / "model", folder / "train.bin"]
        features = "" if "--features" in more else "--features 32 "
        sizes = f"{features}--active 3 --batch-size 32 --block-windows 8"
        words += [*sizes.split(), "--activations", 32 * n_steps]
    options = f"--warm-up-steps 5 --checkpoint-every 3 {more}"
    return [str(word) for word in [*words, "-o", out, *options.split()]]
