"""packages.toml -> the list of packages, what is taken from each, and the mixes.

One entry per package: where it comes from (Debian 12 or PyPI), the version and
the checksum seen, its licence, its role, and its "takes": which files go to
which family of text, by which extractor, and how many MB at most.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES_TOML = Path(__file__).with_name("packages.toml")

ROLES = ("train", "development", "read-once")
DEFAULT_MAX_KB = 200  # CORPUS rule: longer pages are cut into documents of 200 KB
DEFAULT_MIN_BYTES = 1_500  # CORPUS rule: shorter files are redirects, stubs, indexes


@dataclass(frozen=True)
class Take:
    """Files of one package that become documents of one family."""

    family: str
    """Family of text the documents count towards, e.g. "html"."""

    extractor: str
    """Name of a function in the registry of `extract`."""

    globs: tuple[str, ...]
    """Glob patterns relative to the unpacked package."""

    cap_mb: float
    """MB (10^6 bytes) of text taken at most."""

    exclude: tuple[str, ...] = ()
    """Parts of paths that are left out, e.g. ".min.js"."""

    script: str = ""
    """When set, text is filtered to lines of this script and joined anew."""

    max_kb: int = DEFAULT_MAX_KB
    """Longest document in KB (10^3 bytes)."""

    head_only: bool = False
    """Keep only the first `max_kb` of a file instead of cutting it in pieces."""

    min_bytes: int = DEFAULT_MIN_BYTES
    """Shortest file that is read."""


@dataclass(frozen=True)
class Package:
    """One package of text: where it comes from and what is taken from it."""

    name: str
    source: str
    """"debian" or "pypi"."""

    version: str
    file: str
    """Name of the downloaded file."""

    sha256: str
    licence: str
    role: str
    """"train", "development" (to tune on) or "read-once" (published figures)."""

    in_sample: bool
    """False when the licence asks for care: trained on, never shipped."""

    notices: tuple[str, ...]
    """Glob patterns of the package's copyright text."""

    takes: tuple[Take, ...]


@dataclass(frozen=True)
class Mix:
    """How many tokens a corpus has and how they are shared among families."""

    name: str
    n_tokens: int

    shares: dict[str, float]
    """Family -> share of the tokens, in [0, 1]; they sum to 1."""


def load_packages(path: Path = PACKAGES_TOML) -> list[Package]:
    """The packages of the recipe, in the order of the file."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return [_package(entry) for entry in table["package"]]


def load_mix(name: str, path: Path = PACKAGES_TOML) -> Mix:
    """The mix called `name`.

    Raises:
        ValueError: packages.toml has no such mix.
    """
    mixes = tomllib.loads(path.read_text(encoding="utf-8"))["mix"]
    if name not in mixes:
        raise ValueError(f"mix must be one of {sorted(mixes)}, got {name!r}")
    return Mix(name, mixes[name]["n_tokens"], mixes[name]["shares"])


def load_tokenizer_caps(path: Path = PACKAGES_TOML) -> dict[str, float]:
    """Family -> MB (10^6 bytes) shown to the tokenizer's training; others: all there is."""
    caps: dict[str, float] = tomllib.loads(path.read_text(encoding="utf-8"))["tokenizer_caps_mb"]
    return caps


def load_sample_limits(path: Path = PACKAGES_TOML) -> dict[str, int]:
    """Family -> KB (10^3 bytes) of the sample at most."""
    limits: dict[str, int] = tomllib.loads(path.read_text(encoding="utf-8"))["sample_kb"]
    return limits


def _package(entry: dict[str, Any]) -> Package:
    return Package(
        name=entry["name"],
        source=entry["source"],
        version=entry["version"],
        file=entry["file"],
        sha256=entry["sha256"],
        licence=entry["licence"],
        role=entry["role"],
        in_sample=entry.get("in_sample", True),
        notices=tuple(entry["notices"]),
        takes=tuple(_take(take) for take in entry["takes"]),
    )


def _take(entry: dict[str, Any]) -> Take:
    return Take(
        family=entry["family"],
        extractor=entry["extractor"],
        globs=tuple(entry["globs"]),
        cap_mb=entry.get("cap_mb", 0.0),
        exclude=tuple(entry.get("exclude", ())),
        script=entry.get("script", ""),
        max_kb=entry.get("max_kb", DEFAULT_MAX_KB),
        head_only=entry.get("head_only", False),
        min_bytes=entry.get("min_bytes", DEFAULT_MIN_BYTES),
    )
