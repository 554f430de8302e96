"""Files of an unpacked package -> documents, by the rules of the corpus.

1. walk real files only (no symbolic links), sorted, sampled evenly over directories;
2. an extractor turns one file into texts (or into lines, when the take names a script);
3. texts are cut to documents; lines are filtered by script, made unique, joined.
"""

from __future__ import annotations

import fnmatch
import gzip
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.demo import extract_data, extract_language, extract_markup

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from sae_core.demo.extract_markup import Extractor
    from sae_core.demo.packages import Package, Take

LINES_PER_DOCUMENT = 20  # CORPUS rule: about 20 messages to a document
MIN_SCRIPT_SHARE = 0.30  # CORPUS rule: lines with fewer letters of the script are English

EXTRACTORS: dict[str, Extractor] = {
    **extract_markup.EXTRACTORS,
    **extract_data.EXTRACTORS,
    **extract_language.EXTRACTORS,
}

# One character class per script; "letters" of the rule are counted with these.
SCRIPTS = {
    "arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
    "hebrew": "\u05d0-\u05ea",
    "tamil": "\u0b80-\u0bff",
    "khmer": "\u1780-\u17ff",
    "chinese": "\u4e00-\u9fff",
}


@dataclass(frozen=True)
class Document:
    """One text of the corpus with where it came from."""

    family: str
    package: str
    licence: str
    source: str
    """Path inside the package; "#2" is added to the second piece of a file."""

    text: str


def extract_package(package: Package, root: Path, rng: np.random.Generator) -> Iterator[Document]:
    """Yield the documents of one package, each take up to its cap.

    Args:
        package: its entry in packages.toml.
        root: folder it was unpacked to.
        rng: orders the files; same seed, same documents.
    """
    for take in package.takes:
        n_bytes = 0
        for source, text in _texts(take, root, rng):
            n_bytes += len(text.encode())
            if n_bytes > take.cap_mb * 1e6:
                break
            yield Document(take.family, package.name, package.licence, source, text)


def sample_files(take: Take, root: Path, rng: np.random.Generator) -> list[Path]:
    """Files that match the take, one directory after the other in turn.

    The order inside a directory is random, so that the first n files are an even
    sample: generated documentation has thousands of pages in a few directories.
    """
    by_directory: dict[str, list[Path]] = {}
    for path in _real_files(root):
        name = path.relative_to(root).as_posix()
        if _matches(name, take):
            by_directory.setdefault(name.rpartition("/")[0], []).append(path)
    queues = []
    for directory in sorted(by_directory):
        paths = sorted(by_directory[directory])
        queues.append([paths[i] for i in rng.permutation(len(paths))])
    order = [queues[i] for i in rng.permutation(len(queues))]
    turns = itertools.zip_longest(*order)
    return [path for turn in turns for path in turn if path is not None]


def cut(text: str, max_bytes: int, *, head_only: bool = False) -> list[str]:
    r"""Pieces of at most about `max_bytes`, cut at the end of a line where there is one.

    >>> cut("one\ntwo\n", 5)
    ['one\n', 'two\n']
    """
    data = text.encode()
    pieces: list[str] = []
    while data:
        end = len(data)
        if end > max_bytes:
            end = data.rfind(b"\n", max_bytes // 2, max_bytes) + 1 or max_bytes
        pieces.append(data[:end].decode("utf-8", "ignore"))
        if head_only:
            break
        data = data[end:]
    return pieces


def _real_files(root: Path) -> Iterator[Path]:
    for directory, subdirectories, names in os.walk(root, followlinks=False):
        subdirectories.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if not path.is_symlink():
                yield path


def _matches(name: str, take: Take) -> bool:
    if any(part in name for part in take.exclude):
        return False
    return any(fnmatch.fnmatchcase(name, glob) for glob in take.globs)


def _texts(take: Take, root: Path, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yield (source, text) of every document of a take."""
    files = _read_files(take, root, rng)
    if take.script:
        yield from _joined_lines(take, files)
        return
    for name, data in files:
        n = 0
        for text in EXTRACTORS[take.extractor](data):
            for piece in cut(text, take.max_kb * 1000, head_only=take.head_only):
                if "\0" not in piece and piece.strip():
                    n += 1
                    yield (name if n == 1 else f"{name}#{n}"), piece


def _read_files(take: Take, root: Path, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for path in sample_files(take, root, rng):
        if path.stat().st_size < take.min_bytes and path.suffix != ".gz":
            continue
        data = path.read_bytes()
        if path.suffix in (".gz", ".dz"):
            data = gzip.decompress(data)
        yield path.relative_to(root).as_posix(), data


def _joined_lines(take: Take, files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, str]]:
    """Lines of a script, each once in the package, about 20 to a document."""
    letter = re.compile(f"[{SCRIPTS[take.script]}]")
    min_share = MIN_SCRIPT_SHARE
    if take.extractor in extract_language.MESSAGE_EXTRACTORS:
        min_share = 0.0  # one letter of the script tells a translated message
    seen: set[str] = set()
    lines: list[str] = []
    first = ""
    for name, data in files:
        first = first or name
        for line in _lines(take, data):
            if line in seen or len(letter.findall(line)) <= min_share * len(line):
                continue
            seen.add(line)
            lines.append(line)
            if len(lines) == LINES_PER_DOCUMENT:
                yield f"{first}#{len(seen)}", "\n".join(lines) + "\n"
                lines, first = [], name
    if lines:
        yield f"{first}#{len(seen)}", "\n".join(lines) + "\n"


def _lines(take: Take, data: bytes) -> Iterator[str]:
    """Lines of a file; a message with line breaks is one line of the package."""
    for text in EXTRACTORS[take.extractor](data):
        if take.extractor in extract_language.MESSAGE_EXTRACTORS:
            yield text.strip()
        else:
            yield from (line.strip() for line in text.splitlines())
