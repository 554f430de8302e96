"""Run directories with known automata in them: an oracle for edges, groups and kinds.

1. Text (`planted_text.py`): documents of one topic each; background words, interrupted by runs of
   machines (`planted_machines.py`): a loop, a pair, a system, a chain.
2. Features: one or two for each state, with misses and false alarms; distractors for topics, for
   regions around a machine, for single tokens, and pure noise.
3. Promotions (`planted_run.py`): strength x log lift of the token that came, given the feature,
   times act / mean act, plus noise.

`planted_world` is the plain one; `planted_rich.py` makes harder ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from planted_machines import EXIT, N_WORDS, Machine, machines_of, words_of
from planted_run import log_lifts, write_planted
from planted_text import N_TOPICS, Text, topic_words, write_text

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

N_IDENTITY = 6
NEAR = 25  # tokens on either side of a machine's that belong to its region


@dataclass(frozen=True)
class PlantedWorld:
    """A run directory and what was hidden in it."""

    path: Path
    truth_edges: frozenset[tuple[int, int]]
    """(source, target) of every state-to-state step, for every feature of either state."""

    groups: list[frozenset[int]]
    """Features of each machine."""

    kinds: list[str]
    """loop, pair, system or chain, a machine."""

    states: list[list[frozenset[int]]]
    """Features of each state of each machine."""

    context: frozenset[int]
    """Topic and region features: they follow each other without a machine between them."""

    identity: frozenset[int]
    """Features of one machine token each: their edges are real, but are no truth of ours."""

    set_aside: frozenset[int] = frozenset()
    """More features whose edges count neither way."""

    rare_edges: frozenset[tuple[int, int]] = frozenset()
    """Steps that the text takes too seldom to ask for: they count neither way."""

    unpromoted_edges: frozenset[tuple[int, int]] = frozenset()
    """Pairs that really follow each other, though the source promotes other tokens: no edges."""

    def judged(self, edges: pl.DataFrame) -> list[tuple[int, int]]:
        """Give the edges of a table, in its order, without those that count neither way."""
        rows = edges.select("source", "target").rows()
        aside = self.identity | self.set_aside
        return [edge for edge in rows if aside.isdisjoint(edge) and edge not in self.rare_edges]


def planted_world(
    path: Path | str,
    *,
    seed: int = 0,
    n_tokens: int = 60_000,
    n_copies: int = 1,
    n_noise: int = 20,
    machine_share: float = 0.3,
    miss: tuple[float, float] = (0.05, 0.25),
    strength: float = 0.7,
    nats_noise: float = 0.15,
    held_out: float = 0.2,
) -> PlantedWorld:
    """Write a run directory that hides known automata.

    Args:
        path: the new run directory.
        seed: the same seed gives the same bytes.
        n_tokens: about how many tokens.
        n_copies: machines of each of the four kinds.
        n_noise: features that fire at random.
        machine_share: chance that a machine starts after a background stretch, in (0, 1].
        miss: range of the share of its state's tokens on which a feature stays silent.
        strength: share of the log lift that a feature's promotion reaches.
        nats_noise: standard deviation of a promotion's noise.
        held_out: share of the documents marked as held out.

    Returns:
        The path and the truth.
    """
    rng = np.random.default_rng(seed)
    machines = machines_of(n_copies, rng)
    vocabulary = words_of(machines)
    background = topic_words(len(vocabulary), rng)
    text = write_text(
        machines, vocabulary, background, n_tokens=n_tokens, share=machine_share, rng=rng
    )
    fires, owners = _fire(text, machines, n_noise, miss, rng)
    shuffle = rng.permutation(fires.shape[1])
    fires = fires[:, shuffle]
    write_planted(
        Path(path),
        text,
        vocabulary,
        fires,
        strength * log_lifts(text, fires, len(vocabulary)),
        nats_noise=nats_noise,
        held_out=held_out,
        rng=rng,
    )
    return _truth(Path(path), machines, owners, np.argsort(shuffle))


def average_precision(ranked: list[tuple[int, int]], truth: frozenset[tuple[int, int]]) -> float:
    """Give the mean, over true edges, of the precision at each one's rank; missing ones count 0."""
    hits, total = 0, 0.0
    for rank, edge in enumerate(ranked, start=1):
        if edge in truth:
            hits += 1
            total += hits / rank
    return total / len(truth)


def region(inside: NDArray[np.bool_], docs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) the tokens within NEAR of the tokens `inside` a machine, in the same document."""
    near = np.zeros(len(inside), dtype=bool)
    for p in np.flatnonzero(inside):
        span = slice(max(0, p - NEAR), p + NEAR + 1)
        near[span] |= docs[span] == docs[p]
    return near


def _fire(
    text: Text,
    machines: list[Machine],
    n_noise: int,
    miss: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[NDArray[np.bool_], list[tuple[int, int]]]:
    """Fire all features: (n, d_sae); and (machine, state) of the first columns."""
    n = len(text.tokens)
    states, docs, tokens = np.array(text.states), np.array(text.docs), np.array(text.tokens)
    owners = [
        (m, s)
        for m, machine in enumerate(machines)
        for s in range(len(machine.states))
        for _ in range(2 if rng.random() < 0.2 else 1)
    ]
    columns = []
    for owner in owners:
        at_home = (states == owner).all(1) & (rng.random(n) >= rng.uniform(*miss))
        columns.append(at_home | (rng.random(n) < rng.uniform(0.0005, 0.004)))
    topics = (docs % N_TOPICS == topic for topic in range(N_TOPICS))
    columns.extend(topic & (rng.random(n) < 0.5) for topic in topics)
    regions = (region(states[:, 0] == m, docs) for m in range(len(machines)))
    columns.extend(around & (rng.random(n) < 0.7) for around in regions)
    n_vocab = int(tokens.max()) + 1
    of_machines = rng.choice(np.arange(N_WORDS, n_vocab), size=N_IDENTITY, replace=False)
    named = [*of_machines, *rng.choice(N_WORDS, size=10, replace=False)]
    columns.extend((tokens == token) & (rng.random(n) < 0.95) for token in named)
    columns.extend(rng.random(n) < 10 ** rng.uniform(-3.5, -1) for _ in range(n_noise))
    return np.stack(columns, axis=1), owners


def _truth(
    path: Path, machines: list[Machine], owners: list[tuple[int, int]], place: NDArray[np.int64]
) -> PlantedWorld:
    states = [
        [
            frozenset(int(place[k]) for k, owner in enumerate(owners) if owner == (m, s))
            for s in range(len(machine.states))
        ]
        for m, machine in enumerate(machines)
    ]
    edges = {
        (i, j)
        for m, machine in enumerate(machines)
        for s, arcs in enumerate(machine.states)
        for arc in arcs
        if arc.target != EXIT
        for i in states[m][s]
        for j in states[m][arc.target]
    }
    first = len(owners)
    last = first + N_TOPICS + len(machines)
    return PlantedWorld(
        path=path,
        truth_edges=frozenset(edges),
        groups=[frozenset().union(*of) for of in states],
        kinds=[machine.kind for machine in machines],
        states=states,
        context=frozenset(int(i) for i in place[first:last]),
        identity=frozenset(int(i) for i in place[last : last + N_IDENTITY]),
    )
