"""The folder a run is written to: new, ours and of the same settings, or refused.

1. A file, or a folder that holds something else, is never touched.
2. A run of the same settings is gone on with; of other settings, the field that differs is named.
3. With `force` a run, and only a run, is replaced whole. Its manifest goes first, so that a crash
   leaves no manifest that names what is gone; what is left of the old run then goes with the next
   call.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

from sae_core import __version__
from sae_core.errors import StoreError, StoreMismatchError
from sae_core.files import LOCK_NAME
from sae_core.store import MANIFEST, PARTS, Manifest, is_run, read_manifest, write_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sae_core.schema import GatherSettings

LATER = ("statistics", "graph", "automata", "truth")  # made from a finished run
NAMES = frozenset({"model", "sae"})  # names are for people; the hashes decide


def refuse_foreign(run: Path) -> None:
    """Refuse a path that is a file, or a folder that holds something but no run.

    Raises:
        StoreError: it is.
    """
    if run.exists() and not run.is_dir():
        raise StoreError(f"{run} is a file; choose a folder with -o")
    if run.is_dir() and not is_run(run) and not all(map(_is_leftover, run.iterdir())):
        raise StoreError(f"{run} holds files that are no run; choose another folder with -o")


def open_manifest(run: Path, settings: GatherSettings, *, force: bool) -> Manifest:
    """Give the manifest of a run of these settings; a new one is written where there is none.

    Args:
        run: the run directory, locked.
        settings: as asked for now.
        force: replace what is there.

    Raises:
        StoreMismatchError: the run was made with other settings.
        StoreError: its manifest is damaged.
    """
    fresh = Manifest(
        d_sae=settings.d_sae,
        d_vocab=settings.d_vocab,
        settings=asdict(settings),
        complete=False,
        package_version=__version__,
    )
    for stray in run.rglob("*.tmp"):  # half files of a writer that was killed
        stray.unlink()
    if is_run(run) and not force:
        found = read_manifest(run)
        _refuse_other(run, found.settings, fresh.settings)
        if not found.complete:
            _remove_unnamed(run, found)
        return found
    had_run = is_run(run)
    write_manifest(run, fresh)
    if had_run:
        for path in run.iterdir():
            if path.name not in {LOCK_NAME, MANIFEST}:
                _remove(path)
    return fresh


def differing(found: Mapping[str, object], wanted: Mapping[str, object]) -> str | None:
    """Name the first setting that two runs do not share; None when all that counts is equal."""
    names = (name for name in wanted if name not in NAMES)
    return next((name for name in names if found.get(name) != wanted[name]), None)


def _refuse_other(run: Path, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    name = differing(found, wanted)
    if name is not None:
        raise StoreMismatchError(
            f"{run} was made with {name} {found.get(name)!r}, now {wanted[name]!r} is asked for; "
            "choose another folder with -o, or replace it with --force"
        )


def _remove_unnamed(run: Path, manifest: Manifest) -> None:
    """Remove what an unfinished run cannot have yet: it is of one that was being replaced."""
    for path in [*(run / name for name in LATER), *run.glob("*.parquet")]:
        _remove(path)
    named = {shard.name for shard in manifest.shards}
    for path in [*(run / "tokens").glob("*.parquet"), *(run / PARTS).glob("*")]:
        if path.stem not in named:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """Say whether a file may be what a writer left that was killed before its first manifest."""
    is_half = path.name.startswith(MANIFEST) and path.suffix == ".tmp"
    return path.name == LOCK_NAME or is_half
