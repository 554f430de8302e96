"""The steps of an analysis as the commands take them: each a function from a run to rows or files.

What needs a model is handed in as a function, so that nothing here brings in torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from circuits.build import build_graph
from circuits.discover import find_automata, index_frame, write_automata
from circuits.graph_memory import counting_bytes, say_or_refuse
from circuits.query import find_motifs
from circuits.render import page, render, zoomed
from circuits.run import open_run
from circuits.trace import trace
from circuits.trace_text import trace_text
from circuits.truth_rows import rows_of
from circuits.truth_texts import tables_of, truth_text
from sae_core.byte_tokenizer import ByteTokenizer
from sae_core.corpus import plan_documents
from sae_core.embedded import TOKENIZER_FILE, embedded_model, tokenizer_path
from sae_core.errors import ModelError, SaeError, StoreError
from sae_core.files import DirectoryLock, read_parquet, write_bytes
from sae_core.schema import TokenTable
from sae_core.store import is_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run
    from circuits.trace import By
    from sae_core.corpus import Document

QUESTIONS = ("sql", "successors", "predecessors", "token", "path", "motif")


def automata_rows(
    run: Path, *, n_stability: int = 0, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Find and write a run's automata.

    Args:
        run: with a graph and kept activations.
        n_stability: as of `find_automata`.
        say: is told what memory is needed, and why there are none.

    Returns:
        The rows of `automata/index.parquet`, best first.

    Raises:
        GraphError: the memory does not suffice; nothing was begun.
    """
    opened = open_run(run)
    say_or_refuse("looking for automata", counting_bytes(run), say)
    with DirectoryLock(run):
        found = find_automata(opened, n_stability=n_stability, progress=say)
        write_automata(run, found)
    if found and not opened.documents["held_out"].any():
        say("No document is held out: held-out scores are not measured (null in JSON).")
    return index_frame(found).to_dicts()


def answer(run: Run, question: Mapping[str, Any], *, limit: int) -> pl.DataFrame:
    """Answer one question to a run's graph.

    Args:
        run: with a graph.
        question: one of `QUESTIONS` that is not None; `strip` besides.
        limit: rows at most.

    Raises:
        ValueError: none or several are asked, or a feature does not exist.
        GraphError: the SQL is wrong.
    """
    asked = [name for name in QUESTIONS if question.get(name) is not None]
    if len(asked) != 1:
        wanted = "SQL, or one of --successors, --predecessors, --token, --path, --motif"
        raise ValueError(f"{len(asked)} questions were asked; expected one: {wanted}")
    name, value, graph = asked[0], question[asked[0]], run.graph
    if name == "sql":
        return graph.sql(value, limit=limit)
    if name == "token":
        return graph.with_token(value, strip=bool(question.get("strip"))).head(limit)
    if name == "motif":
        return find_motifs(graph, value, limit=limit)
    if name == "path":
        paths = graph.paths(*value, limit=limit)
        rows = {"length": [len(path) - 1 for path in paths], "path": [list(p) for p in paths]}
        return pl.DataFrame(rows, schema={"length": pl.Int64, "path": pl.List(pl.Int64)})
    edges = graph.successors(value) if name == "successors" else graph.predecessors(value)
    return edges.head(limit)


def demo_rows(out: Path, *, is_new: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Take a gathered run in `out/run` to its graph, automata, pictures and page.

    Args:
        out: the demo's folder.
        is_new: whether the run has just been written, so that all else must follow.
        say: is told each step.

    Returns:
        One row an automaton, best first: automaton, kind, retention, held_out_retention, file.
    """
    run = out / "run"
    if not is_new and _is_drawn(run, out):
        say(f"{out} is complete.")
    else:
        say("Building the graph ...")
        build_graph(run)
        say("Looking for automata ...")
        automata_rows(run, say=say)
        say("Drawing ...")
        _draw(open_run(run), out)
    return [
        {
            "automaton": one.name,
            "kind": one.kind,
            "retention": one.scores.get("retention"),
            "held_out_retention": one.scores.get("held_out_retention"),
            "file": str(out / "automata" / f"{one.name}.svg"),
        }
        for one in open_run(run).automata
    ]


def refuse_foreign_demo(out: Path) -> None:
    """Refuse a folder that holds files, but no demo of ours.

    Raises:
        StoreError: it does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; choose a folder with -o")
    if (
        out.is_dir()
        and any(path.name != "run" for path in out.iterdir())
        and not is_run(out / "run")
    ):
        raise StoreError(f"{out} holds files that are no demo; choose another folder with -o")


def trace_texts(
    automaton: FeatureAutomaton,
    run: Run,
    texts: Sequence[str],
    *,
    by: By,
    gather_like: Callable[[Path, Sequence[str], Path], Path],
) -> pl.DataFrame:
    """Run an automaton over texts.

    Args:
        automaton: the automaton.
        run: the run it was found in.
        texts: files, folders, globs or "-".
        by: "features" needs the run's model, or a text that is in the run.
        gather_like: writes a run of the texts with the model and dictionary of a run.

    Returns:
        The rows of `circuits.trace.trace`.
    """
    if by == "features" and run.manifest.settings.get("model_hash"):
        with TemporaryDirectory() as folder:
            other = open_run(gather_like(run.path, texts, Path(folder) / "run"))
            return trace(
                automaton,
                other.tokens(),
                token_strs=_token_strs(other),
                sources=dict(other.documents.select("doc_id", "source").iter_rows()),
                mean_act=run.mean_acts,
            )
    tokenizer = _tokenizer_of(run) if by == "tokens" else None
    frames = [
        _trace_document(automaton, run, document, by, tokenizer).with_columns(
            pl.lit(document.source).alias("source"), pl.lit(at, pl.UInt32).alias("doc_id")
        )
        for at, document in enumerate(plan_documents(texts).read())
    ]
    return pl.concat(frames)


def truth_scores(
    run: Run,
    kind: str,
    *,
    n_states: int | None,
    held_out: bool | None,
    only: Sequence[str] = (),
    gather_neurons: Callable[[Path, Mapping[int, bytes], Path], Path],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Score a run's readers against a parser.

    Args:
        run: with kept activations.
        kind: html, python or utf8.
        n_states: draw automata with at most so many states; None leaves them.
        held_out: True for held-out documents, None for all.
        only: the packages to score, each predicted from all others; none scores all.
        gather_neurons: writes a run of the neurons on some documents.
        say: is told what is left out.

    Returns:
        One row a reader: the fields of `circuits.truth_rows.TruthRow`.

    Raises:
        GraphError: there is no such package, or no document that the parser reads.
    """
    if held_out and not run.documents["held_out"].any():
        say("The run holds no document out; all are scored.")
        held_out = None
    text = truth_text(run, kind, held_out=held_out, only=only)
    say(f"{len(text.documents)} documents, {len(text.tokens.doc_ids):,} tokens.")
    if len(text.documents) == 1:
        say("One document: its second half is scored, and no interval can be estimated.")
    neurons = _neurons_of(run, text.documents, gather_neurons, say)
    automata = [zoomed(automaton, n_states) for automaton in run.automata]
    rows = rows_of(tables_of(run, text, automata=automata, neurons=neurons))
    return [vars(row) for row in rows]


def _neurons_of(
    run: Run,
    documents: Mapping[int, bytes],
    gather_neurons: Callable[[Path, Mapping[int, bytes], Path], Path],
    say: Callable[[str], None],
) -> Run | None:
    """Give a run of the neurons on some documents, computed once; None where it cannot be had."""
    if not run.manifest.settings.get("model_hash"):
        say(f"Neurons are left out: {run.path} was made elsewhere and names no model.")
        return None
    chosen = hashlib.sha256(repr(sorted(documents)).encode()).hexdigest()[:12]
    folder = run.path / "truth" / f"neurons-{chosen}"
    try:
        return open_run(gather_neurons(run.path, documents, folder))
    except (ModelError, SaeError, StoreError) as err:
        say(f"Neurons are left out: {err}")
        return None


def _is_drawn(run: Path, out: Path) -> bool:
    opened = open_run(run)
    index = run / "automata" / "index.parquet"
    if not (index.is_file() and (out / "index.html").is_file()):
        return False
    names = read_parquet(index)["name"]
    return all((out / "automata" / f"{name}.svg").is_file() for name in names) and bool(
        opened.manifest.complete
    )


def _draw(run: Run, out: Path) -> None:
    folder = out / "automata"
    for old in folder.glob("*.svg"):
        old.unlink()
    for automaton in run.automata:
        file = render(automaton, "svg", run=run)
        write_bytes(folder / file.name, file.data)
    write_bytes(out / "index.html", page(run, run.automata).encode())


def _token_strs(run: Run) -> list[str]:
    names: list[str] = run.vocabulary.sort("token_id")["token_str"].to_list()
    return names


def _tokenizer_of(run: Run) -> ByteTokenizer | None:
    """Give the tokenizer of a run's model where its file is here and is the same."""
    name = embedded_model(run.model_name)
    file = tokenizer_path(name) if name else Path(run.model_name) / TOKENIZER_FILE
    if not file.is_file():
        return None
    tokenizer = ByteTokenizer(file)
    same = tokenizer.vocabulary == run.vocabulary.sort("token_id")["token_bytes"].to_list()
    return tokenizer if same else None


def _trace_document(
    automaton: FeatureAutomaton,
    run: Run,
    document: Document,
    by: By,
    tokenizer: ByteTokenizer | None,
) -> pl.DataFrame:
    if tokenizer is None:
        return trace_text(automaton, run, document.data, by=by)
    encoding = tokenizer.encode(document.data)
    n = len(encoding.token_ids)
    zero, at = np.zeros(n, np.uint32), np.arange(n, dtype=np.uint32)
    starts = np.concatenate(([0], encoding.byte_end[:-1]))
    none = np.zeros(0, np.float32)
    nothing = (np.zeros(n + 1, np.int64), none.astype(np.uint32), none, none)
    ids = encoding.token_ids.astype(np.uint32)
    table = TokenTable(zero, zero, at, ids, starts, encoding.byte_end, *nothing)
    sources = {0: document.source}
    return trace(automaton, table, token_strs=_token_strs(run), sources=sources, by="tokens")
