"""Held-out documents -> the sample that ships: one parquet file and its licences.

1. candidates: the corpus's own held-out documents, then more held-out pages of the same
   packages, none of them a near copy of a training document;
2. each family up to its KB of packages.toml, packages of a family in turn;
3. copyright texts of the packages used, and the common licences these refer to.
"""

from __future__ import annotations

import itertools
import lzma
import re
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sae_core.demo.extract import Document, extract_package
from sae_core.demo.mix import ShingleTable, split_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sae_core.demo.packages import Package

PAGE_BYTES = (4_000, 40_000)  # pages a reader would open; a longer one crowds out others
PAGES_PER_TAKE = 12  # more held-out pages of one package than this are never needed
WHOLE_FILE_FAMILIES = frozenset({"html", "c", "python", "web-code", "licence"})
COMMON_LICENCES = re.compile(r"/usr/share/common-licenses/([A-Za-z][\w.-]*[\w])")
COMPRESS_FROM_BYTES = 24_000  # keeps all texts together under 1 MB
README = """\
Copyright and licence texts of the packages whose text is in sample.parquet.

corpus.json names each package's file here ("licence_file"). Files ending in .xz are long
texts, compressed; common-licenses-* are the texts that Debian's copyright files refer to.

The sample holds the packages' text as it is, with these changes: pages over 200 KB are cut;
base64 strings are cut in pieces of 2-8 KB, some wrapped anew; users' hosts are removed from
IRC logs; recorded exchanges of PyGithub's tests are written as HTTP/1.1; sentences in other
scripts are taken out of their pages or message catalogues, each once; Hebrew is unpointed.
"""
ZSTD_LEVEL = 19  # written once, shipped often


def held_out(frame: pl.DataFrame, packages: list[Package], root: Path, seed: int) -> list[Document]:
    """Candidates for the sample, those of the corpus first.

    Args:
        frame: the corpus's documents, as made by `mix.documents_frame`.
        packages: packages that may be in the sample.
        root: folder of the unpacked packages.
        seed: orders the files.
    """
    table = ShingleTable()
    for text in frame["text"]:
        table.is_repeat(text)
    names = {package.name for package in packages if package.in_sample}
    rows = frame.filter((pl.col("split") == "validation") & pl.col("package").is_in(names))
    columns = ("family", "package", "licence", "source", "text")
    known = [
        Document(family, package, licence, source, text.decode())
        for family, package, licence, source, text in rows.select(columns).iter_rows()
    ]
    for package in packages:
        if package.name in names:
            rng = np.random.default_rng(seed)
            known += _more_pages(package, root / package.name, rng, table)
    return [document for document in known if _has_page_size(document)]


def choose_sample(candidates: list[Document], limits_kb: dict[str, int]) -> pl.DataFrame:
    """Candidates up to each family's limit, its packages in turn, sorted.

    Returns:
        Columns source ("family/package/name"), family, package, licence, text (bytes).
    """
    chosen: list[Document] = []
    for family, limit_kb in limits_kb.items():
        queues: dict[str, list[Document]] = {}
        for document in candidates:
            if document.family == family:
                queues.setdefault(document.package, []).append(document)
        left = limit_kb * 1000
        turns = itertools.chain.from_iterable(itertools.zip_longest(*queues.values()))
        for document in turns:
            if document is not None and len(document.text.encode()) <= left:
                left -= len(document.text.encode())
                chosen.append(document)
    rows = [
        (
            _source(document),
            document.family,
            document.package,
            document.licence,
            document.text.encode(),
        )
        for document in chosen
    ]
    schema = {
        "source": pl.String,
        "family": pl.String,
        "package": pl.String,
        "licence": pl.String,
        "text": pl.Binary,
    }
    return (
        pl.DataFrame(rows, schema=schema, orient="row")
        .unique("source", keep="first", maintain_order=True)
        .sort("source")
    )


def write_licences(packages: list[Package], root: Path, folder: Path) -> dict[str, str]:
    """Write the packages' copyright texts, each text once.

    Args:
        packages: packages in the sample.
        root: folder of the unpacked packages; base-files brings the common licences.
        folder: emptied and filled: README.txt, NAME.txt, or NAME.txt.xz for long ones.

    Returns:
        Package name -> file name; packages with the same text share one file.

    Raises:
        FileNotFoundError: a package brings no copyright text.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    files: dict[str, str] = {}
    written: dict[str, str] = {}
    common: set[Path] = set()
    for package in packages:
        text = _notices(package, root / package.name)
        folder_of_common = root / "base-files" / "usr/share/common-licenses"
        names = COMMON_LICENCES.findall(text)
        common.update((folder_of_common / name).resolve() for name in names)  # GPL is a link
        if text not in written:
            written[text] = _write_text(folder / f"{package.name}.txt", text)
        files[package.name] = written[text]
    for path in sorted(common):
        if path.exists():
            _write_text(folder / f"common-licenses-{path.name}.txt", path.read_text("utf-8"))
    (folder / "README.txt").write_text(README, encoding="utf-8")
    return files


def _more_pages(
    package: Package, root: Path, rng: np.random.Generator, table: ShingleTable
) -> Iterator[Document]:
    n_found = 0
    for document in extract_package(package, root, rng):
        is_whole = document.family in WHOLE_FILE_FAMILIES and "#" not in document.source
        text = document.text.encode()
        if not is_whole or not _has_page_size(document) or split_of(text) == "train":
            continue
        if not table.is_repeat(text):
            yield document
            n_found += 1
        if n_found == PAGES_PER_TAKE:
            return


def _has_page_size(document: Document) -> bool:
    low, high = PAGE_BYTES
    size = len(document.text.encode())
    return size <= high and (document.family != "html" or size >= low)


def _source(document: Document) -> str:
    """Name in the sample's tree: family, package, and the path's last two parts.

    >>> _source(Document("c", "linux", "GPL-2.0", "usr/include/linux/bpf.h", ""))
    'c/linux/linux/bpf.h'
    """
    name = "/".join(document.source.split("/")[-2:])
    return f"{document.family}/{document.package}/{name}"


def _notices(package: Package, root: Path) -> str:
    paths = sorted({path for glob in package.notices for path in root.glob(glob)})
    texts = [path.read_text("utf-8", "replace") for path in paths if path.is_file()]
    if not texts:
        raise FileNotFoundError(f"{package.name} has no copyright text at {package.notices}")
    return "\n\n".join(texts)


def _write_text(path: Path, text: str) -> str:
    data = text.encode()
    if len(data) >= COMPRESS_FROM_BYTES:
        path = path.with_name(path.name + ".xz")
        data = lzma.compress(data, preset=9)
    path.write_bytes(data)
    return path.name
