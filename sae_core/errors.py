"""Errors a user can act on: one base, one child for each kind of thing that can be wrong.

A message says what is wrong (with the value), what was expected and what to do next. A programmer's slip is a
`ValueError` or `TypeError`; everything below is caught in one place by the command line and printed as one line.
"""

from __future__ import annotations


class FeatureCircuitError(Exception):
    """Base of every error that the user, not the programmer, can mend."""


class TextError(FeatureCircuitError):
    """A text input cannot be read, or holds nothing to read."""


class ModelError(FeatureCircuitError):
    """A language model, its tokenizer or its training is not usable."""


class SaeError(FeatureCircuitError):
    """A sparse autoencoder's files, settings or training are not usable."""


class StoreError(FeatureCircuitError):
    """A run directory is missing, damaged, locked, or cannot be written."""


class StoreMismatchError(StoreError):
    """Two artefacts were not made with the same model, SAE, tokenizer or settings."""


class GraphError(FeatureCircuitError):
    """A feature, an edge, an automaton or a query does not exist or is not legal."""


class RenderError(FeatureCircuitError):
    """A picture or a page could not be made."""
