"""Text in; features, sums and a run directory out.

Names are loaded when first used, so that importing the package brings in neither torch nor numba.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_core.errors import FeatureCircuitError, StoreError, StoreMismatchError
    from sae_core.evaluate import evaluate
    from sae_core.gather import gather
    from sae_core.language_model import load_model
    from sae_core.run_effects import measure_effects
    from sae_core.run_writer import write_run
    from sae_core.sae import SparseAutoencoder, load_sae
    from sae_core.train_model import train_model
    from sae_core.train_sae import train_sae

__version__ = "0.1.0"
DISTRIBUTION = "sae-automata"

_HOMES = {
    "FeatureCircuitError": "errors",
    "StoreError": "errors",
    "StoreMismatchError": "errors",
    "evaluate": "evaluate",
    "gather": "gather",
    "load_model": "language_model",
    "measure_effects": "run_effects",
    "write_run": "run_writer",
    "SparseAutoencoder": "sae",
    "load_sae": "sae",
    "train_model": "train_model",
    "train_sae": "train_sae",
}

__all__ = [
    "FeatureCircuitError",
    "SparseAutoencoder",
    "StoreError",
    "StoreMismatchError",
    "evaluate",
    "gather",
    "load_model",
    "load_sae",
    "measure_effects",
    "train_model",
    "train_sae",
    "write_run",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List what the public sees."""
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """A package whose function of a module's name stays itself when that module is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a name, unless the import system would put a module over a public function."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
