"""Run the demo's text recipe: `python -m sae_core.demo.recipe STEP --cache DIR ...`.

Steps, each from the files of the one before, all in the cache folder:
download (packages), extract (documents), tokenizer, tokens (streams), sample (what
ships); `pages` writes pages of other packages to tune on or to score on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from sae_core.demo import download as download_step
from sae_core.demo import manifest
from sae_core.demo import mix as mix_step
from sae_core.demo import sample as sample_step
from sae_core.demo import tokenizer as tokenizer_step
from sae_core.demo.extract import Document, cut, extract_package, sample_files
from sae_core.demo.packages import (
    ROLES,
    Mix,
    load_mix,
    load_packages,
    load_sample_limits,
    load_tokenizer_caps,
)

SEED = 20221123  # any fixed number; changing it makes another corpus
HERE = Path(__file__).parent
TOKENIZER_FILE = "tokenizer.json"
DOCUMENTS_FILE = "documents.parquet"
SPLITS = ("train", "validation")
N_PAGES = 25  # per package: enough for a per-page vote, quick to run
PAGE_BYTES = (1_500, 60_000)  # pages a reader would look at
PARQUET_LEVEL = 9  # zstd; the cache is read more often than written


def main(argv: list[str] | None = None) -> int:
    """Run one step; messages go to stderr."""
    parser = argparse.ArgumentParser(prog="python -m sae_core.demo.recipe", description=__doc__)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--cache", type=Path, required=True, help="folder of all big files")
    parser.add_argument("--mix", default="large", help="name of a mix in packages.toml")
    parser.add_argument("--role", default="train", choices=ROLES, help="for download and pages")
    parser.add_argument("--newer", action="store_true", help="where a version is gone, today's")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(argv)
    STEPS[options.step](options)
    return 0


def run_download(options: argparse.Namespace) -> None:
    """Fetch, check and unpack the packages with `--role` (by default those to train on)."""
    for package in load_packages():
        if package.role == options.role:
            folder = options.cache / "downloads"
            file = download_step.download(package, folder, newer=options.newer)
            download_step.unpack(package, file, options.cache / "raw")
            found = package.version if file.name == package.file else f"as {file.name}"
            _say(f"{package.name} {found}: ok")


def run_extract(options: argparse.Namespace) -> None:
    """Write documents.parquet: all candidates, unique, with their split."""
    frame = mix_step.documents_frame(_documents(options))
    frame.write_parquet(
        options.cache / DOCUMENTS_FILE, compression="zstd", compression_level=PARQUET_LEVEL
    )
    sizes = frame.with_columns(pl.col("text").bin.size().alias("bytes"))
    for family, rows in sizes.group_by("family", maintain_order=True):
        _say(f"{family[0]}: {len(rows)} documents, {int(rows['bytes'].sum()) / 1e6:.2f} MB")


def run_tokenizer(options: argparse.Namespace) -> None:
    """Train the tokenizer on the documents and write tokenizer.json."""
    path = options.cache / TOKENIZER_FILE
    frame = pl.read_parquet(options.cache / DOCUMENTS_FILE)
    tokenizer = tokenizer_step.train_tokenizer(frame, load_tokenizer_caps(), options.seed)
    tokenizer_step.token_bytes(tokenizer)  # raises when the vocabulary is not byte-level
    tokenizer.save(str(path))
    _say(f"wrote {path}; next: tokens")


def run_tokens(options: argparse.Namespace) -> None:
    """Write {train,validation}.bin and their tables of documents."""
    folder, mix = _folder(options), load_mix(options.mix)
    frame = pl.read_parquet(options.cache / DOCUMENTS_FILE)
    tokenizer = Tokenizer.from_file(str(options.cache / TOKENIZER_FILE))
    frame = mix_step.count_tokens(frame, tokenizer)
    chosen = mix_step.choose_documents(frame, mix, options.seed)
    for split in SPLITS:
        stream = mix_step.token_stream(chosen, split, options.seed)
        stream.tokens.tofile(folder / f"{split}.bin")
        stream.docs.write_parquet(folder / f"{split}.docs.parquet", compression="zstd")
        _say(f"{split}: {len(stream.docs)} documents, {len(stream.tokens)} tokens")
    _report(chosen, mix)


def run_pages(options: argparse.Namespace) -> None:
    """Write HTML pages of packages with `--role`, sampled evenly; long ones are cut."""
    low, high = PAGE_BYTES
    for package in load_packages():
        if package.role != options.role:
            continue
        target = options.cache / options.role / package.name
        target.mkdir(parents=True, exist_ok=True)
        root = options.cache / "raw" / package.name
        rng = np.random.default_rng(options.seed)
        files = [p for p in sample_files(package.takes[0], root, rng) if p.stat().st_size >= low]
        pieces = [
            ("_".join(file.relative_to(root).parts[-3:-1]) + f"_{file.stem}_{i}.html", text)
            for file in files[:N_PAGES]
            for i, text in enumerate(cut(file.read_text("utf-8", "replace"), high))
        ]
        for name, text in pieces[:N_PAGES]:
            (target / name).write_text(text, encoding="utf-8")
        _say(f"{package.name}: {min(N_PAGES, len(pieces))} pages in {target}")


def run_sample(options: argparse.Namespace) -> None:
    """Write sample.parquet, LICENSES, corpus.json and seen.npy beside this file."""
    folder, mix = _folder(options), load_mix(options.mix)
    packages = [package for package in load_packages() if package.role == "train"]
    raw = options.cache / "raw"
    frame = pl.read_parquet(options.cache / DOCUMENTS_FILE)
    candidates = sample_step.held_out(frame, packages, raw, options.seed)
    sample = sample_step.choose_sample(candidates, load_sample_limits())
    sample.write_parquet(
        HERE / "sample.parquet", compression="zstd", compression_level=sample_step.ZSTD_LEVEL
    )
    used = [package for package in packages if package.name in set(sample["package"])]
    licence_files = sample_step.write_licences(used, raw, HERE / "LICENSES")
    docs = {split: _docs_with_bytes(folder, frame, split) for split in SPLITS}
    np.save(HERE / "seen.npy", manifest.seen_hashes(docs["train"]), allow_pickle=False)
    manifest.write_manifest(
        HERE / "corpus.json",
        packages=load_packages(),
        docs=docs,
        mix=mix,
        seed=options.seed,
        tokenizer=options.cache / TOKENIZER_FILE,
        licence_files=licence_files,
        sample=sample,
    )
    for (family,), rows in sample.group_by("family", maintain_order=True):
        n_bytes = int(rows["text"].bin.size().sum())
        _say(f"{family}: {len(rows)} documents, {n_bytes / 1e3:.0f} KB")


def _docs_with_bytes(folder: Path, frame: pl.DataFrame, split: str) -> pl.DataFrame:
    sizes = frame.select("sha256", pl.col("text").bin.size().alias("n_bytes"))
    docs = pl.read_parquet(folder / f"{split}.docs.parquet")
    return docs.join(sizes, on="sha256", how="left", maintain_order="left")


def _documents(options: argparse.Namespace) -> list[Document]:
    documents: list[Document] = []
    for package in load_packages():
        if package.role != "train":
            continue
        rng = np.random.default_rng([options.seed, len(documents)])
        root = options.cache / "raw" / package.name
        found = list(extract_package(package, root, rng))
        size = sum(len(document.text.encode()) for document in found)
        _say(f"{package.name}: {len(found)} documents, {size / 1e6:.2f} MB")
        documents += found
    return documents


def _report(chosen: pl.DataFrame, mix: Mix) -> None:
    total = int(chosen["n_tokens"].sum())
    for family, share in mix.shares.items():
        rows = chosen.filter(pl.col("family") == family)
        n_tokens = int(rows["n_tokens"].sum())
        n_bytes = int(rows["text"].bin.size().sum())
        _say(
            f"{family}: {n_tokens} tokens, {n_tokens / total:.2%} (asked {share:.2%}), "
            f"{n_bytes / max(1, n_tokens):.2f} bytes a token"
        )


def _folder(options: argparse.Namespace) -> Path:
    folder: Path = options.cache / options.mix
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


STEPS = {
    "download": run_download,
    "extract": run_extract,
    "tokenizer": run_tokenizer,
    "tokens": run_tokens,
    "pages": run_pages,
    "sample": run_sample,
}

if __name__ == "__main__":
    sys.exit(main())
