"""The result of measuring a dictionary: its numbers, and how people read them.

`measure_rows` turns results into a table of one column a dictionary, with what each number means.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ULTRALOW_DENSITY = (
    1e-5  # below it features are nearly never interpretable (Bricken et al. 2023: 1e-6 .. 1e-5)
)


@dataclass(frozen=True)
class EvaluateResult:
    """How good a dictionary is on some text."""

    sae: str
    """Its name."""

    n_features: int
    """d_sae."""

    n_documents: int
    """Documents with a token."""

    n_tokens: int
    """Their tokens, start tokens left out; the denominator of the rates."""

    l0: float
    """Mean number of active features a token."""

    l0_low: float | None
    """Lower end of its 95 % interval over documents, drawn with replacement; None for one document."""

    l0_high: float | None
    """Upper end."""

    fvu: float
    """Squared error of the reconstruction / squared deviation from the mean activation."""

    fvu_low: float | None
    """Lower end of its interval."""

    fvu_high: float | None
    """Upper end."""

    loss_clean: float
    """Mean next-token cross-entropy of the untouched model, nats."""

    loss_sae: float
    """The same with the reconstruction in place of the activations, nats."""

    loss_zero: float
    """The same with zeros in place of the activations, nats."""

    loss_recovered: float | None
    """(loss_zero - loss_sae) / (loss_zero - loss_clean); None when zeroing costs nothing."""

    loss_recovered_low: float | None
    """Lower end of its interval."""

    loss_recovered_high: float | None
    """Upper end."""

    n_dead: int
    """Features that fired on none of the n_tokens."""

    n_ultralow: int
    """Features that fired, but on less than 1e-5 of the n_tokens."""

    dead_share: float
    """n_dead / n_features."""

    norm_ratio: float
    """Sum of the reconstructions' lengths / sum of the activations'. Below 1 for what is missed, too:
    the best reconstruction that misses a share s of the squares is sqrt(1 - s) as long."""

    reconstruction_bias: float | None
    """What all reconstructions must be divided by to fit best, sum |x_hat|^2 / sum x . x_hat: below 1
    is shrinkage alone, 1 for any least-squares fit, however much it misses; None when all are 0."""

    decoder_cosine: float
    """Mean over features of the largest cosine between its decoder row and another's; 1: each has a copy."""

    density_histogram: dict[str, int]
    """Lower end of a half decade of log10 density, e.g. "-2.5" -> features in it; dead ones left out."""

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as they are printed by `--json`."""
        return asdict(self)


def measure_rows(results: Sequence[EvaluateResult]) -> list[dict[str, str]]:
    """Give a table for reading: a row a measure, a column a dictionary.

    Args:
        results: of dictionaries with different names, on the same text.

    Returns:
        Rows whose key "" is the measure, and the other keys are the dictionaries' names.
    """
    n_tokens = f"{results[0].n_tokens:,} tokens"
    cells: dict[str, Callable[[EvaluateResult], str]] = {
        f"on {n_tokens} of {results[0].n_documents:,} documents": lambda _: "",
        "features": lambda one: f"{one.n_features:,}",
        "L0, active features a token": lambda one: _with_interval(one, "l0"),
        "fraction of variance unexplained": lambda one: _with_interval(one, "fvu"),
        "loss recovered": lambda one: _with_interval(one, "loss_recovered"),
        "loss, untouched model, nats": lambda one: f"{one.loss_clean:.4f}",
        "loss, dictionary spliced in, nats": lambda one: f"{one.loss_sae:.4f}",
        "loss, activations set to zero, nats": lambda one: f"{one.loss_zero:.4f}",
        f"dead: never fired in {n_tokens}": lambda one: _share(one.n_dead, one),
        f"ultralow: fired on < {ULTRALOW_DENSITY:.0e} of them": lambda one: _share(
            one.n_ultralow, one
        ),
        "norm ratio": lambda one: f"{one.norm_ratio:.4f}",
        "reconstruction bias, < 1 is shrinkage": lambda one: _number(one.reconstruction_bias),
        "largest cosine of decoder rows, mean": lambda one: f"{one.decoder_cosine:.4f}",
    }
    return [
        {"": measure} | {one.sae: cell(one) for one in results} for measure, cell in cells.items()
    ]


def _with_interval(result: EvaluateResult, name: str) -> str:
    fields = result.to_dict()
    low, high = fields[f"{name}_low"], fields[f"{name}_high"]
    ends = "" if low is None else f" ({_number(low)} to {_number(high)})"
    return _number(fields[name]) + ends


def _share(n: int, result: EvaluateResult) -> str:
    return f"{n:,} ({100 * n / result.n_features:.1f} %)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
