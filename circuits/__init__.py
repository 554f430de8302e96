"""A run in; feature graphs, automata and pictures out.

Names are loaded when first used, so that importing the package brings in neither numba nor polars,
and never torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.automaton import FeatureAutomaton
    from circuits.build import build_graph
    from circuits.discover import find_automata
    from circuits.effects import edges_by_decile
    from circuits.evidence import transition_counts
    from circuits.graph import FeatureGraph
    from circuits.query import find_motifs
    from circuits.run import Run, open_run

DISTRIBUTION = "sae-automata"

_HOMES = {
    "FeatureAutomaton": "automaton",
    "FeatureGraph": "graph",
    "Run": "run",
    "build_graph": "build",
    "edges_by_decile": "effects",
    "find_automata": "discover",
    "find_motifs": "query",
    "open_run": "run",
    "transition_counts": "evidence",
}

__all__ = [
    "FeatureAutomaton",
    "FeatureGraph",
    "Run",
    "build_graph",
    "edges_by_decile",
    "find_automata",
    "find_motifs",
    "open_run",
    "transition_counts",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List what the public sees."""
    return [*__all__, "DISTRIBUTION"]


class _Package(ModuleType):
    """A package whose function of a module's name stays itself when that module is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a name, unless the import system would put a module over a public function."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
