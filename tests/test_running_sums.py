"""Sums of a growing run do not depend on how many shards are counted at once, nor on a crash."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING

import naive
import numpy as np
import polars as pl
import pytest
import shell

from sae_core import gather_memory, running_sums, statistics
from sae_core.running_sums import PARTS, RunningSums
from sae_core.schema import GatherSettings
from sae_core.store import write_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from sae_core.schema import TokenTable

D_SAE, D_VOCAB = 7, 5


def settings(*, keep_acts: bool) -> GatherSettings:
    blank = dict.fromkeys((field.name for field in fields(GatherSettings)), "")
    sizes = {"d_sae": D_SAE, "d_vocab": D_VOCAB, "keep_acts": keep_acts}
    return GatherSettings(**(blank | sizes))  # type: ignore[arg-type]


def shards_of(tokens: TokenTable) -> dict[str, TokenTable]:
    """Cut a stream at its documents, each a shard."""
    bounds = [0, *naive.cuts(tokens), len(tokens.doc_ids)]
    parts = [naive.part(tokens, a, b) for a, b in pairwise(bounds)]
    return {f"{at:05d}": part for at, part in enumerate(parts)}


def write_shard(run: Path, name: str, tokens: TokenTable, *, keep_acts: bool) -> None:
    """Write a shard as gather does, with a document of its own that is held out."""
    out = tokens._replace(doc_ids=np.full(len(tokens.doc_ids), 99, np.uint32))
    both = running_sums.joined_tables([tokens, out]) if keep_acts else tokens
    write_tokens(run / f"tokens/{name}.parquet", both, keep_acts=keep_acts)
    (run / PARTS / name).mkdir(parents=True)
    rows = {"doc_id": [int(tokens.doc_ids[0]), 99], "held_out": [False, True]}
    pl.DataFrame(rows).write_parquet(run / PARTS / name / "documents.parquet")


@pytest.mark.parametrize("keep_acts", [True, False])
@pytest.mark.parametrize("group_entries", [1, 150, 1 << 20])
def test_sums_are_those_of_the_whole_stream_after_a_crash_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_entries: int, *, keep_acts: bool
) -> None:
    monkeypatch.setattr(gather_memory, "GROUP_ENTRIES", group_entries)
    tokens = naive.random_tokens(0, n_docs=6)
    statistics.save(statistics.collect(tokens, D_SAE, D_VOCAB), tmp_path / "whole")
    shards = shards_of(tokens)
    assert len(shards) == 6
    sums = RunningSums(tmp_path, settings(keep_acts=keep_acts))
    for at, (name, part) in enumerate(shards.items()):
        write_shard(tmp_path, name, part, keep_acts=keep_acts)
        sums.add(name, part)
        again = RunningSums(tmp_path, settings(keep_acts=keep_acts))  # as after a crash
        again.restore(list(shards)[: at + 1])
        sums = again if at % 2 else sums
        for found in (sums, again):
            found.save(tmp_path / "found")
            done = naive.part(
                tokens, 0, sum(len(p.doc_ids) for p in list(shards.values())[: at + 1])
            )
            statistics.save(statistics.collect(done, D_SAE, D_VOCAB), tmp_path / "done")
            assert shell.digests(tmp_path / "found") == shell.digests(tmp_path / "done")
    assert shell.digests(tmp_path / "found") == shell.digests(tmp_path / "whole")
