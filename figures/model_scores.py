"""The model's scores on held-out documents, beside n-grams and xz: a table, a curve, a JSON file.

    python -m figures.model_scores MODEL_DIR train.bin validation.bin

1. `validation.docs.parquet`, beside validation.bin, names each document's place, family and sha256;
   what the model's tokenizer gives back must have that sha256, so a wrong tokenizer is refused.
2. Every token but the document starts is scored once: the first window of a document is led by its
   id 0; later ones move on by half a window and score their second half, so that each token has at
   least n_ctx / 2 tokens of context or all of its document.
3. Kneser-Ney n-grams of train.bin are scored on the same tokens, `xz -9e` on the same bytes.

Writes docs/model-scores.json, docs/model-curve.svg and the blocks of docs/model.md.
"""

from __future__ import annotations

import argparse
import lzma
import math
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch.nn import functional

from figures.tables import markdown
from sae_core.errors import ModelError, TextError
from sae_core.files import sha256_of, write_json, write_text
from sae_core.language_model import load_model
from sae_core.ngrams import train_ngrams
from sae_core.token_file import read_token_ids
from sae_core.training import to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from sae_core.language_model import OneLayerModel
    from sae_core.transformer import Transformer

    Nats = NDArray[np.float64]

DOCS = Path(__file__).parents[1] / "docs"
PAGE, SCORES, CURVE = "model.md", "model-scores.json", "model-curve.svg"
BATCH_WINDOWS = 32
LOSS_SLICE = 256  # tokens whose logits (4 MB) are made at once; they stay in cache
NGRAMS = {"unigram": 1, "bigram": 2, "trigram": 3}
READERS = ("model", "trigram", "bigram", "unigram")
ALL = "all"
BLUE, BROWN = "#1f4e8c", "#8a4b08"


class HeldOut(NamedTuple):
    """Documents that the model was not trained on."""

    ids: NDArray[np.uint16]
    """(n_tokens,) the stream; documents start with id 0."""

    documents: pl.DataFrame
    """A row a document: start (its id 0), end, family, data (its bytes)."""


class Windows(NamedTuple):
    """Where each window of a stream is read and scored."""

    starts: NDArray[np.int64]
    """(n_windows,) place of the first token that is read."""

    scored_from: NDArray[np.int64]
    """(n_windows,) place of the first token whose prediction counts."""

    ends: NDArray[np.int64]
    """(n_windows,) one past the last token of the document."""


def main(arguments: list[str] | None = None) -> None:
    """Score a model and write the three files."""
    parser = argparse.ArgumentParser(prog="python -m figures.model_scores")
    parser.add_argument("model", type=Path, help="folder of the model, with its tokenizer")
    parser.add_argument("train", type=Path, help="uint16 ids that the model was trained on")
    parser.add_argument("validation", type=Path, help="uint16 ids; *.docs.parquet beside it")
    parser.add_argument("--metrics", type=Path, help="curve; MODEL/metrics.jsonl by default")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of model.md")
    parser.add_argument("--limit-tokens", type=int, help="first documents only, for a trial")
    given = parser.parse_args(arguments)
    curve = given.metrics or given.model / "metrics.jsonl"
    if not curve.is_file():
        raise ModelError(f"there is no {curve}; name the run's metrics.jsonl with --metrics")
    found = compute(given.model, given.train, given.validation, limit_tokens=given.limit_tokens)
    write_json(given.docs / SCORES, found)
    draw_curve(pl.read_ndjson(curve), found["all"], given.docs / CURVE)
    write_blocks(given.docs / PAGE, {"scores": scores_table(found), "margins": margins_text(found)})
    to_stderr(f"wrote {PAGE}, {SCORES} and {CURVE} in {given.docs}")


def compute(
    model_dir: Path, train_bin: Path, validation_bin: Path, *, limit_tokens: int | None = None
) -> dict[str, Any]:
    """Score the model, the n-grams and xz.

    Args:
        model_dir: config.json, model.safetensors and the tokenizer.json of both streams.
        train_bin: uint16 ids of the training documents.
        validation_bin: uint16 ids of the held-out documents; their table lies beside it.
        limit_tokens: reads the first documents up to this many tokens; None reads all.

    Returns:
        What stands in model-scores.json: rows of scores, margins, and what was scored on what.

    Raises:
        ModelError, TextError: a file is unusable, or they do not belong together.
    """
    model = load_model(model_dir)
    train = read_token_ids(train_bin, n_ctx=model.n_ctx, d_vocab=model.d_vocab)
    held_out = read_held_out(model, validation_bin, limit_tokens=limit_tokens)
    to_stderr(f"model on {len(held_out.ids):,} tokens")
    windows = lay_windows(held_out.documents, n_ctx=model.n_ctx)
    nats = {"model": model_nats(model.module, held_out.ids, windows)}
    for name, order in NGRAMS.items():
        to_stderr(f"{name} of {len(train):,} tokens")
        ngrams = train_ngrams(train, order=order, d_vocab=model.d_vocab)
        nats[name] = -ngrams.log_probs(held_out.ids)
    to_stderr("xz -9e")
    rows = score_rows(sums_by_document(held_out.documents, nats), xz_by_family(held_out.documents))
    return {
        "families": rows[:-1],
        "all": rows[-1],
        "margins": margins(rows[-1]),
        "model_weights": model.weights_hash,
        "tokenizer_sha256": model.tokenizer_hash,
        "n_train_tokens": int((np.asarray(train) != 0).sum()),
        "train_sha256": sha256_of(train_bin),
        "validation_sha256": sha256_of(validation_bin),
    }


def read_held_out(
    model: OneLayerModel, validation_bin: Path, *, limit_tokens: int | None = None
) -> HeldOut:
    """Read the held-out stream and its table, and see that both and the tokenizer agree.

    Args:
        model: its tokenizer must give back the documents.
        validation_bin: uint16 ids; the table is `*.docs.parquet` beside it, with columns start,
            n_tokens (id 0 included), family and sha256, in the order of the stream.
        limit_tokens: reads the first documents up to this many tokens; None reads all.

    Raises:
        ModelError: the stream is unusable, or a document does not have the sha256 of its row.
        TextError: the table does not cover the stream, or no document is short enough.
    """
    ids = np.array(read_token_ids(validation_bin, n_ctx=model.n_ctx, d_vocab=model.d_vocab))
    path = validation_bin.with_suffix(".docs.parquet")
    table = pl.read_parquet(path).with_columns(end=pl.col("start") + pl.col("n_tokens"))
    is_same = np.array_equal(table["start"].to_numpy(), np.flatnonzero(ids == 0))
    if not is_same or table["end"][-1] != len(ids):
        raise TextError(
            f"{path} lists {len(table):,} documents that are not those of {validation_bin}; "
            "take both from one run of the recipe"
        )
    table = table.filter(pl.col("end") <= (len(ids) if limit_tokens is None else limit_tokens))
    if table.is_empty():
        raise TextError(f"no document ends within {limit_tokens:,} tokens; raise --limit-tokens")
    data = [_document(model, ids, row, validation_bin) for row in table.to_dicts()]
    documents = table.select("start", "end", "family", data=pl.Series(data, dtype=pl.Binary))
    return HeldOut(ids[: table["end"][-1]], documents)


def lay_windows(documents: pl.DataFrame, *, n_ctx: int) -> Windows:
    """Cut documents into windows so that every token after id 0 is scored once.

    Args:
        documents: columns start and end, in tokens.
        n_ctx: tokens read in a window, >= 2.

    Returns:
        The first window of each document reads from its id 0 and scores all that it predicts;
        later ones start n_ctx // 2 further on each and score their last n_ctx // 2 predictions.
    """
    step = n_ctx // 2
    starts, ends = (documents[name].to_numpy() for name in ("start", "end"))
    n_later = np.maximum(0, -(-(ends - starts - 1 - n_ctx) // step))  # rounded up
    document = np.repeat(np.arange(len(starts)), 1 + n_later)
    within = np.arange(len(document)) - np.repeat(np.cumsum(1 + n_later) - 1 - n_later, 1 + n_later)
    first = starts[document] + step * within
    scored_from = first + 1 + np.where(within == 0, 0, n_ctx - step)
    return Windows(first, scored_from, ends[document])


@torch.no_grad()
def model_nats(model: Transformer, ids: NDArray[np.uint16], windows: Windows) -> Nats:
    """Give the model's loss on each token, computed in float32.

    Args:
        model: the transformer.
        ids: (n_tokens,) the stream.
        windows: where to read and what to score.

    Returns:
        (n_tokens,) nats; nan where no window scores.
    """
    out = np.full(len(ids), np.nan)
    n_ctx = model.config.n_ctx
    for at in range(0, len(windows.starts), BATCH_WINDOWS):
        batch = slice(at, at + BATCH_WINDOWS)
        places = windows.starts[batch, None] + np.arange(n_ctx)  # (batch, n_ctx)
        ends = windows.ends[batch, None]
        read = np.where(places < ends, ids[np.minimum(places, len(ids) - 1)], 0).astype(np.int64)
        is_scored = (places + 1 >= windows.scored_from[batch, None]) & (places + 1 < ends)
        targets = places[is_scored] + 1
        x = model.ln_final(model.run_through(torch.from_numpy(read)))
        out[targets] = _nats(model, x[torch.from_numpy(is_scored)], ids[targets].astype(np.int64))
    return out


def sums_by_document(documents: pl.DataFrame, nats: dict[str, Nats]) -> pl.DataFrame:
    """Add up losses by document: columns family, n_tokens, n_bytes and one of nats a reader."""
    starts, ends = (documents[name].to_numpy() for name in ("start", "end"))
    sums = {
        name: [float(each[a + 1 : b].sum()) for a, b in zip(starts, ends, strict=True)]
        for name, each in nats.items()
    }
    return documents.select(
        "family",
        n_tokens=pl.col("end") - pl.col("start") - 1,
        n_bytes=pl.col("data").bin.size().cast(pl.Int64),
    ).with_columns(**{name: pl.Series(each, dtype=pl.Float64) for name, each in sums.items()})


def xz_by_family(documents: pl.DataFrame) -> dict[str, int]:
    """Give the bytes of `xz -9e` on each family's documents and, as `all`, on all of them.

    `all` is the smallest of: the families' archives together, one archive of the documents in the
    order of the stream, one of the documents sorted by family.
    """
    by_family = {
        str(family): rows["data"].to_list()
        for (family,), rows in sorted(documents.partition_by("family", as_dict=True).items())
    }
    sizes = {family: xz_size(data) for family, data in by_family.items()}
    in_one = xz_size(documents["data"].to_list())
    sorted_in_one = xz_size(text for data in by_family.values() for text in data)
    return sizes | {ALL: min(sum(sizes.values()), in_one, sorted_in_one)}


def xz_size(texts: Iterable[bytes]) -> int:
    """Give the size of one archive of texts, joined, in bytes, as `xz -9e` makes it."""
    joined = b"".join(texts)
    return len(lzma.compress(joined, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))


def score_rows(sums: pl.DataFrame, xz: dict[str, int]) -> list[dict[str, Any]]:
    """Give one row of scores a family, the largest first, and one of all at the end.

    Args:
        sums: as of `sums_by_document`.
        xz: bytes of each family's archive and of `all`.

    Returns:
        family, n_documents, n_tokens, n_bytes, each reader's nats a token and bits a byte, xz_bits.
    """
    with_all = pl.concat([sums, sums.with_columns(family=pl.lit(ALL))])
    added = [pl.col(name).sum() for name in ("n_tokens", "n_bytes", *READERS)]
    totals = with_all.group_by("family").agg(pl.len().alias("n_documents"), *added)
    ordered = totals.sort(pl.col("family") == ALL, -pl.col("n_tokens"), "family")
    return [_scores(row, xz[row["family"]]) for row in ordered.to_dicts()]


def margins(row: dict[str, Any]) -> dict[str, float]:
    """Say how far the model is ahead: nats a token below the trigram, percent of bytes below xz."""
    return {
        "nats_below_trigram": round(row["trigram_nats"] - row["model_nats"], 4),
        "percent_below_xz": round(100 * (1 - row["model_bits"] / row["xz_bits"]), 2),
    }


def scores_table(found: dict[str, Any]) -> str:
    """Give the scores as Markdown."""
    names = [f"{reader}_nats" for reader in READERS] + ["model_bits", "trigram_bits", "xz_bits"]
    titles = [
        name.replace("_nats", ", nats/token").replace("_bits", ", bits/byte") for name in names
    ]
    head = ("family", "documents", "tokens", "bytes", *titles)
    rows = [
        (
            row["family"],
            *(f"{row[name]:,}" for name in ("n_documents", "n_tokens", "n_bytes")),
            *(f"{row[name]:.3f}" for name in names),
        )
        for row in [*found["families"], found["all"]]
    ]
    rows[-1] = tuple(f"**{cell}**" for cell in rows[-1])
    return markdown(head, rows, n_words=1)


def margins_text(found: dict[str, Any]) -> str:
    """Say how far the model is ahead, and in which families it is not."""
    behind = {
        name: ", ".join(row["family"] for row in found["families"] if margins(row)[name] <= 0)
        for name in found["margins"]
    }
    nats, percent = found["margins"].values()
    return (
        f"- The model's loss is {abs(nats):.3f} nats a token {'below' if nats > 0 else 'above'} the "
        f"trigram's. Not below in: {behind['nats_below_trigram'] or 'no family'}.\n"
        f"- The model needs {abs(percent):.1f} % {'fewer' if percent > 0 else 'more'} bytes than "
        f"`xz -9e`. Not fewer in: {behind['percent_below_xz'] or 'no family'}."
    )


def draw_curve(metrics: pl.DataFrame, scores: dict[str, Any], path: Path) -> None:
    """Draw validation loss over tokens seen, with the n-grams as lines; same numbers, same bytes.

    Args:
        metrics: n_tokens, train_loss, validation_loss; a row each now and then, ascending.
        scores: the row of all held-out tokens.
        path: the SVG that is written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra, needed for this picture alone
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "model-curve", "font.size": 10}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        _fill_axes(figure.add_subplot(), metrics, scores)
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def write_blocks(path: Path, blocks: dict[str, str]) -> None:
    """Replace what stands between the two comments of each name in a Markdown file.

    Raises:
        TextError: the file has no such block.
    """
    page = path.read_text(encoding="utf-8")
    for name, text in blocks.items():
        first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if (page.count(first), page.count(last)) != (1, 1):
            raise TextError(f"{path} must hold one block {first.strip()} ... {last}")
        before, _, rest = page.partition(first)
        page = f"{before}{first}{text}\n{last}{rest.partition(last)[2]}"
    write_text(path, page)


def _document(
    model: OneLayerModel, ids: NDArray[np.uint16], row: dict[str, Any], path: Path
) -> bytes:
    """Give the bytes of one row of the table, once they have the sha256 that it names."""
    data = model.tokenizer.decode(ids[row["start"] + 1 : row["end"]].astype(np.int64))
    if sha256(data).hexdigest() != row["sha256"]:
        raise ModelError(
            f"{path}: the document at token {row['start']:,} does not come out with the sha256 of "
            f"its row; {model.tokenizer.path} is not the tokenizer it was made with"
        )
    return data


def _nats(model: Transformer, x: torch.Tensor, targets: NDArray[np.int64]) -> Nats:
    """Give the loss of each target from normed residuals (n, d_model), a slice at a time."""
    wanted = torch.from_numpy(targets)
    rows = [slice(at, at + LOSS_SLICE) for at in range(0, len(x), LOSS_SLICE)]
    parts = [
        functional.cross_entropy(x[at] @ model.W_U, wanted[at], reduction="none") for at in rows
    ]
    nats: Nats = torch.cat(parts).double().numpy()
    return nats


def _scores(row: dict[str, Any], xz_bytes: int) -> dict[str, Any]:
    counts = {name: row[name] for name in ("family", "n_documents", "n_tokens", "n_bytes")}
    nats = {f"{name}_nats": round(row[name] / row["n_tokens"], 5) for name in READERS}
    bits = {f"{name}_bits": round(row[name] / math.log(2) / row["n_bytes"], 5) for name in READERS}
    return {**counts, **nats, **bits, "xz_bits": round(8 * xz_bytes / row["n_bytes"], 5)}


def _fill_axes(axes: Axes, metrics: pl.DataFrame, scores: dict[str, Any]) -> None:
    seen = metrics["n_tokens"] / 1e6
    axes.plot(seen, metrics["train_loss"], color="#9db7d5", lw=1, label="training text")
    axes.plot(seen, metrics["validation_loss"], color=BLUE, lw=2, label="held-out windows")
    axes.plot(seen[-1], scores["model_nats"], "o", color=BLUE, label="all held-out tokens")
    for name in NGRAMS:
        level = scores[f"{name}_nats"]
        axes.axhline(level, color=BROWN, lw=1, ls="--")
        beside = axes.get_yaxis_transform()
        axes.text(1.01, level, f"{name} {level:.2f}", color=BROWN, va="center", transform=beside)
    axes.set_xscale("log", subs=[2, 5])
    axes.xaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats a token)")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
