"""A small decoder-only transformer: token ids in, MLP activations and next-token logits out.

1. `embed`: token and learned position vectors are added into the residual stream.
2. Each block adds causal attention, then an MLP with ReLU, both on a layer-normed copy of the
   stream.
3. `run_to_hook` stops after one MLP's ReLU: these are the activations that a dictionary reads.
4. `finish` takes them (perhaps changed) the rest of the way: MLP output, later blocks, final norm,
   unembedding.
5. `acts_after` reads other tokens than those that came: many at a window's places, for the price of
   one token each, since what came before is read once.

Source: Bricken et al. 2023, "Transformer Training and Preprocessing" (one layer, d_model 128, 512
ReLU neurons).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from sae_core.bounded import read_json
from sae_core.errors import ModelError
from sae_core.files import write_bytes, write_text
from sae_core.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
ARCHITECTURE = "sae-automata-transformer"
LAYER_NORM_EPS = 1e-5
EMBED_STD = 0.02  # GPT-2's: small beside what the blocks add, so early training is calm


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a transformer."""

    n_layers: int = 1
    """Number of blocks (attention + MLP)."""

    d_model: int = 128
    """Width of the residual stream."""

    n_heads: int = 4
    """Attention heads a block; must divide d_model."""

    d_mlp: int = 512
    """ReLU neurons a block."""

    n_ctx: int = 256
    """Longest window, in tokens."""

    d_vocab: int = 4096
    """Number of tokens in the vocabulary."""

    def __post_init__(self) -> None:
        """Refuse sizes that no transformer can have.

        Raises:
            ValueError: a size is below 1, or n_heads does not divide d_model.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name} must be a whole number >= 1, got {value!r}")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"n_heads must divide d_model, got {self.n_heads} heads for {self.d_model}"
            )


class HookState(NamedTuple):
    """A forward pass stopped after one MLP's non-linearity."""

    acts: Tensor
    """(batch, pos, d_mlp) MLP activations, >= 0."""

    resid_mid: Tensor
    """(batch, pos, d_model) the residual stream to which the MLP's output is still to be added."""

    layer: int
    """The block it was stopped in."""


class LayerNorm(nn.Module):
    """Layer normalisation with a gain and no bias."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Centre each position, divide by its standard deviation, multiply with the gain."""
        return functional.layer_norm(x, self.w.shape, self.w, None, LAYER_NORM_EPS)


class Attention(nn.Module):
    """Causal multi-head self-attention without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.W_QKV = nn.Parameter(torch.empty(config.d_model, 3 * config.d_model))
        self.W_O = nn.Parameter(torch.empty(config.d_model, config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Mix each position with those before it; (batch, pos, d_model) in and out."""
        q, k, v = self._heads(x)
        return self._joined(functional.scaled_dot_product_attention(q, k, v, is_causal=True))

    def after(self, x: Tensor, places: Tensor, new: Tensor) -> Tensor:
        """Mix new tokens with the window's tokens up to their places, and with themselves.

        Args:
            x: (batch, pos, d_model) the windows.
            places: (batch, n) position that each new token is put after.
            new: (batch, n, d_model) the new tokens, which do not see each other.

        Returns:
            (batch, n, d_model).
        """
        _, k, v = self._heads(x)
        q, own_k, own_v = self._heads(new)
        scores = q @ k.mT  # (batch, n_heads, n, pos)
        is_later = torch.arange(x.shape[1], device=x.device) > places[:, None, :, None]
        own = (q * own_k).sum(dim=-1, keepdim=True)
        scores = torch.cat([scores.masked_fill(is_later, -torch.inf), own], dim=-1)
        weights = functional.softmax(scores / math.sqrt(q.shape[-1]), dim=-1)
        return self._joined(weights[..., :-1] @ v + weights[..., -1:] * own_v)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values: (batch, pos, d_model) to (batch, n_heads, pos, d_head)."""
        batch, pos, d_model = x.shape
        qkv = (x @ self.W_QKV).view(batch, pos, 3, self.n_heads, d_model // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def _joined(self, mixed: Tensor) -> Tensor:
        """Give what the heads add: (batch, n_heads, pos, d_head) to (batch, pos, d_model)."""
        out: Tensor = mixed.transpose(1, 2).flatten(2) @ self.W_O
        return out


class Mlp(nn.Module):
    """Two linear maps with a ReLU between."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(config.d_model, config.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(config.d_mlp))
        self.W_out = nn.Parameter(torch.empty(config.d_mlp, config.d_model))
        self.b_out = nn.Parameter(torch.zeros(config.d_model))

    def neurons(self, x: Tensor) -> Tensor:
        """Give the activations after the ReLU: (..., d_model) to (..., d_mlp)."""
        return functional.relu(x @ self.W_in + self.b_in)

    def write(self, acts: Tensor) -> Tensor:
        """Give what the activations add to the stream: (..., d_mlp) to (..., d_model)."""
        return acts @ self.W_out + self.b_out


class Block(nn.Module):
    """One layer: attention, then the MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config.d_model)
        self.attn = Attention(config)
        self.ln2 = LayerNorm(config.d_model)
        self.mlp = Mlp(config)

    def attend(self, resid: Tensor) -> Tensor:
        """Add the attention's output to the stream; (batch, pos, d_model) in and out."""
        out: Tensor = resid + self.attn(self.ln1(resid))
        return out

    def neurons(self, resid_mid: Tensor) -> Tensor:
        """Give the MLP's activations: (batch, pos, d_model) to (batch, pos, d_mlp)."""
        return self.mlp.neurons(self.ln2(resid_mid))

    def forward(self, resid: Tensor) -> Tensor:
        """Add attention and MLP to the stream; (batch, pos, d_model) in and out."""
        resid_mid = self.attend(resid)
        return resid_mid + self.mlp.write(self.neurons(resid_mid))


class Transformer(nn.Module):
    """The whole model; parameters are float32 and named as in TransformerLens."""

    def __init__(self, config: ModelConfig, *, seed: int | None) -> None:
        """Make a model with random weights, or with none yet when seed is None."""
        super().__init__()
        self.config = config
        self.W_E = nn.Parameter(torch.empty(config.d_vocab, config.d_model))
        self.W_pos = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
        self.blocks: Any = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_final = LayerNorm(config.d_model)
        self.W_U = nn.Parameter(torch.empty(config.d_model, config.d_vocab))
        if seed is not None:
            self._initialise(seed)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Start the residual stream: (batch, pos) token ids to (batch, pos, d_model)."""
        return functional.embedding(token_ids, self.W_E) + self.W_pos[: token_ids.shape[1]]

    def run_to_hook(self, token_ids: Tensor, *, layer: int = 0) -> HookState:
        """Run up to one MLP's activations.

        Args:
            token_ids: (batch, pos) int64, pos <= n_ctx.
            layer: the block whose MLP is read.

        Returns:
            The activations and the residual stream beside them.

        Raises:
            ValueError: there is no such block.
        """
        if not 0 <= layer < self.config.n_layers:
            raise ValueError(f"layer must be in 0..{self.config.n_layers - 1}, got {layer}")
        resid = self.embed(token_ids)
        for block in self.blocks[:layer]:
            resid = block(resid)
        block = self.blocks[layer]
        resid_mid = block.attend(resid)
        return HookState(block.neurons(resid_mid), resid_mid, layer)

    def acts_after(
        self, token_ids: Tensor, places: Tensor, next_ids: Tensor, *, layer: int = 0
    ) -> Tensor:
        """Give one MLP's activations on tokens put after places of windows, in place of what came.

        Args:
            token_ids: (batch, pos) int64 windows.
            places: (batch, n) position that each new token is put after, < n_ctx - 1.
            next_ids: (batch, n) the new tokens; they see the window up to their places.
            layer: the block whose MLP is read.

        Returns:
            (batch, n, d_mlp) what `run_to_hook` gives at places + 1 of windows that hold them.
        """
        resid = self.embed(token_ids)
        new = functional.embedding(next_ids, self.W_E) + self.W_pos[places + 1]
        for block in self.blocks[:layer]:
            new_mid = new + block.attn.after(block.ln1(resid), places, block.ln1(new))
            new = new_mid + block.mlp.write(block.neurons(new_mid))
            resid = block(resid)
        block = self.blocks[layer]
        acts: Tensor = block.neurons(
            new + block.attn.after(block.ln1(resid), places, block.ln1(new))
        )
        return acts

    def final_residual(self, state: HookState) -> Tensor:
        """Run on from one MLP's activations, perhaps changed, to what the final norm reads."""
        resid: Tensor = state.resid_mid + self.blocks[state.layer].mlp.write(state.acts)
        for block in self.blocks[state.layer + 1 :]:
            resid = block(resid)
        return resid

    def finish(self, state: HookState) -> Tensor:
        """Run on from one MLP's activations, perhaps changed: (batch, pos, d_vocab) logits."""
        return self.unembed(self.final_residual(state))

    def unembed(self, resid: Tensor) -> Tensor:
        """Norm the last residual stream and read the logits: (..., d_model) to (..., d_vocab)."""
        logits: Tensor = self.ln_final(resid) @ self.W_U
        return logits

    def final_scale(self, resid: Tensor) -> Tensor:
        """Give the final norm's divisor at each position: (..., d_model) to (...), > 0."""
        return torch.sqrt(resid.var(dim=-1, correction=0) + LAYER_NORM_EPS)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Give the next-token logits: (batch, pos) to (batch, pos, d_vocab)."""
        return self.unembed(self.run_through(token_ids))

    def run_through(self, token_ids: Tensor) -> Tensor:
        """Give the last residual stream: (batch, pos) to (batch, pos, d_model)."""
        resid = self.embed(token_ids)
        for block in self.blocks:
            resid = block(resid)
        return resid

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue
            std = EMBED_STD if name in {"W_E", "W_pos"} else 1 / math.sqrt(weight.shape[0])
            if name.endswith(("W_O", "W_out")):
                std /= math.sqrt(2 * self.config.n_layers)
            weight.normal_(0, std, generator=generator)


def save_model(
    model: Transformer,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model as config.json, model.safetensors and, beside them, its tokenizer.

    Args:
        model: what to save.
        folder: made when it is not there.
        tokenizer: a tokenizer.json to copy beside the weights; None copies none.
        dtype: float32, or float16 for half the size; read back as float32 either way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"architecture": ARCHITECTURE, **asdict(model.config)}
    write_tensors(folder / WEIGHTS_FILE, model.state_dict(), dtype=dtype)
    if tokenizer is not None and tokenizer.resolve() != (folder / TOKENIZER_FILE).resolve():
        write_bytes(folder / TOKENIZER_FILE, tokenizer.read_bytes())
    write_text(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def load_transformer(folder: Path) -> Transformer:
    """Read a model written by `save_model`, upcast to float32.

    Args:
        folder: holds config.json and model.safetensors.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        ModelError: a file is missing or broken, a size or tensor is not as the config says, or a
            weight is not finite.
    """
    config = _read_config(folder / CONFIG_FILE)
    with torch.device("meta"):  # no memory before the file has been seen to fit the config
        model = Transformer(config, seed=None)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    tensors = read_tensors(folder / WEIGHTS_FILE, shapes, ModelError)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _read_config(path: Path) -> ModelConfig:
    settings = read_json(path, ModelError)
    found = settings.pop("architecture", None)
    if found != ARCHITECTURE:
        raise ModelError(
            f"{path}: architecture is {found!r}, {ARCHITECTURE!r} was expected; "
            "give a folder written by `circuits train-model`"
        )
    wanted = {field.name for field in fields(ModelConfig)}
    if set(settings) != wanted:
        odd = min(set(settings) ^ wanted)
        raise ModelError(
            f"{path}: field {odd!r} is missing or unknown; the fields are "
            f"{', '.join(sorted(wanted))}"
        )
    try:
        return ModelConfig(**settings)
    except ValueError as err:
        raise ModelError(f"{path}: {err}") from err
