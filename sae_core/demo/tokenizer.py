"""Documents -> a byte-level BPE tokenizer of 4,096 tokens.

Text is first cut so that no token joins a tag's bracket with what is before or after
it (` <` and `</` stand alone), then by GPT-2's rule (Radford et al. 2019): letters,
digits and punctuation never merge with each other; a leading space stays with its word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Iterator

N_TOKENS = 4096  # small enough that a 512-neuron model sees each token often
DOCUMENT_MARK = "<|endoftext|>"  # id 0, before each document
MIN_FREQUENCY = 2  # a pair seen once is noise
BRACKET = " ?</?"  # kept apart so that `">` and ` <` do not fuse into `"><`


def train_tokenizer(frame: pl.DataFrame, caps_mb: dict[str, float], seed: int) -> Tokenizer:
    """A tokenizer trained on the documents' train split, families capped.

    Args:
        frame: as made by `mix.documents_frame`.
        caps_mb: family -> MB (10^6 bytes) at most. They keep rare scripts low, so that
            one of their characters takes two or three tokens, as in the paper.
        seed: order in which documents of a capped family are taken.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BRACKET), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[DOCUMENT_MARK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(frame, caps_mb, seed), trainer)
    return tokenizer


def byte_table() -> dict[str, int]:
    """GPT-2's table from a printable character to the byte it stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes of each token id; the document mark's are empty.

    Raises:
        ValueError: a token has a character outside GPT-2's table.
    """
    table = byte_table()
    rows = [b""] * tokenizer.get_vocab_size()
    for token, token_id in tokenizer.get_vocab().items():
        if token == DOCUMENT_MARK:
            continue
        if any(char not in table for char in token):
            raise ValueError(f"token {token_id} {token!r} is not byte-level")
        rows[token_id] = bytes(table[char] for char in token)
    return rows


def _texts(frame: pl.DataFrame, caps_mb: dict[str, float], seed: int) -> Iterator[str]:
    train = frame.filter(pl.col("split") == "train")
    train = train[np.random.default_rng(seed).permutation(len(train))]
    left = {family: mb * 1e6 for family, mb in caps_mb.items()}
    for family, text in zip(train["family"], train["text"], strict=True):
        left[family] = left.get(family, float("inf")) - len(text)
        if left[family] > 0:
            yield text.decode()
