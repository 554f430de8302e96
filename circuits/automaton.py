"""A finite-state automaton read out of a model: states, labelled transitions, scores.

1. A state is a few features that play one role, with short real examples of where it is current.
2. A transition goes from a state to a state, or to EXIT, on tokens; the probabilities of a state's
   transitions sum to 1, counted on the most active state at each position.
3. The JSON form is the contract with other programs: `automaton.schema.json` describes it, and
   `FeatureAutomaton.from_json` checks the same rules by hand and names the path of what is wrong.

Source: Bricken et al. 2023, "Towards Monosemanticity", section "Finite State Automata".
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from circuits import automaton_json
from circuits.automaton_parts import (
    EXIT,
    EdgeToken,
    Example,
    State,
    Transition,
    Variant,
    state_of,
    transition_of,
    variant_of,
)
from sae_core.bounded import refuse_duplicates
from sae_core.errors import GraphError

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from circuits.run import Run
    from circuits.states import Merge

__all__ = ["EXIT", "EdgeToken", "Example", "FeatureAutomaton", "State", "Transition", "Variant"]


@dataclass(frozen=True)
class FeatureAutomaton:
    """States and transitions that together read or write one kind of text.

    Example:
        >>> again = Transition(0, 0, 0.75, (EdgeToken(1, "a", 1.0),), "a", 75)
        >>> end = Transition(0, EXIT, 0.25, (EdgeToken(2, "b", 1.0),), "b", 25)
        >>> automaton = FeatureAutomaton("a", "a", "loop", {}, (State(0, "a", (3,)),), (again, end))
        >>> automaton.exit_probability(0)
        0.25
        >>> automaton.sample(9, seed=0)
        ['a', 'a', 'b']
        >>> FeatureAutomaton.from_json(automaton.to_json()) == automaton
        True
    """

    name: str
    """Slug `[a-z0-9][a-z0-9-]*`, unique in a run and stable for equal input."""

    title: str
    """Free text for people."""

    kind: str
    """loop, pair, chain or system."""

    scores: dict[str, float | int | None]
    """Scores by name, held-out ones among them; None where not measured."""

    states: tuple[State, ...]
    transitions: tuple[Transition, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    """Run hash and settings this was made from."""

    description: str = ""
    """One sentence for people: what the automaton does, and how much of the text it reads."""

    variants: tuple[Variant, ...] = ()
    """Near-duplicates that were folded into this one, best first."""

    _run: ClassVar[Run | None] = None  # no field, so never written or compared

    @property
    def features(self) -> tuple[int, ...]:
        """The features of all states, ascending, each once."""
        return tuple(sorted({feature for state in self.states for feature in state.features}))

    def state(self, state_id: int) -> State:
        """Give the state with an id.

        Raises:
            GraphError: no state has this id.
        """
        for state in self.states:
            if state.id == state_id:
                return state
        known = ", ".join(str(state.id) for state in self.states)
        raise GraphError(f"automaton {self.name} has no state {state_id}; its states are {known}")

    def leaving(self, state_id: int) -> tuple[Transition, ...]:
        """Give the transitions out of a state, the most probable first, EXIT among them."""
        return self._leaving.get(state_id, ())

    def exit_probability(self, state_id: int) -> float:
        """Give the probability in [0, 1] of leaving the automaton from a state."""
        return sum(step.probability for step in self.leaving(state_id) if step.target == EXIT)

    @cached_property
    def _leaving(self) -> dict[int, tuple[Transition, ...]]:
        found: dict[int, list[Transition]] = defaultdict(list)
        for step in sorted(self.transitions, key=_by_probability):
            found[step.source].append(step)
        return {source: tuple(steps) for source, steps in found.items()}

    def to_json(self) -> str:
        """Give the automaton as one JSON document; equal automata give equal text.

        Raises:
            GraphError: a value does not fit the format; the message names its path.
        """
        value = asdict(self)
        automaton_json.check(value)
        try:
            text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
            text.encode()
        except (TypeError, ValueError) as err:
            raise GraphError(f"automaton {self.name}: provenance is no JSON ({err})") from err
        return text

    @classmethod
    def from_json(cls, text: str) -> FeatureAutomaton:
        """Read an automaton from its JSON document, checking every value.

        Args:
            text: what `to_json` gave, or another program wrote to `automaton.schema.json`.

        Raises:
            GraphError: not JSON, or a value does not fit; the message names its path.
        """
        try:
            value = json.loads(text, object_pairs_hook=refuse_duplicates)
        except (ValueError, RecursionError) as err:
            raise GraphError(f"{automaton_json.SUBJECT}no readable JSON ({err})") from err
        automaton_json.check(value)
        return cls(
            name=value["name"],
            title=value["title"],
            kind=value["kind"],
            scores=dict(value["scores"]),
            states=tuple(state_of(item) for item in value["states"]),
            transitions=tuple(transition_of(item) for item in value["transitions"]),
            provenance=dict(value["provenance"]),
            description=value.get("description", ""),
            variants=tuple(variant_of(item) for item in value.get("variants", ())),
        )

    def to_networkx(self) -> nx.MultiDiGraph:
        """Give the automaton as a networkx graph.

        Returns:
            Nodes are state ids with `label` and `features`, and "EXIT" where a state leaves;
            edges carry `probability`, `label`, `n_pairs`, `causal` and `tokens`, a dict of
            token_str -> share.
        """
        import networkx as nx  # noqa: PLC0415 - heavy, and only this needs it

        graph = nx.MultiDiGraph(name=self.name, title=self.title, kind=self.kind)
        for state in self.states:
            graph.add_node(state.id, label=state.label, features=list(state.features))
        for step in self.transitions:
            if step.target == EXIT:
                graph.add_node(EXIT, label=EXIT, features=[])
            graph.add_edge(
                step.source,
                step.target,
                probability=step.probability,
                label=step.label,
                n_pairs=step.n_pairs,
                causal=step.causal,
                tokens={token.token_str: token.share for token in step.tokens},
            )
        return graph

    def to_svg(
        self,
        path: str | Path | None = None,
        *,
        engine: str = "embedded",
        n_states: int | None = None,
    ) -> str:
        """Draw the automaton.

        Args:
            path: file for the picture; None writes nothing.
            n_states: states at most, the most alike merged; None draws eight, as the commands do.
            engine: "embedded", or "dot" for the system's Graphviz.

        Returns:
            The SVG text.

        Raises:
            RenderError: the automaton cannot be laid out.
            StoreError: the file cannot be written.
        """
        from circuits.svg import automaton_svg  # noqa: PLC0415 - drawing is loaded when asked for
        from circuits.zoom import drawn  # noqa: PLC0415 - zoom.py builds automata

        return _written(automaton_svg(drawn(self, n_states), engine=engine).text, path)

    def zoom(self, n_states: int) -> FeatureAutomaton:
        """Give the automaton with fewer states, merged where that loses least information.

        Args:
            n_states: states to leave, 1 to as many as are stored.

        Raises:
            GraphError: the automaton has fewer states than that.
        """
        from circuits.zoom import zoom  # noqa: PLC0415 - zoom.py builds automata

        zoomed = zoom(self, n_states)
        return zoomed if zoomed is self or self._run is None else zoomed.with_run(self._run)

    def merge_tree(self) -> tuple[Merge, ...]:
        """Give all merges of `zoom` in order, with their costs; see `circuits.zoom.merge_tree`."""
        from circuits.zoom import merge_tree  # noqa: PLC0415 - zoom.py builds automata

        return merge_tree(self)

    def trace(
        self,
        text: bytes | str,
        *,
        run: Run | None = None,
        by: Literal["features", "tokens"] | None = None,
    ) -> pl.DataFrame:
        """Run the automaton over a text.

        Args:
            text: bytes of a document, as from `run.document(0)`; or text, taken as UTF-8.
            run: the run it was found in; automata of `run.automata` know it.
            by: "features" needs a document of the run; "tokens" reads any text by the arrows
                alone; None takes features where they are known, else tokens. Text that is not of
                the run is cut greedily by the run's vocabulary.

        Returns:
            One row a token; see `circuits.trace.trace`.

        Raises:
            GraphError: no run is known, or by features, the text is not one of the run.
        """
        from circuits.trace_text import trace_text  # noqa: PLC0415 - brings in polars and numba

        data = text.encode() if isinstance(text, str) else text
        return trace_text(self, self._home(run), data, by=by)

    def next_tokens(self, state_id: int, *, run: Run | None = None) -> NDArray[np.float64]:
        """Give P(next token | state), smoothed as in the automaton's scores.

        Args:
            state_id: the state that is current, as in a trace's column `state`.
            run: as for `trace`.

        Returns:
            (d_vocab,) probabilities that sum to 1; see `circuits.emission.next_tokens`.

        Raises:
            GraphError: no run is known, or no state has this id.
        """
        from circuits.emission import next_tokens  # noqa: PLC0415 - brings in numba

        return next_tokens(self, state_id, self._home(run).statistics.token_counts)

    def sample(self, n_tokens: int, seed: int = 0) -> list[str]:
        """Draw a text: a random walk along the arrows, from the most visited state to EXIT.

        Args:
            n_tokens: printable tokens to draw at most.
            seed: the same seed gives the same text.
        """
        from circuits.trace import sample  # noqa: PLC0415 - brings in polars and numba

        return sample(self, n_tokens, seed)

    def to_mealy(self, path: str | Path | None = None) -> str:
        """Give the automaton as a weighted machine that AALpy loads, and with it PRISM.

        Args:
            path: where to write it, for `aalpy.utils.load_automaton_from_file(path, "smm")`; None
                writes nothing.

        Returns:
            DOT text; an arc emits `t<token_id>` with P(next state, token | state). See
            `circuits.mealy`.

        Raises:
            StoreError: the file cannot be written.
        """
        from circuits.mealy import mealy_dot  # noqa: PLC0415 - mealy.py reads automata

        return _written(mealy_dot(self), path)

    def with_run(self, run: Run) -> FeatureAutomaton:
        """Give the same automaton, knowing the run it was found in."""
        known = replace(self)
        object.__setattr__(known, "_run", run)  # frozen, and this is no field
        return known

    def _home(self, run: Run | None) -> Run:
        home = run or self._run
        if home is None:
            raise GraphError(
                f"automaton {self.name} belongs to no run; take it from "
                "circuits.open_run(path).automata, or give run=circuits.open_run(path)"
            )
        return home


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        from sae_core.files import write_text  # noqa: PLC0415 - brings in polars

        write_text(Path(path), text)
    return text


def _by_probability(step: Transition) -> tuple[float, bool, str, str]:
    return (-step.probability, step.target == EXIT, str(step.target).zfill(9), step.label)
