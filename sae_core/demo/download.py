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


def download(package: Package, folder: Path) -> Path:
    """Path of the package's file in `folder`, fetched when it is not there yet.

    Raises:
        FileNotFoundError: the client brought another version than packages.toml names.
        ValueError: the file's checksum is not the one in packages.toml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.file
    if not path.exists():
        subprocess.run(_client(package), cwd=folder, check=True)  # noqa: S603 - a list of ours
    if not path.exists():
        raise FileNotFoundError(
            f"{package.name} {package.version} did not arrive as {path}; the archive may hold "
            "a newer version: fetch this one from a snapshot, or update packages.toml"
        )
    found = file_sha256(path)
    if found != package.sha256:
        raise ValueError(f"{path} has sha256 {found}, packages.toml says {package.sha256}")
    return path


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
