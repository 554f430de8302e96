"""Memory of a gather: said before the work, kept within a budget, and never a matter of bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import shell
import tiny

import sae_core
from sae_core.errors import ModelError
from sae_core.gather_memory import READING, GatherNeed, entries_at_once, gather_need
from sae_core.memory import Free, taken_memory

if TYPE_CHECKING:
    from pathlib import Path

MEGABYTE = 10**6
NEED = GatherNeed(there=300 * MEGABYTE, an_entry=100, n_least=1_000_000, n_most=8_000_000)


def said_of(budget: int | None, free: Free | None, d_sae: int = 4096) -> tuple[int, str]:
    said: list[str] = []
    n = entries_at_once(NEED, d_sae=d_sae, budget=budget, say=said.append, free=free)
    assert len(said) == 1
    return n, said[0]


def test_with_ample_memory_as_many_features_are_counted_at_once_as_is_usual() -> None:
    n, said = said_of(None, Free(5000 * MEGABYTE, "this machine"))
    assert n == NEED.n_most
    assert said == (
        "gathering takes about 1,205 MB of memory, counts in sorted rows; this machine allows "
        "5,300 MB"
    )


def test_small_dictionaries_are_counted_in_a_square() -> None:
    _, said = said_of(None, Free(5000 * MEGABYTE, "this machine"), d_sae=512)
    assert "counts in a square of 512 x 512 counters" in said


def test_within_a_budget_fewer_are_counted_at_once_and_all_of_it_stays_below() -> None:
    n, said = said_of(900 * MEGABYTE, Free(5000 * MEGABYTE, "this machine"))
    assert NEED.n_least <= n < NEED.n_most
    assert NEED.total(n) <= 900 * MEGABYTE < NEED.total(n + 1)
    assert said.endswith(
        f"--memory allows 900 MB: {n:,} firing features are counted at once instead of 8,000,000, "
        "with the same result"
    )


def test_the_machine_sets_the_limit_where_it_has_less_than_the_budget() -> None:
    _, said = said_of(10**12, Free(500 * MEGABYTE, "this machine"))
    assert "this machine allows 800 MB: " in said


def test_a_budget_below_the_least_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ModelError, match=r"505 MB of memory at the least, and --memory allows 450 MB; take a small"
    ):
        said_of(450 * MEGABYTE, None)


def test_need_grows_with_text_up_to_what_is_counted_together() -> None:
    small, large = (
        gather_need(n, shard_tokens=1000, d_sae=512, k=4) for n in (10_000, 10_000_000_000)
    )
    assert small.n_most == 40_000
    assert (large.n_least, large.n_most) == (4000, 1 << 23)
    assert READING < taken_memory() < 100_000 * MEGABYTE


def test_a_budget_changes_no_byte_of_a_run(tmp_path: Path) -> None:
    model, sae = tiny.write_model(tmp_path / "model"), tmp_path / "sae"
    shell.write_sae(sae)
    text = tmp_path / "text.html"
    shell.write_text(text, 600)
    common = {"model": str(model), "sae": str(sae)}
    sae_core.gather([text], out=tmp_path / "ample", **common)
    said: list[str] = []
    allowed = taken_memory() + READING + 4 * MEGABYTE
    sae_core.gather([text], out=tmp_path / "tight", memory=allowed, say=said.append, **common)
    assert "--memory allows" in said[0]
    assert shell.digests(tmp_path / "tight") == shell.digests(tmp_path / "ample")


@pytest.mark.parametrize("size", ["0", "much", "-1G", "1X"])
def test_a_size_that_is_none_is_wrong_usage(tmp_path: Path, size: str) -> None:
    done = shell.invoke("gather", tmp_path, "-o", tmp_path / "run", f"--memory={size}")
    assert done.exit_code == 2
    assert re.search(rf"'{size}' is not a size, such as 800M or 2G", done.output)
    assert not (tmp_path / "run").exists()
