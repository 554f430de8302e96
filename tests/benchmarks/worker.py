"""A program in a process of its own that answers a line with a line: for peers, and for taking turns.

It says `= ...` once when it is ready, and once for each line; anything else that it prints is passed
over, as a library may print what it likes.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence


class Worker:
    """The process; it waits until it is asked."""

    def __init__(self, name: str, words: Sequence[str], *, is_quiet: bool = False) -> None:
        """Start it, and wait until it is ready.

        Args:
            name: for messages.
            words: of the command.
            is_quiet: drop what it writes to stderr.
        """
        self.name = name
        self._words = words
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if is_quiet else None,
            text=True,
        )
        self._answer()

    def ask(self, line: str) -> str:
        """Give the answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        """Give itself; the process ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.end()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("= "):
                return line[2:].strip()
        code, program = self._process.wait(), " ".join(self._words)
        raise SystemExit(f"{self.name} ended: {code}; run {program} to see why")
