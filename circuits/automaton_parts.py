"""What a finite-state automaton is made of: states, transitions, their tokens and examples.

Plain values, and how each is read from JSON that `automaton_json` has checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

EXIT: Literal["EXIT"] = "EXIT"


@dataclass(frozen=True)
class Example:
    """A real snippet of text on which a state is current."""

    tokens: tuple[str, ...]
    """Printable tokens (`sae_core.tokens.token_str`) in text order, about 9 to 15."""

    values: tuple[float, ...]
    """Activation of the state on each token as a share of its largest, in [0, 1]."""

    focus: int
    """Index of the token on which the state fires."""


@dataclass(frozen=True)
class State:
    """A few features that play one role."""

    id: int
    """>= 0, unique in the automaton."""

    label: str
    """What a person would call the state."""

    features: tuple[int, ...]
    """Feature indices, strongest first."""

    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class EdgeToken:
    """One token that a transition runs on."""

    token_id: int
    token_str: str
    share: float
    """Share of the transition's pairs that ran on this token, in [0, 1]."""


@dataclass(frozen=True)
class Transition:
    """A step from one state to the next, through tokens."""

    source: int
    target: int | Literal["EXIT"]
    """The next state's id; EXIT when no state of the automaton is current at the next token."""

    probability: float
    """P(target and these tokens | source), in [0, 1]."""

    tokens: tuple[EdgeToken, ...]
    """Largest share first."""

    label: str
    """The tokens, summarised as a person would write them."""

    n_pairs: int
    """Pairs of neighbouring positions counted."""

    causal: float | None = None
    """Measured effect of ablating the source, in nats; None where it was not measured."""


@dataclass(frozen=True)
class Variant:
    """A near-duplicate: found too, and worse by bits saved x coverage than the one it is folded into."""

    kind: str
    features: tuple[int, ...]
    """Ascending, each once."""

    bits_saved: float
    """Bits a step, as in the scores of automata."""

    coverage: float
    """Share of tokens on which some state is current, in [0, 1]."""


def state_of(value: dict[str, Any]) -> State:
    """Read a state from its JSON."""
    examples = tuple(
        Example(tuple(item["tokens"]), tuple(map(float, item["values"])), item["focus"])
        for item in value["examples"]
    )
    return State(value["id"], value["label"], tuple(value["features"]), examples)


def transition_of(value: dict[str, Any]) -> Transition:
    """Read a transition from its JSON."""
    tokens = tuple(
        EdgeToken(item["token_id"], item["token_str"], float(item["share"]))
        for item in value["tokens"]
    )
    return Transition(
        source=value["source"],
        target=value["target"],
        probability=float(value["probability"]),
        tokens=tokens,
        label=value["label"],
        n_pairs=value["n_pairs"],
        causal=None if value["causal"] is None else float(value["causal"]),
    )


def variant_of(value: dict[str, Any]) -> Variant:
    """Read a variant from its JSON."""
    return Variant(
        kind=value["kind"],
        features=tuple(value["features"]),
        bits_saved=float(value["bits_saved"]),
        coverage=float(value["coverage"]),
    )
