"""Sparse autoencoders: model activations in, a few active features out, and back.

encode:  acts = sparsify(relu((x - b_dec) @ W_enc + b_enc))      decode:  x_hat = acts @ W_dec +
b_dec

`topk` keeps the k largest of each token (ties to the lowest feature id), `relu` keeps all,
`jumprelu` those above a threshold of their own; `identity` is the raw neurons taken as a
dictionary, the baseline of every score. A folder in the layout of SAELens (cfg.json +
sae_weights.safetensors) is read and written.

Source: Bricken et al. 2023 (relu); Gao et al. 2024 (topk); Rajamanoharan et al. 2024 (jumprelu).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sae_core import embedded
from sae_core.bounded import read_json
from sae_core.devices import Portions
from sae_core.errors import SaeError
from sae_core.files import write_json
from sae_core.language_model import hash_weights
from sae_core.pickles import refuse_pickle
from sae_core.saelens import ARCHITECTURES, architecture_of, flag_of, size_of, with_unit_rows
from sae_core.schema import SparseActs
from sae_core.sparsify import Encoder, sparse_acts, to_sparse, top_k_mask
from sae_core.tensors import check_finite, read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from sae_core.language_model import LanguageModel
    from sae_core.schema import HookPoint

ACTIVATIONS = ("topk", "relu", "jumprelu", "identity")
NEURONS = "neurons"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
TRAINING_FILE = "training.json"  # all settings of its training, where those are known


@dataclass(frozen=True)
class SaeConfig:
    """What a dictionary is, beside its weights."""

    d_in: int
    """Width of the activations it reads."""

    d_sae: int
    """Number of features."""

    activation: str
    """`topk`, `relu`, `jumprelu` or `identity`."""

    k: int | None = None
    """Features active on a token at most; given for `topk` and only for it."""

    apply_b_dec_to_input: bool = True
    """Whether b_dec is subtracted from the input before encoding."""

    rescale_by_decoder_norm: bool = False
    """Whether `topk` ranks acts times the norm of their decoder row (SAELens' option)."""

    hook_point: str = "blocks.0.mlp.hook_post"
    """Where in the model it reads."""

    model_hash: str = ""
    """Hash of the model it was trained on; empty when not known."""

    seed: int | None = None
    """Seed of its training; None when not known."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ValueError: a size is below 1, the activation is unknown, or k does not go with it.
        """
        if self.d_in < 1 or self.d_sae < 1:
            raise ValueError(f"d_in and d_sae must be >= 1, got {self.d_in} and {self.d_sae}")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {known}, got {self.activation!r}")
        if (self.activation == "topk") != (self.k is not None):
            raise ValueError(f"k belongs to topk; got k {self.k} with {self.activation}")
        if self.k is not None and (type(self.k) is not int or not 1 <= self.k <= self.d_sae):
            raise ValueError(f"k must be in 1..d_sae = {self.d_sae}, got {self.k!r}")
        if self.activation == "identity" and self.d_in != self.d_sae:
            raise ValueError(f"identity needs d_in = d_sae, got {self.d_in} and {self.d_sae}")


class SparseAutoencoder(nn.Module):
    """A dictionary of features; all weights float32."""

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        self.name = config.activation
        self._prepared: tuple[list[tuple[int, int]], Encoder] | None = None
        self._portions = Portions(None, "token", torch.device("cpu"), _silent, SaeError)
        self.W_enc = nn.Parameter(torch.zeros(config.d_in, config.d_sae))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, config.d_in))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        if config.activation == "jumprelu":
            self.threshold = nn.Parameter(torch.zeros(config.d_sae))

    @classmethod
    def neurons(
        cls, d_mlp: int, *, hook_point: str = "blocks.0.mlp.hook_post"
    ) -> SparseAutoencoder:
        """Give the raw neurons as a dictionary: feature i is neuron i.

        Args:
            d_mlp: number of neurons.
            hook_point: where they are read.

        Returns:
            A dictionary that changes nothing (of activations >= 0).
        """
        sae = cls(SaeConfig(d_mlp, d_mlp, "identity", hook_point=hook_point))
        sae.name = NEURONS
        with torch.no_grad():
            sae.W_enc.copy_(torch.eye(d_mlp))
            sae.W_dec.copy_(torch.eye(d_mlp))
        return sae.eval()

    @property
    def d_in(self) -> int:
        """Width of the activations it reads."""
        return self.config.d_in

    @property
    def hook_point(self) -> str:
        """Where in the model it reads."""
        return self.config.hook_point

    @property
    def model_hash(self) -> str:
        """`weights_hash` of the model it was trained on; empty when not known."""
        return self.config.model_hash

    @property
    def weights_hash(self) -> str:
        """sha256 over settings and weights, the same on every machine."""
        return hashlib.sha256(f"{self.config} {hash_weights(self)}".encode()).hexdigest()

    def pre_acts(self, x: Tensor) -> Tensor:
        """Give the hidden layer before its non-linearity: (..., d_in) to (..., d_sae)."""
        centred = x - self.b_dec if self.config.apply_b_dec_to_input else x
        return centred @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Give the features' activations.

        Args:
            x: (..., d_in) activations of the model.

        Returns:
            (..., d_sae) >= 0; a feature fires where it is > 0.
        """
        if self.config.activation == "identity":
            return torch.relu(x)
        pre_acts = self.pre_acts(x)
        if self.config.activation == "jumprelu":
            return torch.relu(pre_acts) * (pre_acts > self.threshold)
        acts = torch.relu(pre_acts)
        if self.config.k is None:
            return acts
        if self.config.rescale_by_decoder_norm:
            norms = self.W_dec.norm(dim=1)
            return acts * top_k_mask(acts * norms, self.config.k)
        return acts * top_k_mask(acts, self.config.k)

    def encode_sparse(self, x: Tensor) -> SparseActs:
        """Give the active features of each token.

        Args:
            x: (n_tokens, d_in) activations of the model.

        Returns:
            CSR rows, one a token, feature ids ascending, activations > 0.

        Raises:
            SaeError: memory is too small for a single token; with more, fewer go through at once.
        """
        portions = self._portions
        portions.device = x.device
        with torch.no_grad():
            parts = portions.fit(
                lambda: [self._encode_sparse(x[rows]) for rows in portions.slices(len(x))], len(x)
            )
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _encode_sparse(self, x: Tensor) -> SparseActs:
        config = self.config
        is_plain = config.activation != "identity" and not config.rescale_by_decoder_norm
        if not is_plain or x.device.type != "cpu":
            return to_sparse(self.encode(x))
        centred = x - self.b_dec if config.apply_b_dec_to_input else x
        return sparse_acts(centred, self._encoder())

    def _encoder(self) -> Encoder:
        """Prepare the encoder, once for as long as no weight is changed."""
        versions = [(weight.data_ptr(), weight._version) for weight in self.parameters()]  # noqa: SLF001 - torch counts changes nowhere else
        if self._prepared is None or self._prepared[0] != versions:
            self._prepared = versions, self._prepare()
        return self._prepared[1]

    def _prepare(self) -> Encoder:
        floor = torch.zeros_like(self.b_enc)
        if self.config.activation == "jumprelu":
            floor = torch.maximum(floor, self.threshold)
        return Encoder.of(self.W_enc.detach(), self.b_enc.detach(), floor, self.config.k)

    def decode(self, acts: Tensor) -> Tensor:
        """Give the reconstruction: (..., d_sae) to (..., d_in)."""
        if self.config.activation == "identity":
            return acts
        return acts @ self.W_dec + self.b_dec

    def decode_sparse(self, acts: SparseActs) -> Tensor:
        """Give the reconstruction of sparse rows, as `decode` does of dense ones.

        Args:
            acts: CSR rows, one a token.

        Returns:
            (n_tokens, d_in).
        """
        given = (acts.indices.astype(np.int64), acts.indptr[:-1], acts.values)
        ids, starts, values = (torch.from_numpy(part).to(self.W_dec.device) for part in given)
        if self.config.activation == "identity":
            rows = torch.from_numpy(np.repeat(np.arange(len(starts)), np.diff(acts.indptr)))
            x_hat = values.new_zeros(len(starts), self.config.d_in)
            x_hat[rows.to(ids.device), ids] = values
            return x_hat
        with torch.no_grad():
            summed = functional.embedding_bag(
                ids, self.W_dec, starts, mode="sum", per_sample_weights=values
            )
            return summed + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode: (..., d_in) in and out."""
        return self.decode(self.encode(x))


def save_sae(sae: SparseAutoencoder, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a dictionary in the layout of SAELens: sae_weights.safetensors, then cfg.json.

    Args:
        sae: what to save; `identity` is written as the `standard` dictionary that it equals.
        folder: made when it is not there.
        dtype: float32, or float16 for half the size; read back as float32 either way.

    Raises:
        SaeError: a weight is not finite, or too large for that type; nothing is written.
    """
    config = sae.config
    architecture = {"relu": "standard", "identity": "standard"}
    fields: dict[str, Any] = {
        "architecture": architecture.get(config.activation, config.activation),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "hook_name": config.hook_point,
            "model_hash": config.model_hash,
            "seed": config.seed,
        },
    }
    if config.k is not None:
        fields |= {"k": config.k, "rescale_acts_by_decoder_norm": config.rescale_by_decoder_norm}
    weights = {name: weight.to(dtype) for name, weight in sae.state_dict().items()}
    check_finite(folder / WEIGHTS_FILE, weights, SaeError)  # float16 ends at 65,504
    write_tensors(folder / WEIGHTS_FILE, weights)
    write_json(folder / CONFIG_FILE, fields)


def load_sae(
    name_or_dir: str | Path,
    *,
    model: LanguageModel | None = None,
    hook_point: str | HookPoint | None = None,
) -> SparseAutoencoder:
    """Read a dictionary by name or from a folder in the layout of SAELens.

    Args:
        name_or_dir: an embedded one (`A/0`), `neurons`, or a folder with cfg.json and
            sae_weights.safetensors.
        model: whose neurons are meant; needed for `neurons` only.
        hook_point: where those neurons are; None takes the model's first.

    Returns:
        The dictionary on the CPU, in evaluation mode.

    Raises:
        SaeError: there is none of that name, a setting is unknown, or a tensor is missing, extra,
            wrongly shaped or not finite.
        ValueError: `neurons` is asked for without a model.
    """
    if str(name_or_dir) == NEURONS:
        if model is None:
            raise ValueError("the neurons of which model? give model")
        at = str(hook_point or model.hook_points[0])
        return SparseAutoencoder.neurons(model.width(at), hook_point=at)
    folder = _find(name_or_dir)
    config = _read_config(folder / CONFIG_FILE)
    with torch.device("meta"):  # no memory before the file has been seen to fit the config
        sae = SparseAutoencoder(config)
    shapes = {name: tuple(weight.shape) for name, weight in sae.state_dict().items()}
    tensors = read_tensors(folder / WEIGHTS_FILE, shapes, SaeError)
    if config.rescale_by_decoder_norm:  # SAELens ranks and gives acts in units of the length added
        sae.config = replace(config, rescale_by_decoder_norm=False)
        tensors |= with_unit_rows(tensors)
    sae.load_state_dict(tensors, assign=True)
    sae.name = str(name_or_dir)
    return sae.requires_grad_(requires_grad=False).eval()


def embedded_saes() -> list[str]:
    """List the names of the dictionaries that the package ships, e.g. `A/0`."""
    return embedded.sae_names(CONFIG_FILE)


def _silent(_line: str) -> None:
    """Say nothing: fewer tokens at once change no result but its last bits."""


def _joined(parts: list[SparseActs]) -> SparseActs:
    """Put rows after each other."""
    counts = [np.empty(0, np.int64), *(np.diff(part.indptr) for part in parts)]
    ids = [np.empty(0, np.uint32), *(part.indices for part in parts)]
    values = [np.empty(0, np.float32), *(part.values for part in parts)]
    indptr = np.concatenate([[0], np.concatenate(counts).cumsum()])
    return SparseActs(indptr, np.concatenate(ids), np.concatenate(values))


def _find(name_or_dir: str | Path) -> Path:
    name = str(name_or_dir)
    if name in embedded_saes():
        return embedded.sae_folder(name)
    folder = Path(name_or_dir)
    if (folder / CONFIG_FILE).is_file():
        return folder
    if not (folder / WEIGHTS_FILE).exists():
        refuse_pickle(folder)
    raise SaeError(
        f"there is no SAE {name!r}: it is not an embedded one "
        f"({', '.join([*embedded_saes(), NEURONS])}), and "
        f"{folder / CONFIG_FILE} is not a file; give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
    )


def _read_config(path: Path) -> SaeConfig:
    fields = read_json(path, SaeError)
    architecture = architecture_of(path, fields)
    arguments = fields.get("activation_fn_kwargs") or {}  # flat files, before SAELens 6.0
    k = fields.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    metadata = fields.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    hook_point = known.get("hook_name") or fields.get("hook_name") or fields.get("hook_point")
    try:
        return SaeConfig(
            d_in=size_of(fields, "d_in"),
            d_sae=size_of(fields, "d_sae"),
            activation=ARCHITECTURES[architecture],
            k=k if architecture == "topk" else None,
            apply_b_dec_to_input=flag_of(fields, "apply_b_dec_to_input", default=True),
            rescale_by_decoder_norm=flag_of(fields, "rescale_acts_by_decoder_norm", default=False),
            hook_point=str(hook_point or SaeConfig.hook_point),
            model_hash=str(known.get("model_hash") or ""),
            seed=known.get("seed"),
        )
    except (TypeError, ValueError) as err:
        raise SaeError(f"{path}: {err}") from err
