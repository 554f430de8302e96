"""Language models as the package sees them: bytes to tokens, to a hook point, to logits.

`LanguageModel` is the protocol; `OneLayerModel` is a `Transformer` in a folder with its tokenizer.
The embedded default needs no name, no network and no GPU; others that the package ships have one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from sae_core import embedded
from sae_core.byte_tokenizer import ByteTokenizer
from sae_core.errors import ModelError, SaeError
from sae_core.schema import HookPoint
from sae_core.transformer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    HookState,
    Transformer,
    load_transformer,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sae_core.window_stream import Encoding

START_TOKEN = 0  # <|endoftext|>, put before every document in training


class DirectPath(NamedTuple):
    """The weights between a hook point and the logits, without what lies between."""

    W_out: Tensor
    """(d_in, d_model) from the hook point to the residual stream."""

    gain: Tensor
    """(d_model,) the final norm's weight."""

    W_U: Tensor
    """(d_model, d_vocab) from the residual stream to the logits."""

    is_centred: bool
    """Whether the final norm removes the mean (LayerNorm does)."""


class LanguageModel(Protocol):
    """What gathering, logit effects, evaluation and steering need of a model."""

    name: str
    """As the user gave it."""

    d_model: int
    d_vocab: int
    n_ctx: int
    n_layers: int

    start_token: int | None
    """Token put before a document's first window; None for models trained without."""

    vocabulary: list[bytes]
    """The bytes of each token, by id; empty for special tokens."""

    hook_points: tuple[HookPoint, ...]
    """Where it can be read."""

    weights_hash: str
    """sha256 over sizes and weights."""

    tokenizer_hash: str
    """sha256 of the tokenizer's file."""

    def width(self, hook_point: str | HookPoint) -> int:
        """Give the width of the activations at a hook point."""

    def encode(self, data: bytes) -> Encoding:
        """Tokenise a document; the tokens' bytes, joined, are the document."""

    def run_to_hook(self, token_ids: Tensor, hook_point: str | HookPoint) -> HookState:
        """Run (batch, pos) token ids up to a hook point."""

    def acts_after(
        self, token_ids: Tensor, places: Tensor, next_ids: Tensor, hook_point: str | HookPoint
    ) -> Tensor:
        """Give a hook point's activations on (batch, n) tokens put after places of windows."""

    def logits(self, state: HookState) -> Tensor:
        """Run on from a hook point: (batch, pos, d_vocab)."""

    def final_scale(self, state: HookState) -> Tensor:
        """Give the final norm's divisor at each position: (batch, pos), > 0."""

    def direct_path(self, hook_point: str | HookPoint) -> DirectPath:
        """Give the weights between a hook point and the logits."""


class Dictionary(Protocol):
    """What a model needs to know of an SAE."""

    name: str

    @property
    def d_in(self) -> int:
        """Width it reads."""

    @property
    def hook_point(self) -> str:
        """Where it was trained to read."""

    @property
    def model_hash(self) -> str:
        """`weights_hash` of the model it was trained on; empty when not known."""


class OneLayerModel:
    """A transformer and its tokenizer, read from one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        tokenizer: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Read a folder with config.json, model.safetensors and tokenizer.json.

        Args:
            folder: as written by `train_model`.
            name: how messages and manifests call it; the folder when None.
            tokenizer: a tokenizer.json elsewhere; None takes the folder's.
            device: `cpu` or a CUDA device.

        Raises:
            ModelError: a file is missing or broken, or tokenizer and logits differ in size.
        """
        self.folder = folder
        self.name = name or str(folder)
        self.module: Transformer = load_transformer(folder).to(_device(device))
        self.module.requires_grad_(requires_grad=False)
        self.tokenizer = ByteTokenizer(tokenizer or folder / TOKENIZER_FILE)
        config = self.module.config
        self.d_model, self.d_vocab = config.d_model, config.d_vocab
        self.n_ctx, self.n_layers = config.n_ctx, config.n_layers
        self.start_token: int | None = START_TOKEN
        self.vocabulary = self.tokenizer.vocabulary
        self.hook_points = tuple(HookPoint(layer) for layer in range(config.n_layers))
        self.weights_hash = hash_weights(self.module)
        self.tokenizer_hash = self.tokenizer.sha256
        if len(self.vocabulary) != self.d_vocab:
            raise ModelError(
                f"{self.tokenizer.path} has {len(self.vocabulary)} tokens, the logits of "
                f"{folder / WEIGHTS_FILE} have {self.d_vocab}; put the model's own tokenizer there"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.W_U.device

    def width(self, hook_point: str | HookPoint) -> int:
        """Give the width of the activations at a hook point.

        Raises:
            ModelError: the model has no such hook point.
        """
        self._layer(hook_point)
        return self.module.config.d_mlp

    def encode(self, data: bytes) -> Encoding:
        """Tokenise a document; the tokens' bytes, joined, are the document."""
        return self.tokenizer.encode(data)

    @torch.no_grad()
    def run_to_hook(self, token_ids: Tensor, hook_point: str | HookPoint) -> HookState:
        """Run up to a hook point.

        Args:
            token_ids: (batch, pos) int64, pos <= n_ctx.
            hook_point: one of `hook_points`.

        Returns:
            The activations there, and what is needed to run on.

        Raises:
            ModelError: there is no such hook point.
            ValueError: the windows are longer than n_ctx.
        """
        if token_ids.shape[1] > self.n_ctx:
            raise ValueError(
                f"windows must have at most {self.n_ctx} tokens, got {token_ids.shape[1]}"
            )
        layer = self._layer(hook_point)
        return self.module.run_to_hook(token_ids.to(self.device), layer=layer)

    @torch.no_grad()
    def acts_after(
        self, token_ids: Tensor, places: Tensor, next_ids: Tensor, hook_point: str | HookPoint
    ) -> Tensor:
        """Give a hook point's activations on other tokens than those that came.

        Args:
            token_ids: (batch, pos) int64 windows, pos <= n_ctx.
            places: (batch, n) position that each new token is put after, < n_ctx - 1.
            next_ids: (batch, n) the new tokens; they see the window up to their places.
            hook_point: one of `hook_points`.

        Returns:
            (batch, n, width) what `run_to_hook` gives at places + 1 of windows that hold them.

        Raises:
            ModelError: there is no such hook point.
        """
        given = (part.to(self.device) for part in (token_ids, places, next_ids))
        return self.module.acts_after(*given, layer=self._layer(hook_point))

    @torch.no_grad()
    def logits(self, state: HookState) -> Tensor:
        """Run on from a hook point: (batch, pos, d_vocab)."""
        return self.module.finish(state)

    @torch.no_grad()
    def final_scale(self, state: HookState) -> Tensor:
        """Give the final norm's divisor at each position: (batch, pos), > 0."""
        return self.module.final_scale(self.module.final_residual(state))

    def direct_path(self, hook_point: str | HookPoint) -> DirectPath:
        """Give the weights between a hook point and the logits."""
        mlp = self.module.blocks[self._layer(hook_point)].mlp
        return DirectPath(mlp.W_out, self.module.ln_final.w, self.module.W_U, is_centred=True)

    def _layer(self, hook_point: str | HookPoint) -> int:
        for known in self.hook_points:
            if str(known) == str(hook_point):
                return known.layer
        names = ", ".join(str(known) for known in self.hook_points)
        raise ModelError(f"model {self.name} has no hook point {hook_point}; it has {names}")


def load_model(name_or_dir: str | Path | None = None, *, device: str = "cpu") -> OneLayerModel:
    """Read a model: one that the package ships, or one from a folder. Nothing is downloaded.

    Args:
        name_or_dir: a folder, or the name of an embedded model: `A`, `B`; None and `embedded` are
            the default, `A`. A Path is a folder.
        device: `cpu` or a CUDA device.

    Returns:
        The model.

    Raises:
        ModelError: there is no such model here, a name could also mean a folder, or the model's
            files or the device are not usable.
    """
    name = None if isinstance(name_or_dir, Path) else embedded.embedded_model(name_or_dir)
    if name is not None:
        return _load_embedded(name, str(name_or_dir), device)
    folder, known = Path(str(name_or_dir)), embedded.embedded_models()
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(
            f"there is no model {str(name_or_dir)!r}: {folder.absolute() / CONFIG_FILE} is not a "
            f"file, it is not an embedded one ({', '.join(known)}), and nothing is downloaded; give "
            f"a folder with {CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE}, or the name of an "
            "embedded model"
        )
    shown = f"./{folder}" if str(folder) in known else str(folder)
    return OneLayerModel(folder, name=shown, device=device)


def check_fits(
    model: LanguageModel, sae: Dictionary, hook_point: str | HookPoint | None = None
) -> HookPoint:
    """Refuse a dictionary of another model, or of another width than the place it shall read.

    Args:
        model: the language model.
        sae: the dictionary.
        hook_point: where it shall read; None takes the place it was trained for.

    Returns:
        The hook point.

    Raises:
        ModelError: the model has no such hook point.
        SaeError: the widths differ, or the dictionary names another model by its hash.
    """
    wanted = str(hook_point or sae.hook_point)
    width = model.width(wanted)
    if width != sae.d_in:
        raise SaeError(
            f"SAE {sae.name} reads {sae.d_in} numbers, {wanted} of model {model.name} has {width}; "
            "choose an SAE that was trained on this model"
        )
    if sae.model_hash not in {"", model.weights_hash}:
        own = embedded.model_of_sae(sae.name)
        is_given = own == embedded.embedded_model(model.name)
        raise SaeError(
            f"SAE {sae.name} was trained on another model than {model.name}: on one of hash "
            f"{sae.model_hash[:12]}, not {model.weights_hash[:12]}; give --model "
            f"{own if own and not is_given else 'with the folder of that one'}"
        )
    return next(known for known in model.hook_points if str(known) == wanted)


def hash_weights(module: torch.nn.Module) -> str:
    """Give the sha256 over the weights as float32, names and shapes included: 64 hex digits."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load_embedded(name: str, given: str, device: str) -> OneLayerModel:
    """Read a model of the package, unless the name that was given is also a folder's."""
    if given == name and (Path(name) / CONFIG_FILE).is_file():
        raise ModelError(
            f"{name!r} is the name of an embedded model and a folder with a model at "
            f"{Path(name).absolute()}; write ./{name} for the folder, or call from elsewhere"
        )
    return OneLayerModel(
        embedded.model_folder(name),
        name=embedded.DEFAULT_ALIAS if name == embedded.DEFAULT else name,
        tokenizer=embedded.tokenizer_path(name),
        device=device,
    )


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("the device cuda is asked for, but there is no GPU here; use cpu")
    return device
