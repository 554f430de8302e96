"""Memory of a gather: said before the work, kept within a limit, and never a matter of bytes."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import naive
import pytest
import shell
import tiny

import sae_core
from sae_core import gather_memory
from sae_core.counting import find_blocks
from sae_core.embedded import DEMO
from sae_core.errors import ModelError, StoreError
from sae_core.gather_memory import GROUP_ENTRIES, Room, room_of
from sae_core.memory import Free, taken_memory
from sae_core.running_sums import joined_tables
from sae_core.statistics import collect

if TYPE_CHECKING:
    from pathlib import Path

MEGABYTE = 10**6
AMPLE = Free(100_000 * MEGABYTE, "this machine")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process have taken 400 MB."""
    monkeypatch.setattr(gather_memory, "taken_memory", lambda: 400 * MEGABYTE)


def said_of(budget: int | None, free: Free | None) -> tuple[Room, str]:
    said: list[str] = []
    room = room_of(budget, 4096, said.append, free)
    assert len(said) == 1
    return room, said[0]


@pytest.mark.usefixtures("taken")
def test_what_is_taken_and_what_is_allowed_is_said_before_the_work() -> None:
    _, said = said_of(None, Free(4600 * MEGABYTE, "this machine"))
    assert said == (
        "pairs of features are counted a feature at a time; with the model and the dictionary 400 MB "
        "of memory are taken, about 1,144 MB are the least; this machine allows 5,000 MB"
    )
    room, said = said_of(1900 * MEGABYTE, AMPLE)
    assert said.endswith("; --memory allows 1,900 MB")
    assert room.limit == Free(1900 * MEGABYTE, "--memory")


def test_small_dictionaries_are_counted_in_a_square() -> None:
    said: list[str] = []
    room_of(None, 512, said.append, AMPLE)
    assert said[0].startswith("pairs of features are counted in a square of 512 x 512; ")


@pytest.mark.usefixtures("taken")
def test_the_machine_sets_the_limit_where_it_has_less_than_is_allowed() -> None:
    room, _ = said_of(5000 * MEGABYTE, Free(1800 * MEGABYTE, "this machine"))
    assert room.limit == Free(2200 * MEGABYTE, "this machine")


@pytest.mark.usefixtures("taken")
def test_a_limit_below_the_least_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ModelError, match=r"1,144 MB are the least, and --memory allows 450 MB; allow"
    ):
        said_of(450 * MEGABYTE, AMPLE)


@pytest.mark.usefixtures("taken")
def test_fewer_features_wait_under_a_limit_the_more_rows_come_of_them() -> None:
    tokens = naive.random_tokens(0)
    counted = collect(tokens, 7, 5)
    tight, ample = (Room(Free(n * MEGABYTE, "--memory")) for n in (805, 100_000))
    for room in (tight, ample):
        assert not room.is_told
        room.learn(counted, len(tokens.features))
        assert room.is_told
    assert tight.n_entries(0) * counted.n_bytes / len(tokens.features) < 100 * MEGABYTE
    assert 0 < tight.n_entries(0) < ample.n_entries(0) == GROUP_ENTRIES
    assert Room(Free(555 * MEGABYTE, "--memory")).n_rows() < ample.n_rows()
    before = tight.n_entries(0)
    tight.learn(counted, len(tokens.features) // 2)
    assert tight.n_entries(0) < before


@pytest.mark.usefixtures("taken")
def test_what_does_not_fit_is_counted_in_pieces_and_refused_where_nothing_is_left() -> None:
    counted = collect(naive.random_tokens(0), 7, 5)
    room, full = (Room(Free(n * MEGABYTE, "--memory")) for n in (755, 515))
    for one in (room, full):
        one.learn(counted, 300)
    assert room.n_at_once(room.n_entries(0)) == room.n_entries(0)
    assert 0 < room.n_at_once(1 << 22) == room.n_at_once(1 << 24) < 1 << 22
    assert full.n_at_once(0) == 0
    with pytest.raises(StoreError, match=r"10 MB of memory are left for counting, --memory allows"):
        full.n_at_once(1 << 22)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000])
def test_pieces_end_with_windows_and_are_all_of_the_tokens(n: int) -> None:
    tokens = naive.random_tokens(0)
    pieces = find_blocks(tokens, len(tokens.features) // n)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == len(tokens.doc_ids)
    assert not any(naive.joined(tokens, piece.stop - 1, 1) for piece in pieces)
    assert len(pieces) > 1 or n == 1
    again = joined_tables([naive.part(tokens, piece.start, piece.stop) for piece in pieces])
    for column, whole in zip(again, tokens, strict=True):
        assert column.tolist() == whole.tolist()


def test_a_limit_changes_no_byte_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae = tiny.write_model(tmp_path / "model"), tmp_path / "sae"
    shell.write_sae(sae)
    text = tmp_path / "text.html"
    shell.write_text(text, 600)
    common = {"model": str(model), "sae": str(sae)}
    sae_core.gather([text], out=tmp_path / "ample", **common)
    monkeypatch.setattr(gather_memory, "LEAST", 0)
    monkeypatch.setattr(gather_memory, "A_FEATURE", 0)
    monkeypatch.setattr(Room, "n_entries", lambda *_: 1)  # each shard is counted by itself
    monkeypatch.setattr(Room, "n_at_once", lambda _, n: n // 3)
    monkeypatch.setattr(Room, "n_rows", lambda _: 9)
    sae_core.gather([text], out=tmp_path / "tight", memory=taken_memory() * 2, **common)
    assert shell.digests(tmp_path / "tight") == shell.digests(tmp_path / "ample")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from Linux")
def test_a_gather_stays_below_its_limit(tmp_path: Path) -> None:
    """Of a dictionary whose counts take several times as much when nothing limits them."""
    code = (
        "import sys, resource, sae_core\n"
        "given = {'memory': int(sys.argv[3])} if len(sys.argv) > 3 else {}\n"
        "sae_core.gather(sys.argv[1:2], out=sys.argv[2], sae='A/1', **given)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)\n"
    )

    def peak(*words: str) -> int:
        command = [sys.executable, "-c", code, str(DEMO / "sample.parquet"), *words]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    limit = 1250 * MEGABYTE
    tight, ample = tmp_path / "tight", tmp_path / "ample"
    assert peak(str(tight), str(limit)) <= limit < peak(str(ample))
    assert shell.digests(tight) == shell.digests(ample)


@pytest.mark.parametrize("size", ["0", "much", "-1G", "1X"])
def test_a_size_that_is_none_is_wrong_usage(tmp_path: Path, size: str) -> None:
    done = shell.invoke("gather", tmp_path, "-o", tmp_path / "run", f"--memory={size}")
    assert done.exit_code == 2
    assert re.search(rf"'{size}' is not a size, such as 800M or 2G", done.output)
    assert not (tmp_path / "run").exists()
