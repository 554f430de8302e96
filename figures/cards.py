"""A card for every dictionary that ships: how it was trained, and how good it is on held-out text.

    python -m figures.cards [TEXT...]

1. Every embedded dictionary is measured on TEXT, those of one model in one pass. By default that is
   the sample of the package: documents that neither model nor dictionary was trained on.
2. docs/cards/A-0.json keeps the settings of the training, the scores and the hashes of what was
   measured on what.
3. docs/dictionary-curves.svg draws the trainings: docs/training/A-0.jsonl, the metrics.jsonl of the
   run, is the curve of A/0.
4. The block `cards` of docs/dictionaries.md shows all of it.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from figures.card_curves import Curve, draw_curves
from figures.card_page import CARDS, CURVES, Card, page_text
from figures.tables import block, replace_block
from sae_core import embedded
from sae_core.corpus import plan_documents
from sae_core.errors import SaeError
from sae_core.evaluate import evaluate_many
from sae_core.files import read_json, write_json, write_text
from sae_core.language_model import load_model
from sae_core.sae import TRAINING_FILE, embedded_saes, load_sae
from sae_core.training import to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

DOCS = Path(__file__).parents[1] / "docs"
PAGE, TRAINING = "dictionaries.md", "training"
HEADING = "# Dictionaries"
DECIMALS = 5  # decimals kept; the rest depends on the processor


def main(arguments: list[str] | None = None) -> None:
    """Measure the dictionaries and write cards, picture and page."""
    parser = argparse.ArgumentParser(prog="python -m figures.cards")
    sample = str(embedded.DEMO / "sample.parquet")
    parser.add_argument("texts", nargs="*", default=[sample], help="held-out text")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of dictionaries.md")
    given = parser.parse_args(arguments)
    cards = compute(given.texts)
    curves = read_curves(cards, given.docs / TRAINING)
    write_cards(cards, given.docs / CARDS)
    if curves:
        draw_curves(curves, given.docs / CURVES)
    write_page(given.docs / PAGE, page_text(cards, has_curves=bool(curves)))
    to_stderr(f"wrote {PAGE}, {CARDS}/ and {CURVES} in {given.docs}")


def compute(texts: Sequence[str]) -> list[Card]:
    """Measure every embedded dictionary.

    Args:
        texts: files, folders, globs; held-out text.

    Returns:
        A card a dictionary, by name.

    Raises:
        SaeError: the package ships no dictionary, or one of a model that it does not ship.
        TextError: there is nothing to read.
    """
    names, models = embedded_saes(), embedded.embedded_models()
    lost = [name for name in names if embedded.model_of_sae(name) not in models]
    if lost or not names:
        raise SaeError(
            f"each dictionary needs its model; there are dictionaries {', '.join(names) or 'none'} "
            f"and models {', '.join(models)}; ship what is missing with sae_core.demo.ship"
        )
    cards: list[Card] = []
    for model in models:
        own = [name for name in names if embedded.model_of_sae(name) == model]
        cards += _cards_of(model, own, texts) if own else []
    return sorted(cards, key=lambda card: card.name)


def read_curves(cards: Sequence[Card], folder: Path) -> list[Curve]:
    """Read the training curves that are there."""
    paths = [(card, folder / f"{card.file_stem}.jsonl") for card in cards]
    return [
        Curve(card.name, card.n_learnt, pl.read_ndjson(path))
        for card, path in paths
        if path.is_file()
    ]


def write_cards(cards: Sequence[Card], folder: Path) -> None:
    """Write a JSON file a card, and delete those of dictionaries that no longer ship."""
    wanted = {f"{card.file_stem}.json": card for card in cards}
    for old in folder.glob("*.json"):
        if old.name not in wanted:
            old.unlink()
    for name, card in wanted.items():
        write_json(folder / name, _rounded(asdict(card)))


def write_page(page: Path, text: str) -> None:
    """Write the block `cards` of the page, which is made when it is not there."""
    found = page.read_text(encoding="utf-8") if page.is_file() else f"{HEADING}\n"
    if "<!-- cards -->" not in found:
        write_text(page, f"{found.rstrip()}\n\n{block('cards', text)}\n")
    replace_block(page, "cards", text)


def _cards_of(model_name: str, names: Sequence[str], texts: Sequence[str]) -> list[Card]:
    """Measure the dictionaries of one model."""
    to_stderr(f"model {model_name}: {', '.join(names)}")
    model = load_model(model_name)
    saes = [load_sae(name) for name in names]
    plan, digest = plan_documents(texts), hashlib.sha256()

    def documents() -> Iterator[NDArray[np.int64]]:
        for document in plan.read():
            digest.update(bytes.fromhex(document.sha256))
            yield model.encode(document.data).token_ids

    found = evaluate_many(model, saes, documents())
    return [
        Card(
            name=sae.name,
            model=model_name,
            training=_training_of(sae.name),
            scores=scores,
            sae_hash=sae.weights_hash,
            model_hash=model.weights_hash,
            text_sha256=digest.hexdigest(),
        )
        for sae, scores in zip(saes, found, strict=True)
    ]


def _training_of(name: str) -> dict[str, Any]:
    path = embedded.sae_folder(name) / TRAINING_FILE
    return dict(read_json(path)) if path.is_file() else {}


def _rounded(value: Any) -> Any:
    """Round the numbers of nested dicts, all but those of a training."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: one if key == "training" else _rounded(one) for key, one in value.items()}
    return value


if __name__ == "__main__":
    main()
