"""Everything that decides a dictionary, beside model and text."""

from __future__ import annotations

import math
from dataclasses import dataclass

VARIANTS = ("topk", "batch_topk", "matryoshka", "jumprelu", "l1")
NEEDS = {
    "topk": "k",
    "batch_topk": "k",
    "matryoshka": "k",
    "jumprelu": "l0_coefficient",
    "l1": "l1_coefficient",
}  # the one setting of each variant that says how sparse it is
UNAIDED = ("jumprelu", "l1")  # variants without the auxiliary loss
AUX_COEFFICIENT = 1 / 32  # as in Gao et al. 2024
K_AUX = 16  # few, so that each finds something of its own
FRACTIONS = (
    *("lr", "beta1", "decay_share"),
    *("aux_coefficient", "l1_coefficient", "l0_coefficient"),
)
COUNTS = (
    *("batch_size", "dead_after", "k_aux", "block_windows", "checkpoint_every", "record_every"),
    *("resample_window", "resample_inputs"),
)


@dataclass(frozen=True)
class TrainSaeConfig:
    """Settings of a training; those that contradict each other are refused."""

    d_in: int
    """Width of the activations."""

    d_sae: int
    """Number of features."""

    k: int | None = None
    """Features active on a token (on average, but for `topk`)."""

    n_activations: int = 0
    """Activations to train on; repeats the data when they are fewer."""

    variant: str = "topk"
    """`topk`, `batch_topk`, `matryoshka` (BatchTopK in nested groups), `jumprelu` or `l1`."""

    l1_coefficient: float | None = None
    """Of `l1`: cost of an activation of 1, beside the squared error of inputs of unit variance."""

    l0_coefficient: float | None = None
    """Of `jumprelu`: cost of one more active feature, beside the same."""

    batch_size: int = 2048
    """Activations a step."""

    lr: float = 1e-3
    """Adam's learning rate on the plateau."""

    beta1: float = 0.9
    """Adam's share of the mean gradient that is kept a step."""

    warm_up_steps: int = 200
    """Steps of linear rise from 0 to lr; a run that has fewer ends before lr is reached."""

    decay_share: float = 0.2
    """Last share of the steps, over which the rate falls linearly to 0; 0 keeps it, as `l1` did."""

    sparsity_warm_up_steps: int = 0
    """Of `l1`: steps of linear rise of its coefficient."""

    dead_after: int = 500_000
    """Activations without firing after which a feature learns from the auxiliary loss."""

    k_aux: int = K_AUX
    """Silent features that reconstruct the error of a token, at most; Gao et al. take d_in / 2."""

    aux_coefficient: float = AUX_COEFFICIENT
    """Weight of the auxiliary loss; 0 leaves it out, `l1` and `jumprelu` have none."""

    resample_at: tuple[int, ...] = ()
    """Steps before which dead features start anew (the paper, for L1: 25,000, 50,000 ...).
    Any variant may: `l1` at the inputs themselves, the others at what is missed of them."""

    resample_window: int = 12_500
    """Steps without firing after which a feature is dead to resampling."""

    resample_inputs: int = 819_200
    """Activations whose losses decide where the dead start anew."""

    n_kept: int | None = None
    """Features kept in the end, those that fire most; None keeps all. Some always die: learn a few more
    than are wanted."""

    seed: int = 0
    """Seed of weights and order."""

    hook_point: str = "blocks.0.mlp.hook_post"
    """Where the activations are from."""

    block_windows: int = 512
    """Windows whose activations are shuffled together (512 x 256 x 512 float32 are 268 MB)."""

    checkpoint_every: int = 2000
    """Steps between checkpoints."""

    record_every: int = 250
    """Steps between rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train.

        Raises:
            ValueError: a number is out of its range, or settings contradict each other.
        """
        if self.d_in < 1 or self.d_sae < 1:
            raise ValueError(f"d_in and d_sae must be >= 1, got {self.d_in} and {self.d_sae}")
        self._check_numbers()
        self._check_variant()
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k must be in 1..d_sae = {self.d_sae}, got {self.k}")
        if self.n_kept is not None and not (self.k or 1) <= self.n_kept <= self.d_sae:
            raise ValueError(
                f"n_kept must be in {self.k or 1}..d_sae = {self.d_sae}, got {self.n_kept}"
            )
        if self.n_steps < 1:
            raise ValueError(
                f"n_activations must be at least one batch of {self.batch_size}, got "
                f"{self.n_activations}"
            )
        if not 0 <= self.sparsity_warm_up_steps <= self.n_steps:
            raise ValueError(
                f"sparsity_warm_up_steps must be in 0..{self.n_steps} steps, got "
                f"{self.sparsity_warm_up_steps}"
            )
        self._check_resampling()

    def _check_numbers(self) -> None:
        for name in FRACTIONS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not (self.lr > 0 and 0 <= self.decay_share <= 1 and self.warm_up_steps >= 0):
            raise ValueError("lr must be > 0, decay_share in [0, 1], warm_up_steps >= 0")
        if self.aux_coefficient < 0:
            raise ValueError(f"aux_coefficient must be >= 0, got {self.aux_coefficient}")
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"beta1 must be in [0, 1), got {self.beta1}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be in 0..2^32 - 1, got {self.seed}")

    def _check_variant(self) -> None:
        if self.variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ValueError(f"variant must be one of {known}, got {self.variant!r}")
        needed = NEEDS[self.variant]
        for name in dict.fromkeys(NEEDS.values()):
            value = getattr(self, name)
            if name == needed and (value is None or value <= 0):
                raise ValueError(f"{self.variant} must be given {name} > 0, got {value}")
            if name != needed and value is not None:
                raise ValueError(
                    f"{name} must be left out: {self.variant} is made sparse by {needed}"
                )
        if self.sparsity_warm_up_steps and self.variant != "l1":
            raise ValueError(
                f"sparsity_warm_up_steps must be left out: {self.variant} has no cost that rises, "
                "l1 has"
            )
        if self.variant in UNAIDED:
            is_aided = self.aux_coefficient not in {0, AUX_COEFFICIENT} or self.k_aux != K_AUX
            if is_aided:  # the defaults are not told from the same numbers given
                raise ValueError(
                    f"aux_coefficient and k_aux must be left out: {self.variant} has no auxiliary "
                    "loss"
                )

    def _check_resampling(self) -> None:
        for step in self.resample_at:
            if not 1 <= step < self.n_steps:
                raise ValueError(
                    f"resample_at must be steps before the last of {self.n_steps}, from 1, got "
                    f"{step}"
                )
            if step < self.resample_window:
                raise ValueError(
                    f"resample_at must be >= resample_window = {self.resample_window}, before "
                    f"which nothing was silent for so many steps, got {step}"
                )

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return self.n_activations // self.batch_size
