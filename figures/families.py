"""The paper's feature families, found and not named: docs/families.md and docs/families.json, remade.

    python -m figures.families documents.parquet --sae A/0 [--sae A/1]

`documents.parquet` is what `python -m sae_core.demo.recipe extract` leaves in its cache, or a table like the demo's
sample.

1. Held-out documents are read by the model, its dictionaries and its neurons (`figures.family_reading`).
2. Their tokens are told apart by family (`figures.family_masks`).
3. For each family the best single feature, the best single neuron and the best set of tokens are chosen on one half of
   the documents and scored on the other (`figures.family_scores`).
4. The blocks of docs/families.md are replaced. `families_table` gives a short table for the README.

Source: Bricken et al. 2023, "Detailed Investigations": they know a family, and look for its feature.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.family_masks import DOCUMENT, KINDS, PATTERN, PROXY, label_tokens
from figures.family_proxies import LEAST_TOKENS
from figures.family_reading import (
    MOST_BYTES,
    NEURONS,
    SparseUnits,
    read_documents,
    read_units,
)
from figures.family_scores import MIN_POSITIVES, TOKENS, FamilyRow, family_rows
from figures.tables import block, markdown, replace_block
from sae_core.console import say
from sae_core.files import write_text
from sae_core.language_model import load_model
from sae_core.sae import embedded_saes, load_sae

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from figures.family_reading import Reading
    from sae_core.language_model import OneLayerModel
    from sae_core.sae import SparseAutoencoder

    Row = dict[str, Any]

DOCS = Path(__file__).parents[1] / "docs"
NAME = "families"
# Bytes of a family: about 2 million tokens in all, minutes on two cores. HTML has by far the most held-out text and is
# cut to a fifth; what is scarce (chat logs, LaTeX, Khmer) is below the cap and read whole.
CAP_BYTES = {"html": 1_500_000}
OTHER_BYTES = 200_000
GOOD_F1 = 0.8
BLOCKS = ("counts", *KINDS, "too few", "rules", "measured")
TITLES = {
    PROXY: "By the paper's proxies",
    PATTERN: "By a pattern or a parser",
    DOCUMENT: "By the document's family in the corpus",
}
SHORT = (
    *((name, PROXY) for name in ("Arabic", "Hebrew", "Tamil", "Chinese", "DNA")),
    *((name, PATTERN) for name in ("base64 strings", "ALL_CAPS snake case")),
    *((name, PATTERN) for name in ("HTML tag names", "HTML attribute names", "HTTP header lines")),
    *((name, DOCUMENT) for name in ("irc", "licence", "tables")),
)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write docs/families.md and docs/families.json."""
    parser = argparse.ArgumentParser(prog="python -m figures.families", description=__doc__)
    parser.add_argument("documents", type=Path, help="Parquet table of documents.")
    parser.add_argument(
        "--sae", action="append", default=[], help="Dictionary: an embedded one, or a folder."
    )
    parser.add_argument("--model", default=None, help="Model: a folder; the embedded one if none.")
    parser.add_argument("--docs", type=Path, default=DOCS, help="Folder of families.md.")
    given = parser.parse_args(words)
    found = measure(given.documents, given.sae or ["A/0"], model=given.model)
    write(found, given.docs)


def measure(
    table: Path,
    saes: Sequence[str],
    *,
    model: str | None = None,
    cap_bytes: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Find the best unit of every dictionary for every family.

    Args:
        table: of documents, see `figures.family_reading.read_documents`.
        saes: dictionaries, embedded ones or folders of different names.
        model: a folder, or None for the embedded model.
        cap_bytes: family -> bytes read of it; None takes `CAP_BYTES`.

    Returns:
        What stands in families.json: a row a family, the readers' names, and what was scored on what.

    Raises:
        TextError: no document is held out.
        SaeError, ModelError: a dictionary does not fit the model.
        ValueError: two dictionaries have one name.
    """
    reader = load_model(model)
    dictionaries = [_named(name) for name in saes]
    names = [sae.name for sae in dictionaries]
    if len({*names, NEURONS, TOKENS}) < len(names) + 2:
        raise ValueError(f"dictionaries of different names were expected, got {', '.join(names)}")
    documents = read_documents(table, cap_bytes or CAP_BYTES, OTHER_BYTES)
    say(f"Reading {len(documents):,} documents ...")
    reading = read_units(reader, dictionaries, documents)
    say("Telling the families apart ...")
    labels = label_tokens(reading.text, reader.vocabulary)
    say(f"Scoring {len(labels.families)} families ...")
    rows = [_row(row) for row in family_rows(reading, labels)]
    made_from = _made_from(reader, dictionaries, reading, documents)
    return {"made_from": made_from, "readers": [*names, NEURONS, TOKENS], "families": rows}


def write(found: dict[str, Any], docs: Path) -> None:
    """Write docs/families.json and the blocks of docs/families.md.

    Args:
        found: what was measured.
        docs: the folder; a page without the blocks is refused, one that is missing is begun.
    """
    page = docs / f"{NAME}.md"
    if not page.is_file():
        write_text(page, "\n\n".join(["# Families", *(block(one, "") for one in BLOCKS)]) + "\n")
    texts = {
        "counts": counts_text(found),
        **{kind: kind_text(found, kind) for kind in KINDS},
        "too few": too_few_text(found),
        "rules": rules_text(found),
        "measured": measured_text(found),
    }
    for name in BLOCKS:
        replace_block(page, name, texts[name])
    write_text(page.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    say(f"{page} and {NAME}.json are written.")


def families_table(found: dict[str, Any]) -> str:
    """Give a short table for the README: some families, F1 of every reader, and the counts.

    Args:
        found: what stands in families.json.

    Returns:
        Markdown: a sentence, the table, the counts. Families that the text does not hold are left out.
    """
    by_name = {(row["family"], row["kind"]): row for row in found["families"] if row["scores"]}
    chosen = [by_name[key] for key in SHORT if key in by_name]
    rows = [
        (
            row["family"],
            row["kind"],
            f"{row['n_scored']:,}",
            *(f"{row['scores'][reader]['f1']:.2f}" for reader in found["readers"]),
        )
        for row in chosen
    ]
    heads = [f"feature of {name}" for name in _dictionaries(found)]
    head = ("family", "told by", "tokens", *heads, "neuron", "set of tokens")
    title = (
        "F1 of the single feature, the single neuron and the set of tokens that tell a family's tokens best, chosen on "
        "one half of held-out documents and scored on the other ([all families, with AUC](docs/families.md)):"
    )
    return f"{title}\n\n{markdown(head, rows, n_words=2)}\n\n{counts_text(found)}"


def counts_text(found: dict[str, Any]) -> str:
    """Say in how many families one unit of each reader is good, and how often features are ahead."""
    scored = [row for row in found["families"] if row["scores"]]
    words = {NEURONS: "A single neuron", TOKENS: "A set of tokens"}
    lines = []
    for reader in found["readers"]:
        who = words.get(reader, f"A single feature of {reader}")
        parts = [
            f"{_n_good(rows, reader)} of {len(rows)} by {kind}"
            for kind in KINDS
            if (rows := [row for row in scored if row["kind"] == kind])
        ]
        line = f"- {who} has an F1 of {GOOD_F1} or more in {_n_good(scored, reader)} of {len(scored)} families"
        lines.append(f"{line} ({', '.join(parts)}){_ahead(scored, reader)}.")
    return "\n".join(lines)


def kind_text(found: dict[str, Any], kind: str) -> str:
    """Give the table of one kind of family: F1, with the unit that has it, and AUC of every reader."""
    readers = found["readers"]
    head = ["family", "documents", "tokens"]
    for name in readers[:-1]:
        head += [{NEURONS: "neuron"}.get(name, name), "F1", "AUC"]
    rows = [
        (
            row["family"],
            f"{row['n_documents']:,}",
            f"{row['n_scored']:,}",
            *_cells(row, readers),
        )
        for row in found["families"]
        if row["kind"] == kind and row["scores"]
    ]
    table = markdown([*head, "tokens, F1", "AUC"], rows, n_words=1)
    return f"{TITLES[kind]}:\n\n{table}"


def too_few_text(found: dict[str, Any]) -> str:
    """Name the families that are not scored."""
    names = [
        f"{row['family']} ({row['kind']}, {row['n_chosen'] + row['n_scored']:,})"
        for row in found["families"]
        if not row["scores"]
    ]
    listed = ", ".join(names) or "none"
    return f"Too few (fewer than {MIN_POSITIVES} tokens in a half), with their tokens: {listed}."


def rules_text(found: dict[str, Any]) -> str:
    """Give the rule by which the tokens of each family are told, where the kind does not say all."""
    rows = [
        (row["family"], row["kind"], row["rule"].replace("|", "\\|"))
        for row in found["families"]
        if row["rule"]
    ]
    return markdown(("family", "kind", "a token belongs if"), rows, n_words=3)


def measured_text(found: dict[str, Any]) -> str:
    """Say what was read, and by what."""
    made = found["made_from"]
    saes = ", ".join(
        f"{name} ({one['d_sae']:,} features, L0 {one['l0']:.1f}, hash `{one['sae_hash'][:16]}`)"
        for name, one in made["saes"].items()
    )
    families = ", ".join(f"{name} {n:,}" for name, n in made["n_tokens_by_family"].items())
    return (
        f"{made['n_tokens']:,} tokens of {made['n_documents']:,} held-out documents ({families}); documents are cut at "
        f"{MOST_BYTES:,} bytes. Model `{made['model_hash'][:16]}`, dictionaries {saes}."
    )


def _named(name: str) -> SparseAutoencoder:
    """Read a dictionary; one in a folder is called as the folder is, wherever that lies."""
    sae = load_sae(name)
    sae.name = name if name in embedded_saes() else Path(name).name
    return sae


def _row(row: FamilyRow) -> Row:
    fields = asdict(row)
    family = fields.pop("family")
    return {"family": family["name"], "kind": family["kind"], "rule": family["rule"], **fields}


def _made_from(
    model: OneLayerModel,
    saes: Sequence[SparseAutoencoder],
    reading: Reading,
    documents: pl.DataFrame,
) -> dict[str, Any]:
    n_tokens = np.diff(reading.text.starts)
    families = documents["family"].to_list()
    by_family = {
        name: int(n_tokens[[one == name for one in families]].sum())
        for name in sorted(set(families))
    }
    firings = {one.name: len(one.rows) for one in reading.units if isinstance(one, SparseUnits)}
    total = int(n_tokens.sum())
    return {
        "model": Path(model.name).name,
        "model_hash": model.weights_hash,
        "tokenizer_hash": model.tokenizer_hash,
        "saes": {sae.name: _sae_fields(sae, firings[sae.name] / total) for sae in saes},
        "documents_hash": sha256("".join(documents["sha256"]).encode()).hexdigest(),
        "n_documents": len(documents),
        "n_tokens": total,
        "n_tokens_by_family": by_family,
        "min_positives": MIN_POSITIVES,
        "least_tokens_of_a_script": LEAST_TOKENS,
    }


def _sae_fields(sae: SparseAutoencoder, l0: float) -> dict[str, Any]:
    return {
        "sae_hash": sae.weights_hash,
        "seed": sae.config.seed,
        "d_sae": sae.config.d_sae,
        "activation": sae.config.activation,
        "k": sae.config.k,
        "l0": round(l0, 4),
    }


def _dictionaries(found: dict[str, Any]) -> list[str]:
    return [name for name in found["readers"] if name not in {NEURONS, TOKENS}]


def _n_good(rows: Sequence[Row], reader: str) -> int:
    return sum(row["scores"][reader]["f1"] >= GOOD_F1 for row in rows)


def _ahead(rows: Sequence[Row], reader: str) -> str:
    """Say how often a dictionary's feature is ahead of the neuron; nothing for other readers."""
    if reader in {NEURONS, TOKENS}:
        return ""
    f1s = [(row["scores"][reader]["f1"], row["scores"][NEURONS]["f1"]) for row in rows]
    return f"; its F1 is above the best neuron's in {sum(ours > theirs for ours, theirs in f1s)}"


def _cells(row: Row, readers: Sequence[str]) -> list[str]:
    cells = []
    for reader in readers:
        score = row["scores"][reader]
        cells += [] if reader == TOKENS else [str(score["unit"])]
        cells += [f"{score['f1']:.3f}", f"{score['auc']:.3f}"]
    return cells


if __name__ == "__main__":
    main()
