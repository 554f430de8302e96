"""The feature sheet: features drawn by chance, each with its tokens, its text and a phrase.

    python -m figures.features RUN [--n 30] [--seed 0] [--name features]

1. Of the features that fire in the run, `n` are drawn with a fixed seed; nobody picks them.
2. Each is shown with the tokens on which it fires (by share of its activation), the tokens that it
   promotes, and text: the places where it fires most, one a document while there are others, and
   places from low, middle and high in the order of all its activations.
3. The phrases come from docs/NAME.toml; those for another dictionary are left out.
4. docs/NAME.md is written anew.
"""

from __future__ import annotations

import argparse
import html
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from circuits.lettering import n_cells, shown_token
from circuits.run import open_run
from figures.tables import plain
from sae_core.console import say
from sae_core.files import read_parquet, write_text
from sae_core.tokens import token_str

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from circuits.run import Run
    from sae_core.schema import TokenTable

DOCS = Path(__file__).parents[1] / "docs"
NAME = "features"
N_TOKENS = 10
N_TOP = 4
QUANTILES = (0.1, 0.35, 0.6, 0.85)  # of the activations > 0; the top is shown beside them
BEFORE, AFTER = 10, 6  # tokens of text around the one that fires
HASH_DIGITS = 16
NOT_YET = "(not described yet)"
WORDS = """\
{n} of the {n_alive:,} features of {sae} that fire in the run ({n_tokens:,} tokens of {n_documents} \
documents) were drawn by chance with seed {seed}, without looking; {n_dead} of {d_sae:,} features never fire \
in it and cannot be drawn. {n_described} of the {n} are described, and of those {n_fit} phrases fit their \
examples.{left_out}

In each sheet: the tokens on which the feature fires, with their share of its summed activation; the tokens \
whose logits it raises most (nats for one unit of the feature, before the final norm's scale); then text, the \
token that fires in bold. The first {n_top} lines are its strongest firings, one a document while there are \
others. The others stand at {quantiles} of all its firings in order of strength, so that not only maxima are \
seen. A space is printed as ␣, a line break as \\\\n.

`python -m figures.features RUN --n {n} --seed {seed}{option}` writes this page; phrases are kept in \
`docs/{name}.toml` under `sae_hash = "{sae_hash}"`."""


@dataclass(frozen=True)
class Phrase:
    """What a person says of a feature."""

    phrase: str
    """In a few words, what it fires on."""

    fits: bool
    """Whether the phrase fits the examples of the sheet."""


class Firings(NamedTuple):
    """Where one feature fires, in text order."""

    rows: NDArray[np.int64]
    """(n,) row of the token table."""

    acts: NDArray[np.float32]
    """(n,) activation, > 0."""


def main(words: Sequence[str] | None = None) -> None:
    """Write docs/NAME.md."""
    parser = argparse.ArgumentParser(prog="python -m figures.features", description=__doc__)
    parser.add_argument("run", type=Path, help="Run directory with kept activations.")
    parser.add_argument("--n", type=int, default=30, help="Features to draw.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw.")
    parser.add_argument("--name", default=NAME, help="Files: docs/NAME.md, and phrases NAME.toml.")
    given = parser.parse_args(words)
    write(given.run, DOCS, n=given.n, seed=given.seed, name=given.name)


def write(run: Path, docs: Path, *, n: int, seed: int, name: str = NAME) -> None:
    """Write the sheet of a run as NAME.md into a folder that may hold NAME.toml.

    Args:
        run: with kept activations.
        docs: the folder.
        n: features to draw.
        seed: of the draw.
        name: of both files.

    Raises:
        ValueError: n is below 1, or the phrases are not as they should be.
        StoreError: the run keeps no activations.
    """
    opened = open_run(run)
    sae_hash = str(opened.manifest.settings.get("sae_hash", ""))[:HASH_DIGITS]
    phrases, left_out = read_phrases(docs / f"{name}.toml", sae_hash)
    page = sheet(opened, phrases, n=n, seed=seed, left_out=left_out, name=name)
    write_text(docs / f"{name}.md", page)
    say(f"{docs / name}.md: written.{left_out}")


def read_phrases(file: Path, sae_hash: str) -> tuple[dict[int, Phrase], str]:
    """Read what people said of the features of a dictionary.

    Args:
        file: TOML with `sae_hash`, and a table a feature: [12], phrase = "...", fits = true.
        sae_hash: of the dictionary in question.

    Returns:
        The phrases by feature, and a sentence on those of another dictionary, which are left out.

    Raises:
        ValueError: phrases stand there without the hash of their dictionary, or one is not whole.
    """
    found = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = found.pop("sae_hash", None)
    if not found:
        return {}, ""
    if named is None:
        raise ValueError(f'{file} does not say of which dictionary; write sae_hash = "{sae_hash}"')
    if named != sae_hash:
        return {}, f" {len(found)} phrases of another dictionary ({named}) are left out."
    read = {number: _phrase(file, number, one) for number, one in found.items()}
    return {int(number): phrase for number, phrase in read.items()}, ""


def draw(n_fires: NDArray[np.int64], *, n: int, seed: int) -> list[int]:
    """Draw features that fire.

    Args:
        n_fires: (d_sae,) tokens on which each fires.
        n: how many, at most those that fire.
        seed: of the draw.

    Returns:
        Their numbers, ascending.

    Raises:
        ValueError: n is below 1.

    Example:
        >>> draw(np.array([5, 0, 2, 0, 9]), n=3, seed=0)
        [0, 2, 4]
    """
    if n < 1:
        raise ValueError(f"n must be >= 1 feature, got {n}")
    alive = np.flatnonzero(n_fires)
    chosen = np.random.default_rng(seed).choice(alive, size=min(n, len(alive)), replace=False)
    return sorted(int(feature) for feature in chosen)


def sheet(
    run: Run,
    phrases: dict[int, Phrase],
    *,
    n: int,
    seed: int,
    left_out: str = "",
    name: str = NAME,
) -> str:
    """Give the whole page.

    Args:
        run: with kept activations.
        phrases: what people said, by feature.
        n: features to draw.
        seed: of the draw.
        left_out: a sentence for the head.
        name: of the page.
    """
    tokens = run.tokens()
    vocabulary = run.vocabulary.sort("token_id")["token_bytes"].to_list()
    n_fires = np.bincount(tokens.features, minlength=run.manifest.d_sae)
    chosen = draw(n_fires, n=n, seed=seed)
    promoted = _promoted(run)
    n_alive = int((n_fires > 0).sum())
    described = [phrases[feature] for feature in chosen if feature in phrases]
    head = _head(run, chosen, described, n_alive=n_alive, seed=seed, left_out=left_out, name=name)
    parts = ["# Features, drawn by chance", head]
    for feature in chosen:
        density = n_fires[feature] / len(tokens.doc_ids)
        parts.append(f"## Feature {feature}")
        parts.append(f"Density {density:.3%}. {_described(phrases.get(feature))}")
        firings = firings_of(tokens, feature)
        lines = [
            f"fires on  {_weighted(token_shares(tokens, firings), vocabulary, '{:.0%}')}",
            f"promotes  {_weighted(promoted.get(feature, []), vocabulary, '{:+.2f}')}",
            "",
            *_snippets(tokens, firings, vocabulary),
        ]
        parts.append("<pre>\n" + "\n".join(lines) + "\n</pre>")
    return "\n\n".join(parts) + "\n"


def firings_of(tokens: TokenTable, feature: int) -> Firings:
    """Find where a feature fires."""
    entries = np.flatnonzero(tokens.features == feature)
    rows = np.searchsorted(tokens.indptr, entries, side="right") - 1
    return Firings(rows, tokens.acts[entries])


def token_shares(tokens: TokenTable, firings: Firings) -> list[tuple[int, float]]:
    """Give the tokens on which a feature fires most, with their shares of its summed activation."""
    sums = np.bincount(tokens.token_ids[firings.rows], weights=firings.acts)
    best = np.argsort(-sums, kind="stable")[:N_TOKENS]
    return [(int(token), float(sums[token] / sums.sum())) for token in best if sums[token] > 0]


def example_places(doc_ids: NDArray[np.uint32], acts: NDArray[np.float32]) -> list[tuple[str, int]]:
    """Choose the firings to show.

    Args:
        doc_ids: (n,) document of each firing.
        acts: (n,) its activation.

    Returns:
        (what it is, place in 0..n - 1): the strongest, one a document while there are others, then
        those at `QUANTILES` of all in order of strength; none twice.

    Example:
        >>> example_places(np.array([0, 0, 1]), np.array([3.0, 2.0, 1.0]))
        [('top', 0), ('top', 2), ('top', 1)]
    """
    order = np.argsort(-acts, kind="stable")
    turn = np.zeros(len(order), dtype=np.int64)
    seen: dict[int, int] = {}
    for at, doc in enumerate(doc_ids[order].tolist()):
        turn[at] = seen[doc] = seen.get(doc, 0) + 1
    top = order[np.argsort(turn, kind="stable")][:N_TOP].tolist()
    rest = [int(place) for place in order[::-1] if place not in top]
    places = sorted({int(quantile * len(rest)) for quantile in QUANTILES if rest}, reverse=True)
    spread = [(f"{at / len(rest):.0%}", rest[at]) for at in places]
    return [("top", int(place)) for place in top] + spread


def _phrase(file: Path, number: str, one: Any) -> Phrase:
    fields = one if isinstance(one, dict) else {}
    phrase, fits = fields.get("phrase"), fields.get("fits")
    if not (number.isdecimal() and isinstance(phrase, str) and isinstance(fits, bool)):
        raise ValueError(
            f'{file}: [{number}] is not whole; write a table [12] with phrase = "..." and '
            "fits = true or false"
        )
    return Phrase(phrase, fits)


def _head(
    run: Run,
    chosen: list[int],
    described: list[Phrase],
    *,
    n_alive: int,
    seed: int,
    left_out: str,
    name: str,
) -> str:
    d_sae = run.manifest.d_sae
    return WORDS.format(
        n=len(chosen),
        n_alive=n_alive,
        sae=plain(run.sae_name),
        n_tokens=sum(shard.n_tokens for shard in run.manifest.shards),
        n_documents=len(run.documents),
        seed=seed,
        n_dead=d_sae - n_alive,
        d_sae=d_sae,
        n_described=len(described),
        n_fit=sum(one.fits for one in described),
        left_out=plain(left_out) and f" {plain(left_out)}",
        n_top=N_TOP,
        name=name,
        option="" if name == NAME else f" --name {name}",
        quantiles=", ".join(f"{quantile:.0%}" for quantile in reversed(QUANTILES)),
        sae_hash=str(run.manifest.settings.get("sae_hash", ""))[:HASH_DIGITS],
    )


def _described(phrase: Phrase | None) -> str:
    if phrase is None:
        return NOT_YET
    return f"**{plain(phrase.phrase)}** ({'fits' if phrase.fits else 'does not fit'})"


def _promoted(run: Run) -> dict[int, list[tuple[int, float]]]:
    """Give the tokens that each feature promotes, with nats for one unit of it."""
    file = run.path / "logit_effects.parquet"
    if not file.is_file():
        return {}
    raised = read_parquet(file).filter(pl.col("nats_per_unit") > 0)
    best = raised.sort("nats_per_unit", "token_id", descending=[True, False])
    found: dict[int, list[tuple[int, float]]] = {}
    for feature, token, nats in best.select("feature_idx", "token_id", "nats_per_unit").iter_rows():
        if len(found.setdefault(feature, [])) < N_TOKENS:
            found[feature].append((token, nats))
    return found


def _weighted(pairs: list[tuple[int, float]], vocabulary: list[bytes], form: str) -> str:
    words = (
        f"{_escaped(_shown(vocabulary[token]))} <i>{form.format(value)}</i>"
        for token, value in pairs
    )
    return "   ".join(words) or "-"


def _snippets(tokens: TokenTable, firings: Firings, vocabulary: list[bytes]) -> Iterator[str]:
    """Give a line for each example: what it is, the activation, the text before and after."""
    found = [
        (what, float(firings.acts[at]), *_context(tokens, int(firings.rows[at]), vocabulary))
        for what, at in example_places(tokens.doc_ids[firings.rows], firings.acts)
    ]
    width = max((n_cells(before) for _, _, before, _, _ in found), default=0)
    for what, act, before, focus, after in found:
        space = " " * round(width - n_cells(before))
        text = f"{space}{_escaped(before)}<b>{_escaped(focus)}</b>{_escaped(after)}"
        yield f"{what:>4} {act:6.2f}  {text}"


def _context(tokens: TokenTable, row: int, vocabulary: list[bytes]) -> tuple[str, str, str]:
    """Give the text before a token, the token, and the text after it, within one document.

    The tokens' bytes are joined first: in many scripts a character is several tokens.
    """
    first, last = max(0, row - BEFORE), min(len(tokens.doc_ids), row + AFTER + 1)
    near = first + np.flatnonzero(tokens.doc_ids[first:last] == tokens.doc_ids[row])
    parts = {int(at): vocabulary[int(tokens.token_ids[at])] for at in near}
    before = b"".join(part for at, part in parts.items() if at < row)
    after = b"".join(part for at, part in parts.items() if at > row)
    return _shown(before), _shown(parts[row]), _shown(after)


def _shown(text: bytes) -> str:
    return shown_token(token_str(text))


def _escaped(text: str) -> str:
    """Give text as it stands within <pre>, where Markdown reads nothing but HTML."""
    return html.escape(text, quote=False)


if __name__ == "__main__":
    main()
