"""Several runs of one model and dictionary -> one run: sums of sums, tokens one after the other.

1. Runs of other models, dictionaries or settings, and runs that share a document, are refused.
2. The runs are put in an order of their own, by the hashes of their documents and tokens, so that
   the order in which they are given makes no difference to any byte.
3. Documents and windows are numbered anew; the sums are added up; what follows from them is made
   again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sae_core import __version__, statistics
from sae_core.errors import StoreError, StoreMismatchError
from sae_core.feature_table import features_table
from sae_core.files import DirectoryLock, read_parquet, sha256_of, write_parquet
from sae_core.output import differing, open_manifest, refuse_foreign
from sae_core.schema import GatherSettings, Shard
from sae_core.store import (
    Manifest,
    read_documents,
    read_manifest,
    read_tokens,
    read_vocabulary,
    token_files,
    verify,
    write_manifest,
)
from sae_core.summed_files import add_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

FREE = frozenset({"documents_hash", "max_tokens"})  # they say which text, not how it is read
NO_NAME = "unknown"
LOGIT_EFFECTS = "logit_effects.parquet"


@dataclass(frozen=True)
class _Part:
    """One run to be merged."""

    path: Path
    manifest: Manifest
    documents: pl.DataFrame

    digests: dict[int, str]
    """Hash of each document's text by its id, or of its tokens where that is not known; none where
    it has no tokens."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What the runs are ordered by."""
        known = {
            file: made for shard in self.manifest.shards for file, made in shard.sha256.items()
        }
        tokens = "".join(
            known.get(f"tokens/{file.name}") or sha256_of(file) for file in token_files(self.path)
        )
        digest = hashlib.sha256(tokens.encode()).hexdigest()
        return self.documents["sha256"][0] or "", sha256_of(self.path / "documents.parquet"), digest


def merge_runs(
    runs: Sequence[str | PathLike[str]], out: str | PathLike[str], *, force: bool = False
) -> Manifest:
    """Write one run from several; the order in which they are given makes no difference.

    Args:
        runs: run directories of the same model, dictionary and settings, without common documents.
        out: the new run directory.
        force: replace a run that was made of others.

    Returns:
        What the new run's manifest says.

    Raises:
        StoreMismatchError: the runs differ in a setting, or share a document.
        StoreError: a run is damaged or not finished, or `out` is not ours.
        ValueError: there are fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"merge needs at least two runs, got {len(runs)}")
    target = Path(out)
    parts = sorted((_opened(Path(run), target) for run in runs), key=lambda part: part.key)
    _refuse_mixture(parts)
    refuse_foreign(target)
    settings = _settings(parts)
    with DirectoryLock(target):
        manifest = open_manifest(target, settings, force=force)
        return manifest if manifest.complete else _write(target, manifest, parts)


def _opened(run: Path, target: Path) -> _Part:
    if run.resolve() == target.resolve():
        raise StoreError(f"{run} is to be read and written; choose another folder with -o")
    manifest, documents = read_manifest(run), read_documents(run)
    if not manifest.complete:
        raise StoreError(f"{run} is not finished; run the same `circuits gather` again")
    for check in verify(run):
        if not check.ok:
            raise StoreError(f"{run / check.file}: {check.reason}; repair {run} first")
    if documents.is_empty():
        raise StoreError(f"{run} has no documents; leave it out")
    return _Part(run, manifest, documents, _digests(run, documents))


def _digests(run: Path, documents: pl.DataFrame) -> dict[int, str]:
    known = {doc_id: text for doc_id, text in documents.select("doc_id", "sha256").rows() if text}
    if len(known) == len(documents):
        return known
    hashes: dict[Any, Any] = defaultdict(hashlib.sha256)
    for file in token_files(run):
        frame = read_parquet(file).select("doc_id", "token_id")
        for (doc_id,), rows in frame.group_by("doc_id", maintain_order=True):
            hashes[doc_id].update(rows["token_id"].to_numpy().astype("<u4").tobytes())
    return {doc_id: digest.hexdigest() for doc_id, digest in hashes.items()} | known


def _refuse_mixture(parts: Sequence[_Part]) -> None:
    first = parts[0]
    vocabulary = read_vocabulary(first.path)
    for part in parts[1:]:
        name = differing(_compared(first), _compared(part))
        if name is not None:
            values = _compared(first).get(name), _compared(part).get(name)
            raise StoreMismatchError(
                f"{first.path} was made with {name} {values[0]!r}, {part.path} with {values[1]!r}; "
                "merge runs of one model, dictionary and settings"
            )
        if not read_vocabulary(part.path).equals(vocabulary):
            raise StoreMismatchError(
                f"{first.path} and {part.path} have different vocabularies; "
                "merge runs of one tokenizer"
            )
    _refuse_overlap(parts)


def _compared(part: _Part) -> dict[str, Any]:
    sizes = {"d_sae": part.manifest.d_sae, "d_vocab": part.manifest.d_vocab}
    settings = part.manifest.settings or {"keep_acts": True}
    return sizes | {name: value for name, value in settings.items() if name not in FREE}


def _refuse_overlap(parts: Sequence[_Part]) -> None:
    seen: dict[str, tuple[Path, str]] = {}
    for part in parts:
        named = {
            part.digests[doc_id]: (part.path, source)
            for doc_id, source in part.documents.select("doc_id", "source").rows()
            if doc_id in part.digests
        }
        for digest, (path, source) in named.items():
            if digest in seen:
                other, known = seen[digest]
                raise StoreMismatchError(
                    f"{path} and {other} both hold the document {source} ({known} there); "
                    "counts would double; gather them without it"
                )
        seen |= named


def _settings(parts: Sequence[_Part]) -> GatherSettings:
    """Give the settings of the whole; those that a run made elsewhere lacks are blank."""
    known = parts[0].manifest
    blank: dict[str, Any] = dict.fromkeys(GatherSettings.__annotations__, "")
    blank |= {"d_sae": known.d_sae, "d_vocab": known.d_vocab, "keep_acts": True}
    blank |= {"n_ctx": 0, "warm_up": 0, "held_out": 0.0}
    texts = [
        part.manifest.settings.get("documents_hash", "") or "".join(part.key) for part in parts
    ]
    whole = {
        "documents_hash": hashlib.sha256("".join(texts).encode()).hexdigest(),
        "max_tokens": None,
    }
    names = {
        name: min(str(part.manifest.settings.get(name, NO_NAME)) for part in parts)
        for name in ("model", "sae")
    }
    return GatherSettings(**(blank | known.settings | names | whole))


def _write(out: Path, manifest: Manifest, parts: Sequence[_Part]) -> Manifest:
    for name in ("tokens", "statistics"):
        shutil.rmtree(out / name, ignore_errors=True)
    shards: list[Shard] = []
    n_documents = n_windows = 0
    documents = []
    for part in parts:
        copied, n_part_windows = _copied(out, part, len(shards), n_documents, n_windows)
        shards += copied
        documents.append(_shifted(part.documents, {"doc_id": n_documents}))
        n_documents += int(part.documents["doc_id"].to_numpy().max()) + 1
        n_windows += n_part_windows
    write_parquet(out / "documents.parquet", pl.concat(documents).rechunk())
    _write_tables(out, parts)
    notes: Counter[str] = Counter()
    for part in parts:
        notes.update(part.manifest.notes)
    tables = [*sorted(out.glob("*.parquet")), *sorted((out / "statistics").glob("*.parquet"))]
    finished = replace(
        manifest,
        shards=tuple(shards),
        files={str(file.relative_to(out)): sha256_of(file) for file in tables},
        complete=True,
        notes=dict(notes),
        package_version=__version__,
    )
    write_manifest(out, finished)
    return finished


def _copied(
    out: Path, part: _Part, n_shards: int, n_documents: int, n_windows: int
) -> tuple[list[Shard], int]:
    """Copy a run's tokens under new numbers; give its shards and the window numbers it took."""
    known = {f"tokens/{shard.name}.parquet": shard for shard in part.manifest.shards}
    shards, n_taken = [], 0
    for at, file in enumerate(token_files(part.path), start=n_shards):
        frame = read_parquet(file)
        ids = frame["window_id"].to_numpy()
        n_taken = max(n_taken, int(ids.max()) + 1 if len(ids) else 0)
        shifted = _shifted(frame, {"doc_id": n_documents, "window_id": n_windows})
        name = f"tokens/{at:05d}.parquet"
        write_parquet(out / name, shifted)
        same = known.get(f"tokens/{file.name}")
        windows = same.n_windows if same else len(np.unique(ids))
        shards.append(Shard(f"{at:05d}", len(frame), windows, {name: sha256_of(out / name)}))
    return shards, n_taken


def _shifted(frame: pl.DataFrame, by: dict[str, int]) -> pl.DataFrame:
    """Raise ids; polars would let 32 bits overflow."""
    for name, n in by.items():
        most: Any = frame[name].max()
        if (most or 0) + n >= 1 << 32:
            raise StoreError(f"the runs hold 2^32 different {name} or more; merge fewer of them")
    return frame.with_columns((pl.col(name) + n).cast(pl.UInt32) for name, n in by.items())


def _write_tables(out: Path, parts: Sequence[_Part]) -> None:
    vocabulary = read_vocabulary(parts[0].path)
    effects = next((p.path for p in parts if (p.path / LOGIT_EFFECTS).is_file()), None)
    top = None if effects is None else read_parquet(effects / LOGIT_EFFECTS)
    with TemporaryDirectory(prefix=".", dir=out) as scratch:
        folders = [_sums(part, Path(scratch) / str(at)) for at, part in enumerate(parts)]
        add_up(folders, out / "statistics")
    sums = statistics.load(out / "statistics", pairs=False)
    write_parquet(out / "vocabulary.parquet", vocabulary)
    if top is not None:
        write_parquet(out / LOGIT_EFFECTS, top)
    table = features_table(sums, vocabulary, top)
    write_parquet(out / "features.parquet", table.rechunk())


def _sums(part: _Part, scratch: Path) -> Path:
    """Give the folder of a run's sums; where it has none, they are counted into another one."""
    if statistics.is_saved(part.path / "statistics"):
        return part.path / "statistics"
    tokens = read_tokens(part.path, held_out=False)
    found = statistics.collect(tokens, part.manifest.d_sae, part.manifest.d_vocab)
    statistics.save(found, scratch)
    return scratch
