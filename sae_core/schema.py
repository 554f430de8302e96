"""What the stages hand to each other: settings, arrays and manifests, as small frozen types."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "sae-automata-run"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class HookPoint:
    """The place in a model whose activations an SAE reads.

    Example:
        >>> str(HookPoint(0))
        'blocks.0.mlp.hook_post'
    """

    layer: int
    """Index of the block, 0 <= layer < n_layers."""

    site: str = "mlp.hook_post"
    """The part of the block: `mlp.hook_post` is the MLP after its non-linearity."""

    def __str__(self) -> str:
        """Give the name that TransformerLens uses."""
        return f"blocks.{self.layer}.{self.site}"


class SparseActs(NamedTuple):
    """Feature activations of a token stream, compressed by token (CSR)."""

    indptr: NDArray[np.int64]
    """(n_tokens + 1,) start of each token's row."""

    indices: NDArray[np.uint32]
    """(nnz,) feature ids, ascending within a row."""

    values: NDArray[np.float32]
    """(nnz,) activations, > 0, in the units of the SAE's hidden layer."""


class TokenTable(NamedTuple):
    """The tokens of a run in text order, with the features that fire on each."""

    doc_ids: NDArray[np.uint32]
    """(n_tokens,) document of each token."""

    window_ids: NDArray[np.uint32]
    """(n_tokens,) window in which the model read it; no transition crosses a window."""

    pos: NDArray[np.uint32]
    """(n_tokens,) position in its document, from 0."""

    token_ids: NDArray[np.uint32]
    """(n_tokens,) vocabulary id."""

    byte_start: NDArray[np.int64]
    """(n_tokens,) first byte in the document."""

    byte_end: NDArray[np.int64]
    """(n_tokens,) one past the last byte in the document."""

    indptr: NDArray[np.int64]
    """(n_tokens + 1,) start of each token's features."""

    features: NDArray[np.uint32]
    """(nnz,) features that fire, ascending within a token."""

    acts: NDArray[np.float32]
    """(nnz,) their activations, > 0."""

    promotions: NDArray[np.float32]
    """(nnz,) nats each gave to the token that came next; 0 at a window's end."""


@dataclass(frozen=True)
class GatherSettings:
    """Everything that decides the bytes of a run, beside the text itself."""

    model: str
    """Name or folder of the model, as given."""

    model_hash: str
    """sha256 over the model's weights and configuration."""

    tokenizer_hash: str
    """sha256 over the vocabulary."""

    sae: str
    """Name or folder of the dictionary, as given."""

    sae_hash: str
    """sha256 over the dictionary's weights and configuration."""

    hook_point: str
    """Where the dictionary reads, e.g. `blocks.0.mlp.hook_post`."""

    d_sae: int
    """Number of features."""

    d_vocab: int
    """Number of vocabulary entries."""

    n_ctx: int
    """Tokens a window, the warm-up included."""

    warm_up: int
    """Tokens read again, but not recorded, at the start of a window inside a document."""

    held_out: float
    """Share of the documents set aside, by hash of their text, in [0, 1)."""

    max_tokens: int | None
    """Stop after this many tokens; None reads everything."""

    keep_acts: bool
    """Whether tokens/*.parquet hold activations and promotions."""

    documents_hash: str
    """sha256 over the documents' sources, sizes and order."""

    @property
    def hash(self) -> str:
        """Short hash of all settings, the same on every machine."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Shard:
    """One finished part of a run: consecutive windows, their tokens and their sums."""

    name: str
    """Stem of its files, e.g. `00003`."""

    n_tokens: int
    """Tokens recorded in it."""

    n_windows: int
    """Windows it covers."""

    sha256: dict[str, str]
    """Checksum of each of its files, by path within the run."""


def checksum_of(fields: dict[str, Any]) -> str:
    """Give the sha256 of a manifest's fields, its own `checksum` left out.

    Args:
        fields: the manifest as a dict.

    Returns:
        64 hex digits.
    """
    rest = {key: value for key, value in fields.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
