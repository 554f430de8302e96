"""The cards of dictionaries as a page shows them: how each was trained, and how good it is.

Source: Bricken et al. 2023, "How much of the model does our interpretation explain?" and "Global
Analysis", for the paper's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from figures.tables import markdown
from sae_core import embedded
from sae_core.train_settings import NEEDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_core.evaluate_result import EvaluateResult

CARDS, CURVES = "cards", "dictionary-curves.svg"
UNKNOWN = ""
SPARSITY = {"k": "k {}", "l1_coefficient": "L1 {:g}", "l0_coefficient": "L0 {:g}"}
TRAINED_HEAD = (
    *("dictionary", "model", "variant", "sparsity", "features", "activations", "batch"),
    *("learning rate", "seed"),
)
SCORES_HEAD = (
    *("dictionary", "L0", "FVU", "loss recovered", "dead", "ultralow", "norm ratio"),
    *("reconstruction bias", "decoder cosine"),
)
TRAINED_INTRO = "How the dictionaries that ship were trained; each name links to all settings, scores and hashes:"
CURVES_NOTE = (
    "Left: error on the training batches. Right: features that have not fired for as many "
    "activations as the training's `dead_after` says."
)
PAPER = ("the paper's A/1", "", "", "0.79", "168 of 4,096", "292 of 4,096", "", "", "")
NOTES = """\
- **L0**: active features a token. **FVU**: squared error over squared deviation from the mean activation. **Loss
  recovered**: (zero - dictionary) / (zero - model), of the model's next-token losses with the MLP set to zero,
  replaced by the dictionary's reconstruction, and untouched. In brackets: 95 % intervals over documents, drawn with
  replacement.
- **Dead**: fired on none of these tokens. **Ultralow**: fired, but on less than 1e-5 of them.
- **Norm ratio**: lengths of the reconstructions over those of the activations. It falls below 1 also for what is merely
  missed. **Reconstruction bias** is shrinkage alone: what the reconstructions must be divided by to fit best
  (Rajamanoharan et al. 2024); 1 is none.
- **Decoder cosine**: mean over features of the largest cosine between its decoder row and another's."""
PAPER_NOTE = """\
- **The paper's A/1** is an L1 dictionary of 4,096 features on another model and text; its dead ones were judged on 100M
  tokens, and its ultralow ones fire on less than 1e-6 of them."""


@dataclass(frozen=True)
class Card:
    """What is known of one dictionary."""

    name: str
    """As `--sae` takes it."""

    model: str
    """The embedded model that it reads."""

    training: dict[str, Any]
    """All settings that decided its weights; empty when they were not kept."""

    scores: EvaluateResult
    """Measured on the text."""

    sae_hash: str
    """Of the weights and settings that were measured."""

    model_hash: str
    """Of the model's weights."""

    text_sha256: str
    """sha256 over the sha256 of each document of the text, in order."""

    @property
    def n_learnt(self) -> int:
        """Features in training; some may have been left out at the end."""
        return int(self.training.get("d_sae", self.scores.n_features))

    @property
    def file_stem(self) -> str:
        """How its files are called."""
        return embedded.sae_folder(self.name).name


def page_text(cards: Sequence[Card], *, has_curves: bool) -> str:
    """Give what stands in the block: two tables, their words, the picture."""
    n_tokens, n_documents = cards[0].scores.n_tokens, cards[0].scores.n_documents
    parts = [
        TRAINED_INTRO,
        markdown(TRAINED_HEAD, [_trained_row(card) for card in cards], n_words=4),
        f"How good they are on {n_tokens:,} held-out tokens of {n_documents:,} documents:",
        markdown(SCORES_HEAD, score_rows(cards), n_words=1),
        f"{NOTES}\n{PAPER_NOTE}",
    ]
    if has_curves:
        parts += [f"![Error and silent features over activations]({CURVES})", CURVES_NOTE]
    return "\n\n".join(parts)


def score_rows(cards: Sequence[Card]) -> list[tuple[str, ...]]:
    """Give a row of scores a dictionary, and the paper's after the last of L1, or at the end."""
    rows = [_score_row(card) for card in cards]
    l1 = [at for at, card in enumerate(cards) if card.training.get("variant") == "l1"]
    rows.insert(l1[-1] + 1 if l1 else len(rows), PAPER)
    return rows


def _trained_row(card: Card) -> tuple[str, ...]:
    known = card.training
    variant = str(known.get("variant", UNKNOWN))
    needed = NEEDS.get(variant, UNKNOWN)
    counts = (known.get("n_activations"), known.get("batch_size"))
    kept = f"{card.scores.n_features:,}"
    return (
        f"[{card.name}]({CARDS}/{card.file_stem}.json)",
        card.model,
        variant,
        SPARSITY[needed].format(known[needed]) if needed else UNKNOWN,
        kept if card.n_learnt == card.scores.n_features else f"{kept} of {card.n_learnt:,} learnt",
        *(UNKNOWN if count is None else f"{count:,}" for count in counts),
        f"{known['lr']:g}" if "lr" in known else UNKNOWN,
        str(known.get("seed", UNKNOWN)),
    )


def _score_row(card: Card) -> tuple[str, ...]:
    scores = card.scores
    bias = scores.reconstruction_bias
    return (
        card.name,
        _with_interval(scores.l0, scores.l0_low, scores.l0_high, decimals=1),
        _with_interval(scores.fvu, scores.fvu_low, scores.fvu_high),
        _with_interval(
            scores.loss_recovered, scores.loss_recovered_low, scores.loss_recovered_high
        ),
        f"{scores.n_dead:,} of {scores.n_features:,}",
        f"{scores.n_ultralow:,} of {scores.n_features:,}",
        f"{scores.norm_ratio:.3f}",
        UNKNOWN if bias is None else f"{bias:.3f}",
        f"{scores.decoder_cosine:.3f}",
    )


def _with_interval(
    value: float | None, low: float | None, high: float | None, *, decimals: int = 3
) -> str:
    if value is None:
        return UNKNOWN
    ends = "" if low is None else f" ({low:.{decimals}f} to {high:.{decimals}f})"
    return f"{value:.{decimals}f}{ends}"
