"""How much memory is free, by what the kernel tells, and how many rows of a batch fit into it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import shell

from sae_core.errors import SaeError
from sae_core.memory import Free, free_memory, refuse_less
from sae_core.train_memory import LEAST_ROWS, block_bytes, rows_that_fit, training_need
from sae_core.train_settings import TrainSaeConfig

if TYPE_CHECKING:
    from pathlib import Path

KILOBYTE, MEGABYTE = 1 << 10, 10**6
HELD = 80 << 20
SECOND = ("", "max", "current", "inactive_file")  # names of control groups, by version
PAGE_FAULTS = """
import resource, sys
import numpy as np
from sae_core.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 24)  # 128 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
FIRST = ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 1,000 kB available, and 24 kB of swap."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 1000 kB\nSwapFree: 24 kB\n")
    (folder / "self" / "cgroup").write_text("0::/outer/own\n4:memory:/outer/own\n3:cpu:/a\n")
    return folder


def limited(groups: Path, name: str, kind: tuple[str, ...], most: str, used: int) -> None:
    """Make a control group that could drop 100 bytes of what it uses."""
    group = groups / kind[0] / name
    group.mkdir(parents=True, exist_ok=True)
    (group / f"memory.{kind[1]}").write_text(f"{most}\n")
    (group / f"memory.{kind[2]}").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\n{kind[3]} 100\n")


def test_without_limits_the_machine_decides(proc: Path, tmp_path: Path) -> None:
    assert free_memory(proc, tmp_path) == Free(1024 * KILOBYTE, "this machine")


def test_where_the_kernel_does_not_tell_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None


@pytest.mark.parametrize("kind", [FIRST, SECOND])
def test_a_control_group_counts_and_those_around_it(
    proc: Path, tmp_path: Path, kind: tuple[str, ...]
) -> None:
    groups = tmp_path / "groups"
    limited(groups, "outer/own", kind, "9000", 3000)
    own = groups / kind[0] / "outer" / "own"
    assert free_memory(proc, groups) == Free(6100, f"the limit of the control group {own}")
    limited(groups, "outer", kind, "4000", 3000)
    assert free_memory(proc, groups) == Free(1100, f"the limit of the control group {own.parent}")
    limited(groups, "outer", kind, "2000", 3000)
    found = free_memory(proc, groups)
    assert found is not None
    assert found.n_bytes == 0


def test_a_group_without_a_limit_does_not_count(proc: Path, tmp_path: Path) -> None:
    limited(tmp_path / "groups", "outer/own", SECOND, "max", 3000)
    assert free_memory(proc, tmp_path / "groups") == Free(1024 * KILOBYTE, "this machine")


def test_too_much_is_refused_without_taking_it() -> None:
    refuse_less(HELD)
    with pytest.raises(MemoryError):
        refuse_less(1 << 60)


def config(**changes: Any) -> TrainSaeConfig:
    settings: dict[str, Any] = {"d_in": 64, "d_sae": 4096, "k": 4, "n_activations": 1 << 16}
    return TrainSaeConfig(**settings | changes)


def test_ample_memory_lets_all_rows_through() -> None:
    need, said = training_need([config()], n_block=0), list[str]()
    assert rows_that_fit(need, Free(10**12, "this machine"), said.append) == 2048
    assert rows_that_fit(need, None, said.append) == 2048
    n = f"about {need.total(2048) / 1e6:,.0f} MB of memory is needed"
    assert said == [f"{n}, this machine leaves 1,000,000 MB", n]


def test_less_memory_lets_fewer_rows_through_and_says_so() -> None:
    need, said = training_need([config()], n_block=MEGABYTE), list[str]()
    n_rows = rows_that_fit(need, Free(need.total(500), "the jail"), said.append)
    assert n_rows == 500
    assert "the jail leaves" in said[0]
    assert said[0].endswith("500 rows of a batch at a time instead of 2048, with the same result "
                            "up to rounding")  # fmt: skip


def test_too_little_memory_is_refused_with_both_numbers() -> None:
    need = training_need([config()], n_block=10 * MEGABYTE)
    least = need.total(LEAST_ROWS)
    assert rows_that_fit(need, Free(least, "the jail"), [].append) == LEAST_ROWS
    match = rf"needs {least / 1e6:,.0f} MB of memory at the least, and the jail leaves .* MB; take"
    with pytest.raises(SaeError, match=match):
        rows_that_fit(need, Free(least - 1, "the jail"), [].append)


def test_a_small_batch_goes_through_whole_or_not_at_all() -> None:
    need = training_need([config(batch_size=64)], n_block=0)
    assert rows_that_fit(need, Free(need.total(64), "the jail"), [].append) == 64
    with pytest.raises(SaeError, match="nothing was begun"):
        rows_that_fit(need, Free(need.total(64) - 1, "the jail"), [].append)


def test_several_in_one_pass_take_the_sum_but_for_what_passes() -> None:
    one, two = (training_need([config()] * n, n_block=7) for n in (1, 2))
    assert two.lasting - 7 == 2 * (one.lasting - 7)
    assert (two.a_row, two.passing) == (2 * one.a_row, one.passing)


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        # Six tensors of 131,072 x 512 float32, and as much twice over for a checkpoint
        ({"d_in": 512, "d_sae": 131_072}, 3 * 1_610 * MEGABYTE, 8_000 * MEGABYTE),
        ({"d_in": 512}, 3 * 50 * MEGABYTE, 300 * MEGABYTE),
    ],
)
def test_the_estimate_counts_weights_moments_and_copies(
    changes: dict[str, Any], least: int, most: int
) -> None:
    need = training_need([config(**changes)], n_block=0)
    assert least < need.total(need.n_rows) < most


@pytest.mark.parametrize("variant", ["l1", "jumprelu"])
def test_where_half_of_all_fires_at_first_more_is_needed(variant: str) -> None:
    cost = {"l1": "l1_coefficient", "jumprelu": "l0_coefficient"}[variant]
    dense = training_need([config(variant=variant, k=None, **{cost: 0.1})], n_block=0)
    assert dense.total(256) > 2 * training_need([config()], n_block=0).total(256)


def test_a_block_is_counted_by_its_windows() -> None:
    few = config(block_windows=3)
    assert block_bytes(few, n_tokens=1000, n_ctx=16) == 4 * 3 * 16 * 64
    assert block_bytes(few, n_tokens=40, n_ctx=16) == 4 * 1 * 16 * 64


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be asked")
def test_freed_memory_that_is_kept_costs_no_new_pages() -> None:
    def n_faults(way: str) -> int:
        command = [sys.executable, "-c", PAGE_FAULTS, way]
        done = subprocess.run(
            command, env=shell.environment(), capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert n_faults("kept") < n_faults("given back") / 10
