r"""Any bytes -> token ids whose bytes, joined, are exactly those bytes again.

1. Bytes are decoded as UTF-8; a byte that is no part of a character becomes a surrogate of its own.
2. Stretches of text go through the tokenizer, in pieces that do not change its result; a stray byte
   becomes the token of that single byte. NUL, byte-order marks, UTF-16 and Latin-1 therefore
   survive as they are.
3. A special token's name in the text (`<|endoftext|>`) is plain text, never the special token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from sae_core.errors import ModelError
from sae_core.files import sha256_of
from sae_core.window_stream import Encoding

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_TOKENIZER_BYTES = 64 << 20  # the largest vocabularies in use (256k tokens) take 35 MB
PIECE_CHARS = 1 << 14  # a batch of pieces keeps all cores busy; one long string keeps one
MAX_PIECE_CHARS = (
    1 << 20
)  # text without a safe place to cut is cut here, so that memory stays bounded
_STRAY = re.compile("([\udc80-\udcff]+)")
# Byte-level pre-tokenizers start a new word at a single space between two words, so nothing changes
# by a cut there.
_SAFE_CUT = re.compile(r"(?<=\w) (?=\w)")


class ByteTokenizer:
    """A byte-level BPE tokenizer that takes any bytes."""

    def __init__(self, path: Path) -> None:
        """Read a tokenizer.json.

        Args:
            path: the file, as written by the `tokenizers` library.

        Raises:
            ModelError: the file is unreadable, or the tokenizer is not byte-level or normalises.
        """
        self.path = path
        self._tokenizer = _read(path)
        if self._tokenizer.normalizer is not None:
            raise ModelError(
                f"{path} has a normaliser ({type(self._tokenizer.normalizer).__name__}), which "
                "changes text before it is cut; a byte-level tokenizer without one was expected"
            )
        self._tokenizer.encode_special_tokens = True
        self.vocabulary: list[bytes] = _vocabulary(self._tokenizer, path)
        self.sha256 = sha256_of(path)
        self._lengths = np.array([len(token) for token in self.vocabulary], np.int64)
        self._id_of_byte = _ids_of_bytes(self.vocabulary, path)

    def encode(self, data: bytes) -> Encoding:
        """Tokenise a document.

        Args:
            data: any bytes.

        Returns:
            Token ids, and one past the last byte of each in `data`.

        Raises:
            ModelError: the tokenizer changes the text (it adds a prefix or drops bytes).
        """
        stretches = _STRAY.split(data.decode("utf-8", errors="surrogateescape"))
        parts: list[NDArray[np.int64]] = []
        texts = iter(self._encode_texts(stretches[::2]))
        for at, stretch in enumerate(stretches):
            parts.append(self._stray_ids(stretch) if at % 2 else next(texts))
        token_ids = np.concatenate(parts)
        byte_end = np.cumsum(self._lengths[token_ids])
        if (int(byte_end[-1]) if len(byte_end) else 0) != len(data):
            raise ModelError(
                f"{self.path} changes text: {len(data)} bytes became tokens of "
                f"{int(byte_end[-1:].sum())} bytes; "
                "a byte-level tokenizer without a prefix space was expected"
            )
        return Encoding(token_ids, byte_end)

    def decode(self, token_ids: NDArray[np.int64]) -> bytes:
        """Give the bytes of tokens, joined."""
        return b"".join(self.vocabulary[token_id] for token_id in token_ids)

    def _encode_texts(self, texts: list[str]) -> list[NDArray[np.int64]]:
        pieces = [_pieces(text) for text in texts]
        flat = [piece for group in pieces for piece in group]
        encoded = self._tokenizer.encode_batch_fast(flat, add_special_tokens=False)
        rows = iter([np.array(row.ids, np.int64) for row in encoded])
        empty = np.empty(0, np.int64)
        return [np.concatenate([empty, *(next(rows) for _ in group)]) for group in pieces]

    def _stray_ids(self, stretch: str) -> NDArray[np.int64]:
        stray = np.frombuffer(stretch.encode("utf-8", errors="surrogateescape"), np.uint8)
        return self._id_of_byte[stray]


def byte_alphabet() -> dict[str, int]:
    """Give the byte that each character of a byte-level vocabulary stands for.

    Source: Radford et al. 2019 (GPT-2): printable Latin-1 stands for itself, the rest for U+0100
    and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    shifted = {chr(0x100 + at): byte for at, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


def _read(path: Path) -> Tokenizer:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOKENIZER_BYTES + 1)
    except OSError as err:
        raise ModelError(
            f"{path} cannot be read ({err.strerror}); a model folder holds its tokenizer.json"
        ) from err
    if len(data) > MAX_TOKENIZER_BYTES:
        raise ModelError(f"{path} is over {MAX_TOKENIZER_BYTES >> 20} MB, too large to be read")
    try:
        return Tokenizer.from_str(data.decode())
    except Exception as err:  # the library raises bare Exception
        raise ModelError(f"{path} is no tokenizer of the tokenizers library ({err})") from err


def _vocabulary(tokenizer: Tokenizer, path: Path) -> list[bytes]:
    alphabet = byte_alphabet()
    special = {at for at, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [b""] * (max(named.values(), default=-1) + 1)
    for token, token_id in named.items():
        if token_id in special:
            continue
        if not all(char in alphabet for char in token):
            raise ModelError(
                f"{path}: token {token_id} {token!r} is not written in the byte-level alphabet; "
                "only byte-level tokenizers are known"
            )
        tokens[token_id] = bytes(alphabet[char] for char in token)
    return tokens


def _ids_of_bytes(vocabulary: list[bytes], path: Path) -> NDArray[np.int64]:
    ids = {token: at for at, token in enumerate(vocabulary)}
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        raise ModelError(
            f"{path} has no token for the single byte 0x{missing[0]:02x}; one for each of the "
            "256 was expected"
        )
    return np.array([ids[bytes([byte])] for byte in range(256)], np.int64)


def _pieces(text: str) -> list[str]:
    pieces = []
    start = 0
    while len(text) - start > PIECE_CHARS:
        found = _SAFE_CUT.search(text, start + PIECE_CHARS, start + MAX_PIECE_CHARS)
        end = found.start() if found else min(len(text), start + MAX_PIECE_CHARS)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]] if text[start:] else pieces
