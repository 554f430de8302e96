"""How good a run's automata are: docs/automata-scores.md, .json and the pictures, remade.

    python -m figures.automata circuits-demo/run cache/development

The run holds documents that none of its automata was made from. PAGES holds one folder of HTML
pages a package, none of which model, dictionary and automata have seen; what --fit gives teaches
what states stand for, beside the run's own training text, and is not scored.

1. Next tokens inside each automaton's spans, beside machines with as many states
   (`figures.automata_bits`).
2. States of parsers, told by states of automata: UTF-8 and Python on the run's held-out text, HTML
   on PAGES (`figures.automata_kinds`).
3. Blocks of the page are replaced; every number stands in the JSON file.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from circuits.labels import LABELERS
from circuits.run import open_run
from figures.automata_bits import bits_rows
from figures.automata_kinds import kind_scores
from figures.automata_page import bits_text, parser_text, summary_text, utf8_text
from figures.automata_pictures import draw_confusion
from figures.automata_texts import read_pages, read_run
from figures.tables import block, replace_block
from sae_core.console import say
from sae_core.files import write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from figures.automata_bits import BitsRow
    from figures.automata_kinds import KindScores
    from figures.automata_truth import Inside

DOCS = Path(__file__).parents[1] / "docs"
NAME = "automata-scores"
BLOCKS = ("summary", "next-token", "utf8", "html", "python")
DRAWN_STATES = 6  # beside all states
DIGITS = 6


@dataclass(frozen=True)
class Measured:
    """All scores of a run's automata."""

    made_from: dict[str, Any]
    """Hashes of run, model and dictionary."""

    next_token: list[BitsRow]
    utf8: KindScores | None
    html: KindScores | None
    python: KindScores | None


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write page, numbers and pictures."""
    parser = argparse.ArgumentParser(prog="python -m figures.automata", description=__doc__)
    parser.add_argument("run", type=Path, help="Run with automata, activations and its model.")
    parser.add_argument("pages", type=Path, help="HTML that is scored: a folder a package.")
    parser.add_argument(
        "--fit", type=Path, action="append", default=[], help="HTML that only teaches."
    )
    parser.add_argument("--name", default=NAME, help="Files to write: docs/NAME.md and others.")
    parser.add_argument("--docs", type=Path, default=DOCS, help="Folder to write to.")
    given = parser.parse_args(words)
    found = measure(given.run, given.pages, given.fit)
    write(found, given.docs, given.name)


def measure(run_path: Path, pages: Path, fit: Sequence[Path] = ()) -> Measured:
    """Score all automata of a run.

    Args:
        run_path: a run with automata, kept activations and its model.
        pages: HTML to score, a folder a package.
        fit: HTML that only teaches, the same.

    Raises:
        ModelError, SaeError, StoreError: the run cannot be read again.
        TextError: a folder holds no text.
        ValueError: a package both teaches and is scored.
    """
    run = open_run(run_path)
    automata = run.automata
    say(f"Reading {run_path} again, with neurons ...")
    training, held_out = read_run(run)
    next_token = list(_told(bits_rows(automata, training, held_out), len(automata)))
    say("UTF-8 and Python ...")
    utf8, python = (
        kind_scores(run, automata, [training], held_out, kind) for kind in ("utf8", "python")
    )
    with TemporaryDirectory() as folder:
        say(f"Reading {pages} ...")
        taught = [read_pages(run, one, Path(folder) / f"fit-{at}") for at, one in enumerate(fit)]
        scored = read_pages(run, pages, Path(folder) / "pages")
        say("HTML ...")
        html = kind_scores(run, automata, [training, *taught], scored, "html")
    settings = run.manifest.settings
    named = {name: settings[name] for name in ("model", "model_hash", "sae", "sae_hash")}
    return Measured({"run": run.hash, **named}, next_token, utf8, html, python)


def write(found: Measured, docs: Path, name: str = NAME) -> None:
    """Write docs/NAME.md, docs/NAME.json and docs/NAME-*.svg.

    Args:
        found: what was measured.
        docs: the folder; a page without the blocks is refused, one that is missing is begun.
        name: of page, numbers and pictures.
    """
    page = docs / f"{name}.md"
    if not page.is_file():
        write_text(
            page, "\n\n".join(["# Scores of automata", *(block(one, "") for one in BLOCKS)]) + "\n"
        )
    texts = (
        summary_text(found.next_token, found.utf8, found.html),
        bits_text(found.next_token),
        "\n\n".join([utf8_text(found.utf8), *_pictures(_drawn_utf8(found.utf8), docs, name)]),
        "\n\n".join(
            [
                parser_text(found.html, "tags covered"),
                *_pictures(_drawn(found.html), docs, name),
            ]
        ),
        parser_text(found.python, "tokens but spaces covered"),
    )
    for one, text in zip(BLOCKS, texts, strict=True):
        replace_block(page, one, text)
    write_json(page.with_suffix(".json"), as_json(found))
    say(f"{page}, {name}.json and the pictures are written.")


def as_json(found: Measured) -> dict[str, Any]:
    """Give all that was measured as values of JSON."""
    kinds = {"utf8": found.utf8, "html": found.html, "python": found.python}
    return {
        "made_from": found.made_from,
        "next_token": [_plain(asdict(row)) for row in found.next_token],
        **{
            kind: None if one is None else _plain(asdict(one)) | {"labels": LABELERS[kind].names}
            for kind, one in kinds.items()
        },
    }


def _told(rows: Iterable[BitsRow], n_automata: int) -> Iterable[BitsRow]:
    for at, row in enumerate(rows, start=1):
        say(f"Next tokens, {at} of {n_automata}: {row.name}")
        yield row


def _drawn(found: KindScores | None) -> list[tuple[str, str, Inside]]:
    """Choose what is drawn of HTML: at all states, and at few."""
    if found is None:
        return []
    by_features = [one for one in found.detail if one.by == "features" and one.rows]
    few = [one for one in by_features[1:] if one.n_states == DRAWN_STATES]
    whole = [("html", "html", one) for one in by_features[:1]]
    return whole + [(f"html-{DRAWN_STATES}", "html", one) for one in few]


def _drawn_utf8(found: KindScores | None) -> list[tuple[str, str, Inside]]:
    """Choose what is drawn of UTF-8: the automaton with most tokens."""
    scored = [one for one in (found.found if found else []) if one.rows]
    if not scored:
        return []
    return [("utf8", "utf8", max(scored, key=lambda one: one.confusion.sum()))]


def _pictures(drawn: Sequence[tuple[str, str, Inside]], docs: Path, name: str) -> list[str]:
    """Draw confusion matrices, and give the lines that show them."""
    lines = []
    for ending, kind, one in drawn:
        path = docs / f"{name}-{ending}.svg"
        title = f"{one.name}, {one.n_states} states: percent of each row"
        draw_confusion(one.confusion, LABELERS[kind].names, path, title=title, told_by="the state")
        lines.append(f"![What the parser says over what the state tells, {title}]({path.name})")
    return lines


def _plain(value: Any) -> Any:
    """Give a value without arrays, numbers rounded."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return round(value, DIGITS) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
