"""A package and a mix of the text recipe, made up."""

from __future__ import annotations

from sae_core.demo.packages import (
    Mix,
    Package,
    Take,
)


def package_with(
    *takes: Take, name: str = "made-up", file: str = "", digest: str = "", source: str = "pypi"
) -> Package:
    return Package(
        name=name,
        source=source,
        version="1",
        file=file,
        sha256=digest,
        licence="MIT",
        role="train",
        in_sample=True,
        notices=(),
        takes=takes,
    )


def small_mix(**shares: float) -> Mix:
    return Mix("tiny", 1000, shares)
