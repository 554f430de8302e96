"""A small run in which two features take turns: one pair is found in it, with tokens of your choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import shell

import sae_core

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

N_ROUNDS = 60
N_WORDS = 7
TURN, REST = [[0], [1], [0], [1], [0], [1]], 20
ROUND = len(TURN) + REST


def write_paired(
    path: Path,
    tokens: Sequence[bytes] = (b"<", b"a", b">", b"="),
    *,
    n_documents: int = 4,
    held_out: Sequence[bool] = (),
) -> Path:
    """Write the run; every document has N_ROUNDS rounds, each a pair's turns and then plain words.

    Args:
        path: the new run directory.
        tokens: what the pair fires on, in turn.
        n_documents: number of documents.
        held_out: of each document; nothing is held out where it is empty.
    """
    n_rows = ROUND * N_ROUNDS
    at = np.arange(n_rows * n_documents)
    fires = at % ROUND < len(TURN)
    rank = np.cumsum(fires) - 1
    ids = np.where(fires, rank % len(tokens), len(tokens) + at % N_WORDS)
    held = list(held_out) or [False] * n_documents
    documents = {
        "doc_id": range(n_documents),
        "source": [f"texts/{one}.txt" for one in range(n_documents)],
        "held_out": held,
    }
    return sae_core.write_run(
        path,
        documents=pl.DataFrame(documents),
        tokens={"doc_id": at // n_rows, "token_id": ids},
        indptr=np.append(0, np.cumsum(fires)),
        features=(at[fires] % ROUND) % 2,
        acts=np.ones(int(fires.sum())),
        promotions=np.where(at[fires] % ROUND < len(TURN) - 1, 3.0, 0.0),
        vocabulary=[*tokens, *(b" word%d" % one for one in range(N_WORDS))],
        d_sae=3,
    )


def found_in(path: Path) -> str:
    """Build the graph and the automata of a run; give the best one's name."""
    for words in (("graph", path), ("automata", path)):
        done = shell.invoke(*words)
        assert done.exit_code == 0, done.stderr
    name: str = pl.read_parquet(path / "automata" / "index.parquet")["name"][0]
    return name


def file_of(run: Path) -> Path:
    """Give the JSON of the run's first automaton."""
    return next((run / "automata").glob("*.json"))


def every_command(run: Path, out: Path) -> list[tuple[object, ...]]:
    """Give a call of each command that reads automata."""
    name = file_of(run).stem
    return [
        ("show", run, name),
        ("render", run, "-o", out),
        ("page", run, "-o", out / "page.html"),
        ("trace", run, name, run / "manifest.json", "--by", "tokens"),
        ("truth", run, "--kind", "utf8"),
    ]
