"""One pass: text -> model -> dictionary -> a run directory of tokens, features and sums.

1. The texts are planned (names and sizes), and all settings are compared with what the run
   directory holds.
2. Documents become windows; a fixed number of windows is a shard; finished shards are never
   computed again.
3. For each shard the model runs to the hook point, the dictionary encodes, each firing feature is
   credited with the nats it gave to the token that really came; tokens are written, then the
   manifest.
4. Shards are counted many at once; at the end the sums are added up. The same input and settings
   give the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from sae_core import statistics
from sae_core.corpus import plan_documents
from sae_core.errors import StoreMismatchError, TextError
from sae_core.feature_table import features_table
from sae_core.files import DirectoryLock, read_parquet, sha256_of, write_parquet
from sae_core.gather_memory import room_of
from sae_core.language_model import LanguageModel, check_fits, load_model
from sae_core.logits import LogitEffects
from sae_core.output import open_manifest, refuse_foreign
from sae_core.repair import Repair, refuse_damaged
from sae_core.run_writer import vocabulary_frame
from sae_core.running_sums import RunningSums
from sae_core.sae import SparseAutoencoder, load_sae
from sae_core.schema import GatherSettings
from sae_core.shards import ShardWriter
from sae_core.store import (
    DOCUMENT_SCHEMA,
    PARTS,
    Manifest,
    read_documents,
    read_manifest,
    write_manifest,
)
from sae_core.window_stream import WindowRow, batched, iter_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from sae_core.corpus import DocumentPlan

SHARD_WINDOWS = (
    512  # about 100,000 tokens: a crash loses seconds, and a table of 10^7 tokens has 100 files
)
WARM_UP_SHARE = 0.25  # of n_ctx: context is back, and a quarter more work
HALF = 0.5  # a larger held-out share is meant; with a smaller one, chance took the few documents


@dataclass(frozen=True)
class GatherResult:
    """What a gather did."""

    run: Path
    """The run directory."""

    n_tokens: int
    """Tokens recorded in it."""

    n_documents: int
    """Documents in it."""

    n_new_tokens: int
    """Tokens computed by this call; 0 when it was complete before."""

    notes: dict[str, int]
    """What was skipped or odd: empty files, duplicates, invalid UTF-8."""

    sentences: tuple[str, ...] = ()
    """The same in words, unfinished files by name; none when the run was complete before."""


def gather(
    texts: Sequence[str | PathLike[str]],
    *,
    out: str | PathLike[str],
    model: LanguageModel | str | None = None,
    sae: SparseAutoencoder | str = "A/0",
    hook_point: str | None = None,
    max_tokens: int | None = None,
    held_out: float = 0.2,
    keep_acts: bool = True,
    force: bool = False,
    skip_bad_rows: bool = False,
    repair: bool = False,
    memory: int | None = None,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> GatherResult:
    """Read texts with a model and a dictionary into a run directory.

    Args:
        texts: files, folders, globs or "-".
        out: the run directory; an unfinished one of the same settings is continued.
        model: a loaded model, its name or folder; None is the embedded one.
        sae: a loaded dictionary, its name or folder; "neurons" takes the raw neurons.
        hook_point: where the dictionary reads; None takes the place it was made for.
        max_tokens: stop after this many tokens.
        held_out: share of the documents set aside for scoring, in [0, 1), by hash of their text.
        keep_acts: write activations beside the sums; automata need them.
        force: replace a run of other settings.
        skip_bad_rows: count and skip unreadable rows of JSONL and Parquet inputs.
        repair: compute those files of a run again that are not as they were written, and no others.
        memory: bytes that the process may take in all; None leaves it to the machine. Fewer tokens
            are then counted at once, to the same bytes.
        progress: is called with the bytes of text read so far, after each shard.
        say: is told one line, what memory is there, before the work.

    Returns:
        What was done.

    Raises:
        TextError: nothing to read.
        ModelError, SaeError: model, dictionary and hook point do not fit, or the memory does not
            suffice.
        StoreError: `out` is not ours, locked, damaged, or of other settings.
        ValueError: held_out is no share, or both `force` and `repair` are asked for.
    """
    if force and repair:
        raise ValueError("a run is replaced (force) or repaired (repair), not both; choose one")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be in [0, 1), got {held_out}")
    plan = plan_documents([str(text) for text in texts], skip_bad_rows=skip_bad_rows)
    reader = load_model(model) if model is None or isinstance(model, str) else model
    dictionary = load_sae(sae, model=reader) if isinstance(sae, str) else sae
    at = check_fits(reader, dictionary, hook_point)
    settings = GatherSettings(
        model=reader.name,
        model_hash=reader.weights_hash,
        tokenizer_hash=_hash_tokens(reader.vocabulary),
        sae=dictionary.name,
        sae_hash=dictionary.weights_hash,
        hook_point=str(at),
        d_sae=dictionary.config.d_sae,
        d_vocab=reader.d_vocab,
        n_ctx=reader.n_ctx,
        warm_up=int(reader.n_ctx * WARM_UP_SHARE),
        held_out=held_out,
        max_tokens=max_tokens,
        keep_acts=keep_acts,
        documents_hash=plan.hash,
    )
    run = Path(out)
    refuse_foreign(run)
    if repair:
        read_manifest(run)  # one that is not there is not begun
    with DirectoryLock(run):
        manifest = open_manifest(run, settings, force=force)
        if manifest.complete and not repair:
            return _result(run, manifest, 0)
        effects = LogitEffects.of(reader, dictionary)
        room = room_of(memory, settings.d_sae, say or (lambda _: None))
        sums = RunningSums(run, settings, room)
        worker = _Gatherer(
            plan,
            ShardWriter(run, settings, model=reader, sae=dictionary, effects=effects, sums=sums),
        )
        if repair:
            return worker.repair(manifest, progress)
        refuse_damaged(run)
        return worker.work(manifest, worker.windows(), progress)


class _Gatherer:
    """The work on one run: everything that a shard needs, loaded once."""

    def __init__(self, plan: DocumentPlan, shards: ShardWriter) -> None:
        self.plan = plan
        self.shards = shards
        self.run = shards.run
        self.settings = shards.settings
        self.model = shards.model
        self.effects = shards.effects
        self.sums = shards.sums

    def repair(self, manifest: Manifest, progress: Callable[[int], None] | None) -> GatherResult:
        """Make what is damaged again; then go on, where the run is not finished."""
        done = Repair(self.run, manifest, self.shards, self._write_tables).work(self.windows())
        result = (
            _result(self.run, manifest, 0)
            if manifest.complete
            else self.work(manifest, self.windows(), progress)
        )
        said = tuple(f"{self.run / file} was damaged, and is whole again." for file in done.files)
        n_new = result.n_new_tokens + done.n_tokens
        return replace(result, n_new_tokens=n_new, sentences=(*said, *result.sentences))

    def work(
        self,
        manifest: Manifest,
        windows: Iterator[WindowRow],
        progress: Callable[[int], None] | None,
    ) -> GatherResult:
        """Compute the missing shards of a stream of windows, then the sums."""
        n_before = sum(shard.n_tokens for shard in manifest.shards)
        done = sum(shard.n_windows for shard in manifest.shards)
        if sum(1 for _ in islice(windows, done)) < done:
            raise StoreMismatchError(f"{self.run} has more text than the inputs; use --force")
        self.sums.restore([shard.name for shard in manifest.shards])
        for batch in batched(windows, SHARD_WINDOWS):
            shard = self.shards.write(f"{len(manifest.shards):05d}", batch)
            manifest = replace(manifest, shards=(*manifest.shards, shard))
            write_manifest(self.run, manifest)
            if progress:
                progress(self.plan.counts.n_bytes)
        if not manifest.shards:
            raise TextError("the inputs hold no text; give files with at least one token")
        manifest = self._finish(manifest)
        n_new = sum(shard.n_tokens for shard in manifest.shards) - n_before
        result = _result(self.run, manifest, n_new)
        return replace(result, sentences=(*self.plan.counts.sentences(), *self._warnings()))

    def _warnings(self) -> list[str]:
        held_out = read_documents(self.run)["held_out"]
        if not held_out.all() or self.settings.held_out > HALF:
            return []
        return ["Every document is held out, so nothing is counted; give more, or --held-out 0"]

    def windows(self) -> Iterator[WindowRow]:
        """Tokenise the documents of the plan."""
        has_start = self.model.start_token is not None
        return iter_windows(
            self.plan.read(),
            self.model.encode,
            n_first=self.settings.n_ctx - has_start,
            n_ctx=self.settings.n_ctx,
            warm_up=self.settings.warm_up,
            held_out=self.settings.held_out,
            max_tokens=self.settings.max_tokens,
        )

    def _finish(self, manifest: Manifest) -> Manifest:
        parts = [self.run / PARTS / shard.name for shard in manifest.shards]
        documents = [read_parquet(part / "documents.parquet") for part in parts]
        shutil.rmtree(self.run / "statistics", ignore_errors=True)
        self.sums.save(self.run / "statistics")
        self._write_tables(self.run, documents)
        tables = [self.run.glob("*.parquet"), (self.run / "statistics").glob("*.parquet")]
        digests = {
            str(file.relative_to(self.run)): sha256_of(file)
            for group in tables
            for file in sorted(group)
        }
        shards = tuple(
            replace(
                shard, sha256={k: v for k, v in shard.sha256.items() if k.startswith("tokens/")}
            )
            for shard in manifest.shards
        )
        notes = self.plan.counts.notes()
        finished = replace(manifest, shards=shards, files=digests, complete=True, notes=notes)
        write_manifest(self.run, finished)
        shutil.rmtree(self.run / PARTS, ignore_errors=True)
        return finished

    def _write_tables(self, folder: Path, documents: list[pl.DataFrame]) -> None:
        """Write the other tables of the whole run, from the documents of each shard and the sums."""
        sums = statistics.load(folder / "statistics", pairs=False)
        vocabulary = vocabulary_frame(self.model.vocabulary)
        top = self.effects.top_tokens(vocabulary)
        tables = {
            "documents": _merge_documents(documents),
            "vocabulary": vocabulary,
            "logit_effects": top,
            "features": features_table(sums, vocabulary, top),
        }
        for name, table in tables.items():
            write_parquet(folder / f"{name}.parquet", table)


def _result(run: Path, manifest: Manifest, n_new: int) -> GatherResult:
    documents = len(read_documents(run))
    n_tokens = sum(shard.n_tokens for shard in manifest.shards)
    return GatherResult(run, n_tokens, documents, n_new, dict(manifest.notes))


def _hash_tokens(vocabulary: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for token in vocabulary:
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def _merge_documents(parts: list[pl.DataFrame]) -> pl.DataFrame:
    order = list(DOCUMENT_SCHEMA)
    others = [name for name in order if name not in {"doc_id", "n_tokens"}]
    merged = pl.concat(parts).group_by("doc_id", maintain_order=True)
    firsts = [pl.col(name).first() for name in others]
    return merged.agg(*firsts, pl.col("n_tokens").sum()).select(order).sort("doc_id")
