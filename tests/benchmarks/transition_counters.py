"""Counters for `transitions.py`, one a process: a turn in, the seconds it took out.

    python tests/benchmarks/transition_counters.py NAME FOLDER D_SAE

Each starts from the same three arrays and ends with its own kind of matrix in memory; nothing but
numpy is imported beside the package that is timed. The peers get the text with an empty row between
documents: then the product of all rows but the last with all but the first holds no pair across a
document's end, and neither factor needs a copy.
"""

# ruff: noqa: PLC0415 - each process imports the one package that it times
from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

N_LIMIT = 1 << 16  # ids of the limit's loop; they stay in the cache
LIMIT_ROUNDS = 200


class World(NamedTuple):
    """A text: which features fire on which token of which document."""

    indptr: Any
    indices: Any
    doc_ids: Any
    d_sae: int

    def first(self, n: int) -> World:
        """Give the first tokens."""
        return World(
            self.indptr[: n + 1], self.indices[: self.indptr[n]], self.doc_ids[:n], self.d_sae
        )

    def apart(self) -> Any:
        """Give indptr with an empty row before, between and after documents."""
        ends = np.flatnonzero(np.diff(self.doc_ids)) + 1
        at = np.concatenate([[0], ends, [len(self.doc_ids)]])
        return np.insert(self.indptr, at, self.indptr[at])


class Ours:
    """The project's function."""

    def __init__(self) -> None:
        from sae_core.counting import transition_counts

        self.count_all = transition_counts

    def count(self, world: World) -> Any:
        """Count."""
        return self.count_all(*world)

    def rows(self, counts: Any) -> Any:
        """Give indptr, indices and data, sorted."""
        return counts.indptr, counts.indices, counts.data


class Scipy:
    """scipy's product of sparse matrices."""

    def __init__(self) -> None:
        from scipy import sparse

        self.sparse = sparse

    def count(self, world: World) -> Any:
        """Count."""
        indptr = world.apart().astype(np.int32)
        ones, indices = np.ones(len(world.indices), np.int64), world.indices.astype(np.int32)
        shape = (len(indptr) - 2, world.d_sae)
        earlier = self.sparse.csr_array((ones, indices, indptr[:-1]), shape=shape)
        later = self.sparse.csr_array((ones, indices, indptr[1:]), shape=shape)
        return earlier.T.tocsr() @ later

    def rows(self, counts: Any) -> Any:
        """Give indptr, indices and data, sorted."""
        counts.sort_indices()
        return counts.indptr, counts.indices, counts.data


class GraphBlas:
    """SuiteSparse:GraphBLAS, with the semiring that counts pairs, on all cores."""

    def __init__(self) -> None:
        import graphblas

        self.gb = graphblas

    def count(self, world: World) -> Any:
        """Count."""
        indptr, indices = world.apart().astype(np.uint64), world.indices.astype(np.uint64)
        make, n_columns = self.gb.Matrix.from_csr, world.d_sae
        earlier = make(indptr[:-1], indices, np.int64(1), ncols=n_columns)
        later = make(indptr[1:], indices, np.int64(1), ncols=n_columns)
        counts = self.gb.semiring.plus_pair(earlier.T @ later).new("INT64")
        counts.wait()
        return counts

    def rows(self, counts: Any) -> Any:
        """Give indptr, indices and data, sorted."""
        return counts.to_csr(sort=True)


class Increments:
    """No counter of pairs: each core adds 1 to random ones of d_sae counters, ids in the cache."""

    def __init__(self) -> None:
        from sae_core import pair_loops

        self.loop = pair_loops.count_firings
        self.n_cores = os.cpu_count() or 1

    def count(self, world: World) -> Any:
        """Add; `n_steps` says how many."""
        ids = np.random.default_rng(0).integers(0, world.d_sae, N_LIMIT).astype(np.uint32)

        def add(_: int) -> None:
            counters = np.zeros(world.d_sae, np.int64)
            for _ in range(LIMIT_ROUNDS):
                self.loop(ids, counters)

        with ThreadPoolExecutor(self.n_cores) as pool:
            list(pool.map(add, range(self.n_cores)))

    def n_steps(self) -> int:
        """Give how many increments a turn is."""
        return N_LIMIT * LIMIT_ROUNDS * self.n_cores


COUNTERS: dict[str, Any] = {
    "increments": Increments,
    "ours": Ours,
    "scipy": Scipy,
    "graphblas": GraphBlas,
}


def main() -> None:
    """Answer lines of stdin: `count`, `n_steps`, `peak`, `result` (bytes), `digest` and `sum`."""
    name, folder, d_sae = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    world = World(*(np.load(folder / f"{part}.npy") for part in World._fields[:3]), d_sae)
    counter = COUNTERS[name]()
    counter.count(world.first(1000))  # compiles
    before, counts = _peak(), None
    print("= ready", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "count":
            counts = None
            started = time.perf_counter()
            counts = counter.count(world)
            said: Any = time.perf_counter() - started
        elif word == "peak":
            said = _peak() - before
        elif word == "n_steps":
            said = counter.n_steps()
        else:
            said = _about(word, counter.rows(counts))
        print(f"= {said}", flush=True)


def _peak() -> int:
    """Give the most memory that the process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _about(word: str, rows: Any) -> Any:
    indptr, indices, data = rows
    if word == "result":
        return 12 * len(indices)  # an id of 32 and a count of 64 bits
    divisor = int(word.split()[1])
    digest = hashlib.sha256()
    for part in (indptr, indices):
        digest.update(np.asarray(part).astype(np.int64).data)
    digest.update((np.asarray(data).astype(np.int64) // divisor).data)
    return f"{digest.hexdigest()} {int(np.asarray(data).sum())}"


if __name__ == "__main__":
    main()
