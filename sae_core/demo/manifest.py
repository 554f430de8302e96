"""What the corpus was made of: corpus.json, and seen.npy with the training documents' hashes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sae_core.demo.download import file_sha256

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sae_core.demo.packages import Mix, Package

FORMAT_VERSION = 1


def seen_hashes(train_docs: pl.DataFrame) -> NDArray[np.uint64]:
    """(n,) sorted first 8 bytes (big-endian) of the SHA-256 of each training document.

    Eight bytes: with a million texts looked up against 10^5 hashes a false hit has
    probability 10^11 / 2^64 < 10^-8.
    """
    prefixes = [int(digest[:16], 16) for digest in train_docs["sha256"]]
    return np.unique(np.array(prefixes, dtype=np.uint64))


def write_manifest(
    path: Path,
    *,
    packages: list[Package],
    docs: dict[str, pl.DataFrame],
    mix: Mix,
    seed: int,
    tokenizer: Path,
    licence_files: dict[str, str],
    sample: pl.DataFrame,
) -> None:
    """Write corpus.json.

    Args:
        path: file to write.
        packages: all packages of the recipe.
        docs: split -> table of its documents, as written beside its tokens.
        mix: the mix the corpus was made by.
        seed: its seed.
        tokenizer: tokenizer.json.
        licence_files: package -> its file in LICENSES, for packages in the sample.
        sample: the sample's table.
    """
    manifest = {
        "format_version": FORMAT_VERSION,
        "mix": dataclasses.asdict(mix),
        "seed": seed,
        "tokenizer_sha256": file_sha256(tokenizer),
        "splits": {split: _totals(table) for split, table in docs.items()},
        "families": _families(docs, mix),
        "packages": [_package(p, docs, licence_files) for p in packages],
        "sample": {
            "n_documents": len(sample),
            "n_bytes": int(sample["text"].bin.size().sum()),
            "packages": sorted(sample["package"].unique()),
        },
    }
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _totals(table: pl.DataFrame) -> dict[str, int]:
    return {
        "n_documents": len(table),
        "n_bytes": int(table["n_bytes"].sum()),
        "n_tokens": int(table["n_tokens"].sum()),
    }


def _families(docs: dict[str, pl.DataFrame], mix: Mix) -> dict[str, dict[str, float]]:
    both = pl.concat(docs.values())
    total = int(both["n_tokens"].sum())
    rows = {}
    for family, asked in mix.shares.items():
        totals = _totals(both.filter(pl.col("family") == family))
        share = round(totals["n_tokens"] / total, 5)
        rows[family] = {**totals, "share_of_tokens": share, "asked_share": asked}
    return rows


def _package(
    package: Package, docs: dict[str, pl.DataFrame], licence_files: dict[str, str]
) -> dict[str, object]:
    fields = ("name", "source", "version", "file", "sha256", "licence", "role")
    entry: dict[str, object] = {field: getattr(package, field) for field in fields}
    if package.role == "train":
        for split, table in docs.items():
            entry[split] = _totals(table.filter(pl.col("package") == package.name))
    if package.name in licence_files:
        entry["licence_file"] = licence_files[package.name]
    return entry
