"""Who knows what an HTML parser knows: docs/truth.md and docs/truth.json, remade.

    python -m figures.truth PAGES --fit sae_core/demo/sample.parquet

PAGES holds one folder of pages a package, none of which model and dictionary were trained on. What
is given by --fit teaches the readers, and is not scored: another such folder, or the demo's sample,
which is held-out text of the packages that model and dictionary were trained on.

1. All pages are read by the model with its dictionary, and with its raw neurons.
2. The model is shuffled: the entries of each of its weight tensors change places. Its sizes and the
   spread of its weights stay, what it learned is gone. Its neurons read the same pages.
3. Each package of PAGES is predicted from all other packages.
4. Three blocks of docs/truth.md are replaced: the readers, the packages, the mistakes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from circuits.labels import LABELERS
from circuits.run import open_run
from circuits.truth_rows import FEATURES, accuracy_of, f1_of, rows_of
from circuits.truth_texts import tables_of, truth_text
from figures.tables import block, markdown, replace_block
from sae_core.console import say
from sae_core.corpus import plan_documents
from sae_core.files import write_parquet, write_text
from sae_core.gather import gather
from sae_core.language_model import OneLayerModel, load_model
from sae_core.regather import ALL, gather_neurons
from sae_core.sae import load_sae
from sae_core.transformer import TOKENIZER_FILE, Transformer, save_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from circuits.run import Run
    from circuits.truth_rows import TruthRow, TruthTables
    from circuits.truth_texts import TruthText

KIND = "html"
PROBE = "neuron probe, all"
SHUFFLE_SEED = 0
N_CONFUSIONS = 8
DOCS = Path(__file__).parents[1] / "docs"
PACKAGE_READERS = (
    *(FEATURES, "neurons", "neurons at equal L0", PROBE),
    *("shuffled model, neuron probe, all", "token", "token pair", "majority"),
)
BLOCKS = ("readers", "packages", "mistakes")


@dataclass(frozen=True)
class Measured:
    """What is known of every reader of the pages."""

    rows: list[TruthRow]
    """One a reader."""

    tables: dict[str, NDArray[np.int64]]
    """Reader -> (n_packages, n_labels, n_labels) tokens; rows are true labels, columns told ones."""

    scored: list[str]
    """The packages scored, in the order of the tables; one entry where there is one package."""

    packages: list[str]
    """All packages."""

    labels: tuple[str, ...]
    """The parser's labels, by number."""

    made_from: dict[str, Any]
    """Hashes of model and dictionary, and the seed of the shuffle."""


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write docs/truth.md and docs/truth.json."""
    parser = argparse.ArgumentParser(prog="python -m figures.truth", description=__doc__)
    parser.add_argument("pages", type=Path, help="Pages that are scored, and teach about others.")
    parser.add_argument(
        "--fit", type=Path, action="append", default=[], help="Pages that only teach."
    )
    parser.add_argument("--name", default="truth", help="Files to write: docs/NAME.md and .json.")
    parser.add_argument("--model", default=None, help="Model: a folder; the embedded one if none.")
    parser.add_argument("--sae", default="A/0", help="Dictionary: an embedded one, or a folder.")
    given = parser.parse_args(words)
    found = measure(given.pages, given.fit, model=given.model, sae=given.sae)
    write(found, DOCS, given.name)


def measure(
    pages: Path, fit: Sequence[Path] = (), *, model: str | None = None, sae: str = "A/0"
) -> Measured:
    """Read pages with the model, its neurons and a shuffled model, and score every reader.

    Args:
        pages: holds a folder of pages a package; they are scored, each by what all others teach.
        fit: the same, or a table like the demo's sample; they only teach.
        model: a folder, or None for the embedded model.
        sae: the dictionary to score.

    Returns:
        What is known of every reader.

    Raises:
        ValueError: a package is given twice.
        TextError: a folder holds no text.
    """
    only = _packages_in(pages) if fit else []
    named = [name for place in (pages, *fit) for name in _packages_in(place)]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ValueError(f"package {twice[0]} is given twice; it would teach and be scored")
    language_model = load_model(model)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        table = _write_pages(place / "pages.parquet", [pages, *fit])
        say("Reading the pages with the dictionary ...")
        gather([table], out=place / "run", model=language_model, sae=sae, held_out=ALL)
        run = open_run(place / "run")
        text = truth_text(run, KIND, held_out=None, only=only)
        say("Reading them with the neurons ...")
        neurons = open_run(gather_neurons(run.path, text.documents, place / "neurons"))
        say("Reading them with the neurons of the shuffled model ...")
        shuffled = _shuffled_neurons(language_model, text.documents, place)
        say("Scoring ...")
        found = tables_of(run, text, neurons=neurons, shuffled=shuffled)
        return _measured(run, text, found)


def write(found: Measured, docs: Path, name: str = "truth") -> None:
    """Write docs/NAME.json and the three blocks of docs/NAME.md.

    Args:
        found: what was measured.
        docs: the folder; a page without the blocks is refused, one that is missing is begun.
        name: of page and file.
    """
    page = docs / f"{name}.md"
    if not page.is_file():
        write_text(page, "\n\n".join(["# Truth", *(block(one, "") for one in BLOCKS)]) + "\n")
    for one, text in zip(
        BLOCKS, (readers_text(found), packages_text(found), mistakes_text(found)), strict=True
    ):
        replace_block(page, one, text)
    write_text(page.with_suffix(".json"), json.dumps(as_json(found), indent=1) + "\n")
    say(f"{page} and {name}.json are written.")


def readers_text(found: Measured) -> str:
    """Give the table of the readers, with the sentence above it."""
    n_others = len(found.packages) - len(found.scored)
    others = f" and on {n_others} further packages" if n_others else ""
    title = (
        f"Who knows the state of an HTML parser, token by token: {found.rows[0].n_tokens:,} tokens "
        f"of {len(found.scored)} packages that model and dictionary never saw, each package scored "
        f"by what was fitted on the others{others}. *Features ahead by* is the accuracy of the "
        "features less the reader's; intervals are 95 % ones over packages, in pairs:"
    )
    head = (
        "reader",
        "accuracy",
        "interval",
        "macro-F1",
        "interval",
        "features ahead by",
        "interval",
    )
    return f"{title}\n\n{markdown(head, [_cells(row) for row in found.rows], n_words=1)}"


def packages_text(found: Measured) -> str:
    """Give the table of accuracies by package."""
    readers = [what for what in PACKAGE_READERS if what in found.tables]
    rows = []
    for at, package in enumerate(found.scored):
        n_tokens = int(found.tables[FEATURES][at].sum())
        accuracies = [f"{float(accuracy_of(found.tables[what][at])):.3f}" for what in readers]
        rows.append((package, f"{n_tokens:,}", *accuracies))
    title = "Accuracy by package:"
    return f"{title}\n\n{markdown(('package', 'tokens', *readers), rows, n_words=1)}"


def mistakes_text(found: Measured) -> str:
    """Give what the features mistake for what, beside the probe, and each label's F1."""
    features, probe = (found.tables[what].sum(axis=0) for what in (FEATURES, PROBE))
    pairs = [
        (found.labels[a], found.labels[b], f"{features[a, b]:,}", f"{probe[a, b]:,}")
        for a, b in confusions(features)[:N_CONFUSIONS]
    ]
    wrong = [table.sum() - np.trace(table) for table in (features, probe)]
    mistakes = markdown(
        ("the parser says", "told", "by the features", f"by the {PROBE}"),
        [*pairs, ("any", "another", *(f"{n:,}" for n in wrong))],
        n_words=2,
    )
    f1s, n_true = zip(f1_of(features), f1_of(probe), strict=True), features.sum(axis=1)
    by_label = markdown(
        ("label", "tokens", "F1 of the features", f"F1 of the {PROBE}"),
        [
            (name, f"{n:,}", *(f"{f1:.3f}" for f1 in both))
            for name, n, both in zip(found.labels, n_true, f1s, strict=True)
            if n
        ],
        n_words=1,
    )
    title = f"The {len(pairs)} mistakes that the features make most often, in tokens:"
    return f"{title}\n\n{mistakes}\n\nEach label:\n\n{by_label}"


def confusions(table: NDArray[np.int64]) -> list[tuple[int, int]]:
    """List the (true label, told label) that differ and occur, the most frequent first.

    Example:
        >>> confusions(np.array([[9, 1, 0], [5, 9, 1], [0, 0, 9]]))
        [(1, 0), (0, 1), (1, 2)]
    """
    wrong = table - np.diag(np.diag(table))
    order = np.argsort(-wrong, axis=None, kind="stable")
    pairs = np.stack(np.unravel_index(order, wrong.shape), axis=1)
    return [(int(a), int(b)) for a, b in pairs if wrong[a, b]]


def as_json(found: Measured) -> dict[str, Any]:
    """Give all that was measured as values of JSON."""
    return {
        "made_from": found.made_from,
        "packages": found.packages,
        "scored": found.scored,
        "labels": list(found.labels),
        "readers": [vars(row) for row in found.rows],
        "accuracy_by_package": {
            what: dict(zip(found.scored, accuracy_of(tables).tolist(), strict=True))
            for what, tables in found.tables.items()
        },
        "confusions": {what: found.tables[what].tolist() for what in (FEATURES, PROBE)},
    }


def shuffled_copy(model: Transformer, *, seed: int) -> Transformer:
    """Give a model whose weight tensors hold the same entries in random places.

    Args:
        model: is left as it is.
        seed: of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, weight in model.state_dict().items():
        order = torch.randperm(weight.numel(), generator=generator)
        weights[name] = weight.cpu().flatten()[order].reshape(weight.shape)
    shuffled = Transformer(model.config, seed=None)
    shuffled.load_state_dict(weights)
    return shuffled.eval()


def _packages_in(place: Path) -> list[str]:
    if place.is_file():
        return sorted(_html_of(place)["package"].unique().to_list())
    return sorted(path.name for path in place.glob("[!.]*") if path.is_dir())


def _html_of(table: Path) -> pl.DataFrame:
    """Give the pages of a table like the demo's sample."""
    return pl.read_parquet(table).filter(pl.col("family") == KIND)


def _write_pages(out: Path, places: Sequence[Path]) -> Path:
    """Write one table of all pages, each called PACKAGE/FILE."""
    pages: list[tuple[str, bytes]] = []
    for place in places:
        if place.is_file():
            columns = _html_of(place).select("source", "text")
            pages += [(name.split("/", 1)[1], data) for name, data in columns.iter_rows()]
            continue
        folders = [place / name for name in _packages_in(place)]
        pages += [
            (Path(page.source).relative_to(place).as_posix(), page.data)
            for page in plan_documents(folders).read()
        ]
    write_parquet(
        out, pl.DataFrame(pages, schema={"source": pl.String, "text": pl.Binary}, orient="row")
    )
    return out


def _shuffled_neurons(model: OneLayerModel, documents: Mapping[int, bytes], place: Path) -> Run:
    """Write a run of the shuffled model's neurons; its documents are called by their ids."""
    folder = place / "shuffled-model"
    tokenizer = model.folder / TOKENIZER_FILE
    save_model(shuffled_copy(model.module, seed=SHUFFLE_SEED), folder, tokenizer=tokenizer)
    shuffled = load_model(folder)
    rows = {"source": [str(doc_id) for doc_id in documents], "text": list(documents.values())}
    table = place / "documents.parquet"
    write_parquet(table, pl.DataFrame(rows, schema={"source": pl.String, "text": pl.Binary}))
    neurons = load_sae("neurons", model=shuffled)
    gather([table], out=place / "shuffled", model=shuffled, sae=neurons, held_out=ALL)
    return open_run(place / "shuffled")


def _measured(run: Run, text: TruthText, found: TruthTables) -> Measured:
    packages = text.packages
    names = list(text.only) or packages
    tables = found.tables
    if found.are_packages:
        names = [packages[unit] for unit in found.units]
    else:
        tables = {what: table.sum(axis=0, keepdims=True) for what, table in tables.items()}
        names = [" and ".join(names)]
    settings = run.manifest.settings
    made_from = {name: settings[name] for name in ("model", "model_hash", "sae", "sae_hash")}
    made_from |= {"shuffle_seed": SHUFFLE_SEED, "kind": KIND}
    return Measured(rows_of(found), tables, names, packages, LABELERS[KIND].names, made_from)


def _cells(row: TruthRow) -> tuple[str, ...]:
    def interval(low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"

    return (
        row.what,
        f"{row.accuracy:.3f}",
        interval(row.low, row.high),
        f"{row.macro_f1:.3f}",
        interval(row.macro_f1_low, row.macro_f1_high),
        "" if row.difference is None else f"{row.difference:+.3f}",
        interval(row.difference_low, row.difference_high, "+"),
    )


if __name__ == "__main__":
    main()
