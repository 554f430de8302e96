"""The README's tables, remade: the demo's first automata, and how good model and dictionary are.

    python -m figures.numbers circuits-demo

`circuits-demo` is the folder of a finished demo. The dictionary is measured here; the model's scores and the HTML
truth are those that `figures.model_scores` and `figures.truth` left in docs/.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl

from figures.families import families_table
from figures.tables import markdown, replace_block

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SAMPLE = ROOT / "sae_core" / "demo" / "sample.parquet"
N_AUTOMATA = 6
READERS = (
    *("features", "neurons", "neurons at equal L0", "neuron probe, 10", "neuron probe, all"),
    *("shuffled model, neuron probe, all", "token pair", "token", "majority"),
)


def main() -> None:
    """Write the three blocks of the README."""
    demo = Path(sys.argv[1])
    index = pl.read_parquet(demo / "run" / "automata" / "index.parquet").sort("rank")
    replace_block(README, "automata", automata_table(index))
    tables = (model_table(), quality_table(), truth_table())
    families = json.loads((ROOT / "docs" / "families.json").read_text("utf-8"))
    replace_block(README, "families", families_table(families))
    replace_block(README, "numbers", "\n\n".join(tables))


def automata_table(index: pl.DataFrame) -> str:
    """Give the demo's first automata as Markdown."""
    rows = [
        (
            f"`{row['title']}`",
            row["kind"],
            str(row["n_states"]),
            f"{row['retention']:.2f}",
            f"{row['held_out_retention']:.2f}",
            f"{row['held_out_bits_saved']:.2f}",
        )
        for row in index.head(N_AUTOMATA).to_dicts()
    ]
    head = ("automaton", "kind", "states", "retention", "held out", "bits saved, held out")
    return markdown(head, rows, n_words=2)


def quality_table() -> str:
    """Measure A/0 on the sample, which is held-out text of the packages it was trained on."""
    (found,) = run_json("evaluate", str(SAMPLE), "--sae", "A/0")
    rows = [
        ("tokens", f"{found['n_tokens']:,}"),
        ("L0, active features a token", f"{found['l0']:.1f}"),
        ("fraction of variance unexplained", f"{found['fvu']:.3f}"),
        ("loss, untouched model", f"{found['loss_clean']:.3f} nats"),
        ("loss, MLP replaced by A/0", f"{found['loss_sae']:.3f} nats"),
        ("loss, MLP set to zero", f"{found['loss_zero']:.3f} nats"),
        ("loss recovered", f"{found['loss_recovered']:.3f}"),
        ("features that never fired", f"{found['n_dead']} of 512"),
    ]
    title = "The dictionary A/0 on the demo's sample (held-out text of the training packages):"
    return f"{title}\n\n{markdown(('measure', 'value'), rows, n_words=1)}"


def model_table() -> str:
    """Give the model's loss on held-out text beside its baselines', from docs/model-scores.json."""
    found = json.loads((ROOT / "docs" / "model-scores.json").read_text("utf-8"))["all"]
    rows = [
        (who, f"{found[f'{who}_nats']:.3f}", f"{found[f'{who}_bits']:.3f}")
        for who in ("model", "trigram", "bigram", "unigram")
    ]
    rows.append(("`xz -9e`", "", f"{found['xz_bits']:.3f}"))
    title = (
        f"The model on {found['n_tokens']:,} held-out tokens of the packages it was trained on, beside "
        "Kneser-Ney n-grams of the same training tokens and xz on the same bytes "
        "([by family](docs/model.md)):"
    )
    return f"{title}\n\n{markdown(('who', 'nats a token', 'bits a byte'), rows, n_words=1)}"


def truth_table() -> str:
    """Give who knows the state of html5lib's tokenizer, from docs/truth.json and docs/truth-read-once.json."""
    found, once = (
        json.loads((ROOT / "docs" / name).read_text("utf-8"))
        for name in ("truth.json", "truth-read-once.json")
    )
    by_name, once_by_name = (
        {row["what"]: row for row in each["readers"]} for each in (found, once)
    )
    rows = [
        (
            what,
            *(
                f"{row['accuracy']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"{row['macro_f1']:.3f}",
            ),
            *(f"{last['accuracy']:.3f}", f"{last['macro_f1']:.3f}"),
        )
        for what in READERS
        for row, last in [(by_name[what], once_by_name[what])]
    ]
    title = (
        "Who knows the state of an HTML parser, token by token, on packages that model and dictionary never saw, each "
        "package scored by what was fitted on other packages: "
        f"{by_name['features']['n_tokens']:,} tokens of {len(found['scored'])} packages that were looked at during "
        f"development (intervals over packages; [all readers, packages and mistakes](docs/truth.md)), and "
        f"{once_by_name['features']['n_tokens']:,} tokens of {len(once['scored'])} packages that were "
        "[read once](docs/truth-read-once.md), at the end:"
    )
    head = (
        "reader",
        "accuracy",
        "95 % interval",
        "macro-F1",
        "accuracy, read once",
        "macro-F1, read once",
    )
    return f"{title}\n\n{markdown(head, rows, n_words=1)}"


def call(*arguments: str) -> str:
    """Run a command of the program and give what it printed."""
    program = [sys.executable, "-c", "import cli; cli.main()", *arguments]
    done = subprocess.run(program, check=True, capture_output=True, text=True)  # noqa: S603 - our own
    return done.stdout


def run_json(*arguments: str) -> list[dict[str, Any]]:
    """Run a listing of the program and give its rows."""
    found = json.loads(call(*arguments, "--json"))
    return found if isinstance(found, list) else [found]


if __name__ == "__main__":
    main()
