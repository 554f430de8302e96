"""Markdown tables, and the blocks of a page that a script writes anew."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sae_core.files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, n_words: int) -> str:
    """Give a Markdown table whose first `n_words` columns are words, the others numbers.

    Example:
        >>> print(markdown(("reader", "accuracy"), [("features", "0.9")], n_words=1))
        | reader | accuracy |
        | --- | ---: |
        | features | 0.9 |
    """
    rule = ["---" if at < n_words else "---:" for at in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def plain(text: str) -> str:
    r"""Give text that Markdown prints as it is, on one line.

    Example:
        >>> print(plain("a*b <i>"))
        a\*b \<i\>
    """
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))


def block(name: str, text: str) -> str:
    """Give a text between the two comments by which `replace_block` finds it again."""
    return f"<!-- {name} -->\n{text}\n<!-- /{name} -->"


def replace_block(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two comments of a name in a page.

    Args:
        page: a Markdown file.
        name: of the block.
        text: the new text.

    Raises:
        ValueError: the page has no such block.
    """
    found = page.read_text(encoding="utf-8")
    pattern = re.compile(
        rf"<!-- {re.escape(name)} -->\n.*?\n<!-- /{re.escape(name)} -->", re.DOTALL
    )
    if not pattern.search(found):
        raise ValueError(f"{page} has no block {name!r}; write {block(name, '...')!r} into it")
    write_text(page, pattern.sub(lambda _: block(name, text), found, count=1))
