"""Everything that decides a dictionary, beside model and text."""

from __future__ import annotations

from dataclasses import dataclass

VARIANTS = ("topk", "batch_topk", "matryoshka", "jumprelu", "l1")
NEEDS = {
    "topk": "k",
    "batch_topk": "k",
    "matryoshka": "k",
    "jumprelu": "l0_coefficient",
    "l1": "l1_coefficient",
}  # the one setting of each variant that says how sparse it is


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
    """Steps of linear rise from 0 to lr."""

    decay_share: float = 0.2
    """Last share of the steps, over which the rate falls linearly to 0; 0 keeps it, as `l1` did."""

    sparsity_warm_up_steps: int = 0
    """Of `l1`: steps of linear rise of its coefficient."""

    dead_after: int = 1_000_000
    """Activations without firing after which a feature learns from the auxiliary loss."""

    k_aux: int = 256
    """Silent features that reconstruct the error of a token; Gao et al. take d_in / 2."""

    aux_coefficient: float = 1 / 32
    """Weight of the auxiliary loss, as in Gao et al.; 0 leaves it out, `l1` and `jumprelu` do."""

    resample_at: tuple[int, ...] = ()
    """Steps before which dead features start anew (the paper, for L1: 25,000, 50,000 ...)."""

    resample_window: int = 12_500
    """Steps without firing after which a feature is dead to resampling."""

    resample_inputs: int = 819_200
    """Activations whose losses decide where the dead start anew."""

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
        self._check_variant()
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k must be in 1..d_sae = {self.d_sae}, got {self.k}")
        for name in ("batch_size", "dead_after", "k_aux", "block_windows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.n_steps < 1 or self.record_every < 1:
            raise ValueError(
                f"n_activations must be at least one batch of {self.batch_size}, got "
                f"{self.n_activations}"
            )
        if not (self.lr > 0 and 0 <= self.decay_share <= 1 and self.warm_up_steps >= 0):
            raise ValueError("lr must be > 0, decay_share in [0, 1], warm_up_steps >= 0")
        if self.aux_coefficient < 0 or self.sparsity_warm_up_steps < 0:
            raise ValueError("aux_coefficient and sparsity_warm_up_steps must be >= 0")
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"beta1 must be in [0, 1), got {self.beta1}")

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

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return self.n_activations // self.batch_size
