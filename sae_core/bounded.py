"""JSON files of unknown origin, read within limits: a hostile or broken one is named.

A settings file is a few kilobytes. One of a gigabyte, one nested a million deep, or one that says
the same key twice is refused before any of it is used.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from sae_core.errors import FeatureCircuitError

MAX_JSON_BYTES = 1 << 20  # settings files seen in the wild are below 64 KiB
MAX_JSON_DEPTH = 64  # and nested at most 8 deep
STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # closed, or to the end
BRACKET = re.compile(r"[\[\]{}]")


def read_json(path: Path, error: type[FeatureCircuitError]) -> dict[str, Any]:
    """Read one JSON object from a small file.

    Args:
        path: the file.
        error: class of the error to raise, so that the message is caught with its kind.

    Returns:
        The object's fields.

    Raises:
        FeatureCircuitError: of class `error`: the file is absent, over 1 MiB, nested over 64 deep,
            no JSON, no object, or holds a key twice.
    """
    text = _read_bounded(path, error)
    if _is_deep(text):
        raise error(
            f"{path} is nested over {MAX_JSON_DEPTH} deep; a settings file was expected; "
            "check that it is the right file"
        )
    try:
        fields = json.loads(text, object_pairs_hook=refuse_duplicates)
    except ValueError as err:
        raise error(
            f"{path} is not a readable JSON file ({err}); write it again, or give another folder"
        ) from err
    if not isinstance(fields, dict):
        raise error(f"{path} holds a JSON {type(fields).__name__}; an object {{...}} was expected")
    return fields


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the fields of a JSON object, as the `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: a key is there twice.
    """
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key!r} is there twice")
        fields[key] = value
    return fields


def _read_bounded(path: Path, error: type[FeatureCircuitError]) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, without end
            raise error(f"{path} is no regular file; give a folder that holds a settings file")
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as err:
        raise error(f"{path} cannot be read ({err.strerror}); give a folder that holds it") from err
    if len(data) > MAX_JSON_BYTES:
        raise error(
            f"{path} is larger than {MAX_JSON_BYTES:,} bytes; a settings file was expected; "
            "check that it is the right file"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise error(
            f"{path} is not UTF-8 text (byte {err.start}); a JSON file was expected"
        ) from err


def _is_deep(text: str) -> bool:
    """Say whether brackets outside strings are nested too deep to be read."""
    depth = 0
    for bracket in BRACKET.finditer(STRING.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_JSON_DEPTH:
            return True
    return False
