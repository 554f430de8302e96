"""The rules of an automaton's JSON, checked by hand; the same as `automaton.schema.json` plus sums.

`check` raises with the path of the first value that does not fit, as in
`automaton: transitions[3].probability is 1.5; expected a number in [0, 1]`; who reads a file puts
its name in the place of `automaton`.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Callable

    Rule = Callable[[Any, str], None]

SUBJECT = "automaton: "  # what every message is about, and begins with
KINDS = ("loop", "pair", "chain", "system")
MAX_INDEX = 2**32 - 1  # ids are stored as u32
MAX_COUNT = 2**63 - 1
ROW_TOLERANCE = 1e-3  # a row of rounded probabilities still sums to 1 within this
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SHOWN = 60  # characters of a bad value repeated in a message


def check(value: Any) -> None:
    """Check that a value read from JSON (or about to be written) is an automaton.

    Raises:
        GraphError: the first thing that does not fit, with its path.
    """
    _AUTOMATON(value, "")
    states = {state["id"] for state in value["states"]}
    if len(states) != len(value["states"]):
        _fail(sorted(state["id"] for state in value["states"]), "states", "ids, each once")
    sums = dict.fromkeys(states, 0.0)
    for at, step in enumerate(value["transitions"]):
        path = f"transitions[{at}]"
        if step["source"] not in states:
            _fail(step["source"], f"{path}.source", "the id of a state")
        if step["target"] != "EXIT" and step["target"] not in states:
            _fail(step["target"], f"{path}.target", 'the id of a state or "EXIT"')
        sums[step["source"]] += step["probability"]
    for state, total in sorted(sums.items()):
        if total > 1 + ROW_TOLERANCE:
            _fail(total, f"transitions out of state {state}: sum of probability", "at most 1")


def is_name(value: Any) -> bool:
    """Say whether a value is a name of an automaton: a slug, so never a path."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _fail(value: Any, path: str, expected: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
    raise GraphError(f"{SUBJECT}{path or 'the document'} is {shown}; expected {expected}")


def _text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        _fail(value, path, "text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        _fail(value, path, "text without lone surrogates")


def _name(value: Any, path: str) -> None:
    if not is_name(value):
        _fail(value, path, "a slug of a-z, 0-9 and -")


def _kind(value: Any, path: str) -> None:
    if value not in KINDS:
        _fail(value, path, f"one of {', '.join(KINDS)}")


def _integer(value: Any, path: str, top: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= top:
        _fail(value, path, f"an integer in 0..{top}")


def _index(value: Any, path: str) -> None:
    _integer(value, path, MAX_INDEX)


def _count(value: Any, path: str) -> None:
    _integer(value, path, MAX_COUNT)


def _target(value: Any, path: str) -> None:
    if value != "EXIT":
        _index(value, path)


def _number(value: Any, path: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:
        _fail(value, path, "a finite number")


def _share(value: Any, path: str) -> None:
    _number(value, path)
    if not 0 <= value <= 1:
        _fail(value, path, "a number in [0, 1]")


def _number_or_null(value: Any, path: str) -> None:
    if value is not None:
        _number(value, path)


def _scores(value: Any, path: str) -> None:
    _object(value, path)
    for key, score in value.items():
        _text(key, f"a key of {path}")
        _number_or_null(score, f"{path}.{key}")


def _object(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        _fail(value, path, "an object")


def _list(rule: Rule, *, least: int = 0) -> Rule:
    """Give the rule of a list whose items all follow `rule`."""

    def check_list(value: Any, path: str) -> None:
        if not isinstance(value, (list, tuple)) or len(value) < least:
            _fail(value, path, f"a list of at least {least}" if least else "a list")
        for at, item in enumerate(value):
            rule(item, f"{path}[{at}]")

    return check_list


def _record(rules: dict[str, Rule], optional: dict[str, Rule] | None = None) -> Rule:
    """Give the rule of an object with known keys; keys beyond them are left alone.

    Args:
        rules: of the keys that must be there.
        optional: of keys that older files lack.
    """

    def check_record(value: Any, path: str) -> None:
        _object(value, path)
        for key, rule in rules.items():
            where = f"{path}.{key}" if path else key
            if key not in value:
                raise GraphError(f"{SUBJECT}{where} is missing")
            rule(value[key], where)
        for key, rule in (optional or {}).items():
            if key in value:
                rule(value[key], f"{path}.{key}" if path else key)

    return check_record


def _example(value: Any, path: str) -> None:
    _EXAMPLE(value, path)
    if len(value["tokens"]) != len(value["values"]):
        _fail(len(value["values"]), f"length of {path}.values", f"{len(value['tokens'])}")
    if value["focus"] >= len(value["tokens"]):
        _fail(value["focus"], f"{path}.focus", f"an index below {len(value['tokens'])}")


_EXAMPLE = _record(
    {"tokens": _list(_text, least=1), "values": _list(_share, least=1), "focus": _index}
)
_STATE = _record(
    {"id": _index, "label": _text, "features": _list(_index), "examples": _list(_example)}
)
_TOKEN = _record({"token_id": _index, "token_str": _text, "share": _share})
_TRANSITION = _record(
    {
        "source": _index,
        "target": _target,
        "probability": _share,
        "tokens": _list(_TOKEN),
        "label": _text,
        "n_pairs": _count,
        "causal": _number_or_null,
    }
)
_VARIANT = _record(
    {"kind": _kind, "features": _list(_index, least=1), "bits_saved": _number, "coverage": _share}
)
_AUTOMATON = _record(
    {
        "name": _name,
        "title": _text,
        "kind": _kind,
        "scores": _scores,
        "states": _list(_STATE, least=1),
        "transitions": _list(_TRANSITION),
        "provenance": _object,
    },
    optional={"description": _text, "variants": _list(_VARIANT)},
)
