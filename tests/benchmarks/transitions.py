"""How fast pairs of features on neighbouring tokens are counted, beside scipy and GraphBLAS.

    python tests/benchmarks/transitions.py [--peers PYTHON] [--part 1] [--write PAGE]

1. Texts are drawn: documents of 500 tokens on average, exactly k features on each token. The
   density of the feature of rank r is proportional to 1 / r, at most 0.5, as dictionaries have it.
2. Each counter runs in a process of its own, from the same arrays, and they take turns.
3. The limit is measured in the same turns: all cores add 1 to random ones of d_sae counters, the ids
   in the cache; the table gives pairs a second as a share of it. A counter that adds many pairs in
   one instruction may pass it.
4. Peak memory is the most that a process has had, less what it had with text and packages loaded.
   Equal says that all counts are the same (SHA-256 over the sorted rows).

Parts: 1 has 4,096 features; 2 has 131,072; 3 is ours at 10^5, 10^6 and 10^7 tokens: time should grow
as they do. The last text is that of 10^6 ten times: its counts must be ten times those.

GraphBLAS needs an environment of its own:

    python -m venv peers && peers/bin/pip install python-graphblas numpy
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from worker import Worker

from figures.tables import markdown, replace_block

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNTER = Path(__file__).with_name("transition_counters.py")
MOST_DENSE = 0.5
DOCUMENT = 500  # tokens, mean
COPIES = 10


class Size(NamedTuple):
    """How large a text is."""

    part: int
    n_tokens: int
    d_sae: int
    k: int


SIZES = (
    Size(1, 500_000, 4096, 20),
    Size(2, 200_000, 131_072, 32),
    Size(3, 10**5, 4096, 20),
    Size(3, 10**6, 4096, 20),
    Size(3, 10**7, 4096, 20),
)
HEAD = (
    "tokens",
    "d_sae",
    "k",
    "counter",
    "seconds, least",
    "middle",
    "pairs a second, 10^6",
    "of the limit",
    "ours is so many times as fast",
    "peak memory, MB",
    "of the result",
    "equal",
)


class Contestant(Worker):
    """A counter, that waits for its turn."""

    def __init__(self, python: str, name: str, folder: Path, d_sae: int) -> None:
        super().__init__(name, [python, str(COUNTER), name, str(folder), str(d_sae)])
        self.seconds: list[float] = []

    def turn(self) -> None:
        """Let it count once."""
        self.seconds.append(float(self.ask("count")))


def main() -> None:
    """Print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for part in options.part:
            lines: list[list[str]] = []
            digests: list[str] = []
            for size in (size for size in SIZES if size.part == part):
                lines += _lines(size, options, folder, digests)
            text = markdown(HEAD, lines, n_words=4)
            print(f"{os.cpu_count()} cores\n\n{text}\n", flush=True)
            if options.write:
                replace_block(options.write, f"transitions-{part}", text)
    if not options.peers:
        print("not run, for want of --peers: graphblas", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help="the interpreter of an environment with python-graphblas")
    parser.add_argument("--part", type=int, nargs="+", default=[1, 2, 3], choices=(1, 2, 3))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where texts are kept for the next time")
    parser.add_argument("--draw", action="store_true", help="only draw the texts")
    parser.add_argument(
        "--write", type=Path, help="a page whose blocks `transitions-1` to `-3` get the tables"
    )
    return parser.parse_args()


def _lines(
    size: Size, options: argparse.Namespace, folder: Path, digests: list[str]
) -> list[list[str]]:
    """Let all counters take turns on one text; the digests of one part's texts are collected."""
    at = folder / "-".join(map(str, size[1:]))
    if not (at / "doc_ids.npy").exists():
        _save(size, at)
    if options.draw:
        return []
    names = [(sys.executable, "increments"), (sys.executable, "ours")]
    if size.part < 3:
        names.append((sys.executable, "scipy"))
        names += [(options.peers, "graphblas")] if options.peers else []
    contestants = [Contestant(python, name, at, size.d_sae) for python, name in names]
    for contestant in contestants:
        contestant.turn()
    peaks = [int(contestant.ask("peak")) for contestant in contestants]
    for _ in range(options.rounds - 1):
        for contestant in contestants:
            contestant.turn()
    divisor = COPIES if size.n_tokens == SIZES[-1].n_tokens else 1
    found = [contestant.ask(f"digest {divisor}") for contestant in contestants[1:]]
    digests.append(found[0].split()[0])
    lines = _cells(size, contestants, peaks, found, digests)
    for contestant in contestants:
        contestant.end()
    return lines


def _cells(
    size: Size,
    contestants: list[Contestant],
    peaks: list[int],
    found: list[str],
    digests: list[str],
) -> list[list[str]]:
    limit, ours, *_ = contestants
    most = int(limit.ask("n_steps")) / min(limit.seconds)
    n_pairs, n_bytes = int(found[0].split()[1]), int(ours.ask("result"))
    first = [f"{size.n_tokens:,}", f"{size.d_sae:,}", str(size.k)]
    lines = [[*first, "limit", "", "", f"{most / 1e6:,.0f}", "", "", "", "", ""]]
    for each, peak, counts in zip(contestants[1:], peaks[1:], found, strict=True):
        least = min(each.seconds)
        is_equal = counts == found[0] if each is not ours else _tenfold(size, digests)
        lines.append(
            [
                *first,
                each.name,
                f"{least:.3f}",
                f"{median(each.seconds):.3f}",
                f"{n_pairs / least / 1e6:,.0f}",
                f"{n_pairs / least / most:.2f}",
                f"{least / min(ours.seconds):.1f}",
                f"{peak / 1e6:,.0f}",
                f"{peak / n_bytes:.1f}",
                {None: "", True: "yes", False: "NO"}[is_equal],
            ]
        )
    return lines


def _tenfold(size: Size, digests: list[str]) -> bool | None:
    """Say whether the last text's counts, divided, are those of the text that it repeats."""
    return digests[-1] == digests[-2] if size == SIZES[-1] else None


def _save(size: Size, at: Path) -> None:
    """Draw a text and write its arrays."""
    n_copies = COPIES if size == SIZES[-1] else 1
    rows, doc_ids = draw(size._replace(n_tokens=size.n_tokens // n_copies))
    n_documents = int(doc_ids[-1]) + 1
    at.mkdir(parents=True, exist_ok=True)
    np.save(at / "indptr.npy", np.arange(size.n_tokens + 1) * size.k)
    np.save(at / "indices.npy", np.tile(rows, (n_copies, 1)).ravel())
    later = [doc_ids + n_documents * copy for copy in range(n_copies)]
    np.save(at / "doc_ids.npy", np.concatenate(later))


def draw(size: Size) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Draw which features fire on each token, (n, k) ascending, and the document of each, (n,).

    Densities laid end to end in an order of the document's own fill a line of length k; points at
    distance 1, from a random start, hit k features, each with its density.
    """
    rng = np.random.default_rng(0)
    density = densities(size.d_sae, size.k)
    name = rng.permutation(size.d_sae).astype(np.uint32)
    rows = np.empty((size.n_tokens, size.k), np.uint32)
    doc_ids = np.empty(size.n_tokens, np.int64)
    at = n_documents = 0
    while at < size.n_tokens:
        n = min(size.n_tokens - at, int(rng.integers(1, 2 * DOCUMENT)))
        order = rng.permutation(size.d_sae)
        ends = np.cumsum(density[order])[:-1]
        points = rng.random((n, 1)) + np.arange(size.k)
        hit = order[np.searchsorted(ends, points.ravel(), side="right")]
        rows[at : at + n] = np.sort(name[hit].reshape(n, size.k), axis=1)
        doc_ids[at : at + n] = n_documents
        at, n_documents = at + n, n_documents + 1
    return rows, doc_ids


def densities(d_sae: int, k: int) -> NDArray[np.float64]:
    """Give (d_sae,) densities proportional to 1 / rank, at most MOST_DENSE, that add up to k."""
    ranks = np.arange(1, d_sae + 1)
    low, high = 0.0, float(d_sae)
    for _ in range(100):
        middle = (low + high) / 2
        is_low = np.minimum(MOST_DENSE, middle / ranks).sum() < k
        low, high = (middle, high) if is_low else (low, middle)
    found = np.minimum(MOST_DENSE, high / ranks)
    return found * (k / found.sum())


if __name__ == "__main__":
    main()
