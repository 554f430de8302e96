"""The README's tables, remade: the demo's first automata, the dictionary's quality, the HTML truth.

    python -m figures.numbers circuits-demo development

`circuits-demo` is the folder of a finished demo; `development` holds one folder of HTML pages a package, none of
which the model was trained on (`python -m sae_core.demo.recipe pages --role development` writes them).
Every number comes from a command of the program, run here with --json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

README = Path(__file__).parents[1] / "README.md"
SAMPLE = Path(__file__).parents[1] / "sae_core" / "demo" / "sample.parquet"
N_AUTOMATA = 6
HELD_OUT = 0.5  # has no part in the truth of a run read with --all-documents


def main() -> None:
    """Write both blocks of the README."""
    demo, development = (Path(name) for name in sys.argv[1:3])
    index = pl.read_parquet(demo / "run" / "automata" / "index.parquet").sort("rank")
    write_block("automata", automata_table(index))
    write_block("numbers", "\n\n".join([quality_table(), truth_table(development)]))


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


def truth_table(development: Path) -> str:
    """Score who knows the state of html5lib's tokenizer, on packages never trained on."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        call("gather", str(development), "-o", out, "--held-out", str(HELD_OUT))
        found = run_json("truth", out, "--kind", "html", "--all-documents")
    rows = [
        (
            row["what"],
            f"{row['accuracy']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['macro_f1']:.3f}",
        )
        for row in found
    ]
    packages = sum(1 for path in development.iterdir() if path.is_dir())
    title = (
        f"Who knows the state of an HTML parser, token by token: {found[0]['n_tokens']:,} tokens of "
        f"{packages} packages that model and dictionary never saw, each package scored by what was fitted "
        "on the others (intervals over packages):"
    )
    head = ("reader", "accuracy", "95 % interval", "macro-F1")
    return f"{title}\n\n{markdown(head, rows, n_words=1)}"


def markdown(head: tuple[str, ...], rows: list[Any], *, n_words: int) -> str:
    """Give a Markdown table whose first `n_words` columns are words, the others numbers."""
    rule = ["---" if at < n_words else "---:" for at in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_block(name: str, text: str) -> None:
    """Replace what stands between the two comments of a name in the README."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    page = README.read_text(encoding="utf-8")
    README.write_text(pattern.sub(lambda m: m[1] + text + m[2], page), encoding="utf-8")


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
