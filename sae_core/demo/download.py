"""packages.toml -> downloaded, checked and unpacked packages.

Files come by the ordinary clients (`apt-get download`, `pip download`), are
compared with the checksum in packages.toml, and are unpacked, never built or run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sae_core.demo.packages import Package


def download(package: Package, folder: Path, *, newer: bool = False) -> Path:
    """Path of the package's file in `folder`, fetched when it is not there yet.

    With `newer`, a version that Debian's archive has dropped is replaced by today's, whose
    checksum apt alone compares: the text is then nearly, not exactly, the text of the recipe.

    Raises:
        FileNotFoundError: the version that packages.toml names is not to be had.
        ValueError: the file's checksum is not the one in packages.toml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.file
    if not path.exists():
        subprocess.run(_client(package), cwd=folder, check=False)  # noqa: S603 - a list of ours
    if not path.exists() and newer and package.source == "debian":
        return _download_today(package, folder)
    if not path.exists():
        raise FileNotFoundError(
            f"{package.name} {package.version} did not arrive as {path}; the archive may hold "
            "a newer version: run `apt-get update` and try again, fetch this version from a "
            "snapshot, or take today's with --newer"
        )
    found = file_sha256(path)
    if found != package.sha256:
        raise ValueError(f"{path} has sha256 {found}, packages.toml says {package.sha256}")
    return path


def _download_today(package: Package, folder: Path) -> Path:
    today = folder / f"{package.name}-today"
    today.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", package.name], cwd=today, check=True)  # noqa: S603, S607
    return max(today.glob("*.deb"), key=lambda path: path.stat().st_mtime)


def unpack(package: Package, file: Path, folder: Path) -> Path:
    """Folder under `folder` that holds the package's files; unpacked once.

    A source distribution's one top folder is left out of the paths.
    """
    target = folder / package.name
    if target.exists():
        return target
    partial = folder / f"{package.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if file.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", file, partial], check=True)  # noqa: S603, S607
    elif file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(partial)  # noqa: S202 - zipfile drops ".." and absolute paths
    else:
        with tarfile.open(file) as sdist:
            sdist.extractall(partial, filter="data")
        (partial,) = partial.iterdir()
    partial.rename(target)
    return target


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):  # 1 MiB: packages are up to 150 MB
            digest.update(block)
    return digest.hexdigest()


def _client(package: Package) -> list[str]:
    if package.source == "debian":
        return ["apt-get", "download", f"{package.name}={package.version}"]
    requirement = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", requirement]
    if package.file.endswith(".whl"):
        return [*pip, "--only-binary", ":all:"]
    return [*pip, "--no-binary", ":all:"]
