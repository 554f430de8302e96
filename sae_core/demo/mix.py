"""Documents -> the corpus: unique documents, split, chosen by token budget, shuffled.

1. drop documents most of whose 64-byte shingles were seen before;
2. split by document hash, 5 % for validation;
3. give each family its share of the tokens, each package of a family its part;
4. shuffle; mark each document's start with token 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from sae_core.demo.extract import Document
    from sae_core.demo.packages import Mix

SHINGLE_BYTES = 64  # CORPUS rule
SHINGLE_SAMPLE = 32  # one shingle in 32 is looked up: a 1.5 KB document still has about 45
SHINGLE_TABLE_BITS = 28  # 256 MB of marks; 10 M kept shingles collide in 4 % of look-ups
MAX_SEEN_SHARE = 0.8  # pages of one manual share heads and menus; copies share all
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, 2**64 / golden ratio: Fibonacci hashing
VALIDATION_ONE_IN = 20  # 5 % held out, the share CORPUS.md reserves
IRC_REPEATS = 3  # CORPUS rule: IRC is scarce, repeat it at most 3 times
START_OF_DOCUMENT = 0  # id of <|endoftext|>
BATCH_DOCUMENTS = 512  # encoded at a time: bounds memory to a few hundred MB


@dataclass(frozen=True)
class TokenStream:
    """Documents of one split as one row of token ids."""

    tokens: NDArray[np.uint16]
    """(n_tokens,) ids; each document is preceded by id 0."""

    docs: pl.DataFrame
    """One row per document: start, n_tokens (id 0 included), and where it came from."""


def documents_frame(documents: Iterable[Document]) -> pl.DataFrame:
    """A row per unique document: sha256, family, package, licence, source, split, text."""
    table = ShingleTable()
    rows = []
    for document in documents:
        text = document.text.encode()
        if table.is_repeat(text):
            continue
        rows.append(
            {
                "sha256": sha256(text).hexdigest(),
                "family": document.family,
                "package": document.package,
                "licence": document.licence,
                "source": document.source,
                "split": split_of(text),
                "text": text,
            }
        )
    return pl.DataFrame(rows).unique("sha256", keep="first", maintain_order=True)


def split_of(text: bytes) -> str:
    """Return "validation" for one document in 20, by its hash; else "train"."""
    number = int.from_bytes(sha256(text).digest()[:8], "big")
    return "validation" if number % VALIDATION_ONE_IN == 0 else "train"


class ShingleTable:
    """Marks of all shingles seen so far, to tell repeated documents."""

    def __init__(self) -> None:
        self._marks = np.zeros(1 << SHINGLE_TABLE_BITS, dtype=np.bool_)

    def is_repeat(self, text: bytes) -> bool:
        """True when over 80 % of the text's shingles were seen; else they are marked."""
        slots = shingle_slots(text)
        if len(slots) and self._marks[slots].mean() > MAX_SEEN_SHARE:
            return True
        self._marks[slots] = True
        return False


def shingle_slots(text: bytes) -> NDArray[np.int64]:
    """(n,) table slots of about one in 32 of the text's 64-byte shingles.

    The sample depends on the shingles' content alone, so two copies choose the same.
    """
    if len(text) < SHINGLE_BYTES:
        return np.empty(0, dtype=np.int64)
    values = np.frombuffer(text, dtype=np.uint8).astype(np.uint64) + np.uint64(1)
    power = MULTIPLIER
    width = 1
    while width < SHINGLE_BYTES:  # h(2w) = h(w) p^w + h(w) shifted
        values = values[:-width] * np.uint64(power) + values[width:]
        power = power * power % 2**64
        width *= 2
    values *= np.uint64(MULTIPLIER)
    sample = values[(values >> np.uint64(32)) % np.uint64(SHINGLE_SAMPLE) == 0]
    return (np.unique(sample) >> np.uint64(64 - SHINGLE_TABLE_BITS)).astype(np.int64)


def count_tokens(frame: pl.DataFrame, tokenizer: Tokenizer) -> pl.DataFrame:
    """The frame with `ids`, the token ids of each document, and `n_tokens` with id 0."""
    ids: list[NDArray[np.uint16]] = []
    for batch in frame["text"].to_frame().iter_slices(BATCH_DOCUMENTS):
        texts = [text.decode() for text in batch["text"]]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        ids.extend(np.array(encoding.ids, dtype=np.uint16) for encoding in encodings)
    return frame.with_columns(
        pl.Series("ids", [row.tobytes() for row in ids], dtype=pl.Binary),
        pl.Series("n_tokens", [len(row) + 1 for row in ids], dtype=pl.Int64),
    )


def choose_documents(frame: pl.DataFrame, mix: Mix, seed: int) -> pl.DataFrame:
    """Documents of both splits that fill each family's share of the mix.

    A family over its budget gives every package the same fraction of what it has, so
    the caps of packages.toml set the proportions. Families under it are taken whole;
    IRC's training documents are repeated up to 3 times.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for family, share in mix.shares.items():
        budget = share * mix.n_tokens
        part = frame.filter(pl.col("family") == family)
        fraction = budget / max(1, int(part["n_tokens"].sum()))
        if family == "irc" and fraction > 1:
            repeats = min(IRC_REPEATS, int(fraction)) - 1
            part = pl.concat([part] + [part.filter(pl.col("split") == "train")] * repeats)
        for _, group in part.group_by("package", maintain_order=True):
            rows = group[rng.permutation(len(group))]
            before = rows["n_tokens"].cum_sum() - rows["n_tokens"]
            chosen.append(rows.filter(before < fraction * int(rows["n_tokens"].sum())))
    return pl.concat(chosen)


def token_stream(frame: pl.DataFrame, split: str, seed: int) -> TokenStream:
    """Shuffled documents of a split as one stream, each preceded by id 0."""
    rows = frame.filter(pl.col("split") == split)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    start = np.array([START_OF_DOCUMENT], dtype=np.uint16)
    pieces = []
    for ids in rows["ids"]:
        pieces += [start, np.frombuffer(ids, dtype=np.uint16)]
    offsets = (rows["n_tokens"].cum_sum() - rows["n_tokens"]).rename("start")
    columns = ["n_tokens", "family", "package", "source", "sha256", "licence"]
    docs = rows.select(columns).insert_column(0, offsets)
    return TokenStream(np.concatenate(pieces), docs)
