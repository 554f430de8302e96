"""Run directories with known automata in them: an oracle for edges, groups and kinds.

1. Text: documents of one topic each; background words of the topic, interrupted by runs of machines
   (a loop, a pair, a system of four states, a chain). Machine tokens also occur in the background.
2. Features: one or two for each state, with misses and false alarms; distractors for topics, for
   regions around a machine, for single tokens, and pure noise.
3. Promotions: strength x log lift of the token that came, given the feature, times act / mean act,
   plus noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from sae_core.run_writer import write_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_TOPICS = 4
N_WORDS = 300
N_IDENTITY = 6
EXIT = -1


class Arc(NamedTuple):
    """state --one of the tokens--> target; target EXIT leaves without a token."""

    target: int
    probability: float
    tokens: tuple[str, ...]


class Machine(NamedTuple):
    """A hidden automaton. Arcs of the entry come first, then those of each state."""

    kind: str
    entry: tuple[Arc, ...]
    states: tuple[tuple[Arc, ...], ...]


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

    def judged(self, edges: pl.DataFrame) -> list[tuple[int, int]]:
        """Give the edges of a table, in its order, without those of identity features."""
        rows = edges.select("source", "target").rows()
        return [(i, j) for i, j in rows if i not in self.identity and j not in self.identity]


@dataclass
class _Text:
    docs: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    states: list[tuple[int, int]] = field(default_factory=list)
    """(machine, state) after each token; (-1, -1) outside."""


def machines_of(n_copies: int, rng: np.random.Generator) -> list[Machine]:
    """Make `n_copies` machines of each kind, each with tokens of its own."""
    makers = (_loop, _pair, _system, _chain)
    return [maker(f"{maker.__name__[1]}{k}", rng) for k in range(n_copies) for maker in makers]


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
    names = sorted(
        {v for m in machines for arcs in (m.entry, *m.states) for a in arcs for v in a.tokens}
    )
    vocabulary = [f" w{k}" for k in range(N_WORDS)] + names
    text = _write_text(machines, vocabulary, n_tokens, machine_share, rng)
    fires, owners = _fire(text, machines, n_noise, miss, rng)
    shuffle = rng.permutation(fires.shape[1])
    fires = fires[:, shuffle]
    place = np.argsort(shuffle)
    _write(Path(path), text, vocabulary, fires, (strength, nats_noise, held_out), rng)
    return _truth(Path(path), machines, owners, place)


def average_precision(ranked: list[tuple[int, int]], truth: frozenset[tuple[int, int]]) -> float:
    """Give the mean, over true edges, of the precision at each one's rank; missing ones count 0."""
    hits, total = 0, 0.0
    for rank, edge in enumerate(ranked, start=1):
        if edge in truth:
            hits += 1
            total += hits / rank
    return total / len(truth)


def _loop(name: str, rng: np.random.Generator) -> Machine:
    tokens = tuple(f"{name}x{k}" for k in range(int(rng.integers(8, 20))))
    stay = 1 - 10 ** float(rng.uniform(-2.3, -0.8))  # runs of 6 to 200 tokens
    state = (Arc(0, stay, tokens), Arc(EXIT, 1 - stay, ()))
    return Machine("loop", (Arc(0, 1.0, tokens),), (state,))


def _pair(name: str, rng: np.random.Generator) -> Machine:
    first = tuple(f"{name}a{k}" for k in range(3))
    second = tuple(f"{name}b{k}" for k in range(8))
    again = float(rng.uniform(0.7, 0.9))
    states = ((Arc(1, 1.0, second),), (Arc(0, again, first), Arc(EXIT, 1 - again, ())))
    return Machine("pair", (Arc(0, 1.0, first),), states)


def _system(name: str, rng: np.random.Generator) -> Machine:
    words = tuple(f"{name}t{k}" for k in range(10))
    values = tuple(f"{name}v{k}" for k in range(12))
    opened, equals, end = (f"{name}<",), (f'{name}="',), (f"{name}>",)
    more = float(rng.uniform(0.3, 0.6))
    states = (
        (Arc(1, 1.0, words),),
        (Arc(2, more, equals), Arc(0, 1 - more - 0.15, opened), Arc(EXIT, 0.15, end)),
        (Arc(3, 1.0, values),),
        (Arc(1, 0.4, words), Arc(0, 0.45, opened), Arc(EXIT, 0.15, end)),
    )
    return Machine("system", (Arc(0, 1.0, opened),), states)


def _chain(name: str, rng: np.random.Generator) -> Machine:
    length = int(rng.integers(4, 7))
    words = [f"{name}c{k}" for k in range(length)]
    steps = [(Arc(k + 1, 1.0, (words[k + 1],)),) for k in range(length - 1)]
    return Machine("chain", (Arc(0, 1.0, (words[0],)),), (*steps, (Arc(EXIT, 1.0, ()),)))


def _write_text(
    machines: list[Machine],
    vocabulary: list[str],
    n_tokens: int,
    share: float,
    rng: np.random.Generator,
) -> _Text:
    ids = {name: k for k, name in enumerate(vocabulary)}
    text, doc = _Text(), 0
    topics = [_topic_weights(len(vocabulary), rng) for _ in range(N_TOPICS)]
    while len(text.tokens) < n_tokens:
        weights = topics[doc % N_TOPICS]
        favourites = rng.choice(len(machines), size=min(3, len(machines)), replace=False)
        stop = len(text.tokens) + int(rng.integers(300, 900))
        while len(text.tokens) < stop:
            n_words = int(rng.geometric(0.06))
            for token in rng.choice(len(vocabulary), size=n_words, p=weights):
                _append(text, doc, int(token), (-1, -1))
            if rng.random() < share * 2:
                _run(text, doc, machines, int(rng.choice(favourites)), ids, rng)
        doc += 1
    return text


def _topic_weights(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    weights = 1 / (np.arange(n) + 3.0)
    weights[N_WORDS:] = 0.1 / n  # machine tokens outside machines: 1 in 40 or so
    weights *= np.exp(rng.normal(0, 1.0, n))
    return weights / weights.sum()


def _append(text: _Text, doc: int, token: int, state: tuple[int, int]) -> None:
    text.docs.append(doc)
    text.tokens.append(token)
    text.states.append(state)


def _run(  # noqa: PLR0917 - one caller
    text: _Text,
    doc: int,
    machines: list[Machine],
    which: int,
    ids: dict[str, int],
    rng: np.random.Generator,
) -> None:
    arcs = machines[which].entry
    while True:
        arc = arcs[int(rng.choice(len(arcs), p=[a.probability for a in arcs]))]
        if arc.target == EXIT:
            if arc.tokens:
                _append(text, doc, ids[str(rng.choice(arc.tokens))], (-1, -1))
            return
        _append(text, doc, ids[str(rng.choice(arc.tokens))], (which, arc.target))
        arcs = machines[which].states[arc.target]


def _fire(
    text: _Text,
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
    regions = (_region(states[:, 0] == m, docs) for m in range(len(machines)))
    columns.extend(region & (rng.random(n) < 0.7) for region in regions)
    n_vocab = int(tokens.max()) + 1
    of_machines = rng.choice(np.arange(N_WORDS, n_vocab), size=N_IDENTITY, replace=False)
    named = [*of_machines, *rng.choice(N_WORDS, size=10, replace=False)]
    columns.extend((tokens == token) & (rng.random(n) < 0.95) for token in named)
    columns.extend(rng.random(n) < 10 ** rng.uniform(-3.5, -1) for _ in range(n_noise))
    return np.stack(columns, axis=1), owners


def _region(inside: NDArray[np.bool_], docs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Give the tokens within 25 of a machine's tokens, in the same document."""
    near = np.zeros(len(inside), dtype=bool)
    for p in np.flatnonzero(inside):
        near[max(0, p - 25) : p + 26] |= docs[max(0, p - 25) : p + 26] == docs[p]
    return near


def _log_lifts(
    fires: NDArray[np.bool_], tokens: NDArray[np.int64], same: NDArray[np.bool_], d_vocab: int
) -> NDArray[np.float64]:
    """(d_sae, d_vocab) log of P(next token | feature) / P(next token), shrunk for small counts."""
    following = tokens[1:][same]
    base = np.bincount(following, minlength=d_vocab) + 0.5
    base = base / base.sum()
    lifts = []
    for column in fires[:-1][same].T:
        counts = np.bincount(following[column], minlength=d_vocab)
        prior = 20.0
        lifts.append(np.log((counts + prior * base) / (counts.sum() + prior) / base))
    return np.array(lifts)


def _write(  # noqa: PLR0917 - one caller
    path: Path,
    text: _Text,
    vocabulary: list[str],
    fires: NDArray[np.bool_],
    settings: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    strength, noise, held_out = settings
    docs, tokens = np.array(text.docs), np.array(text.tokens)
    pos = np.arange(len(docs)) - np.searchsorted(docs, docs)
    windows = np.cumsum(np.append(True, (np.diff(docs) > 0) | (pos[1:] % 256 == 0))) - 1
    same = windows[1:] == windows[:-1]
    lifts = _log_lifts(fires, tokens, same, len(vocabulary))
    rows, features = np.nonzero(fires)
    acts = rng.gamma(4.0, 0.25, len(rows)).astype(np.float32) + np.float32(0.05)
    promotions = strength * lifts[features, np.append(tokens[1:], 0)[rows]] * acts
    promotions += rng.normal(0, noise, len(rows))
    promotions[~np.append(same, False)[rows]] = 0
    n_docs = int(docs[-1]) + 1
    documents = pl.DataFrame(
        {
            "doc_id": np.arange(n_docs),
            "source": [f"planted/{k}.txt" for k in range(n_docs)],
            "held_out": (np.arange(n_docs) * 0.618) % 1 < held_out,
        }
    )
    write_run(
        path,
        documents=documents,
        tokens={"doc_id": docs, "window_id": windows, "token_id": tokens},
        indptr=np.concatenate([[0], np.cumsum(fires.sum(1))]),
        features=features,
        acts=acts,
        promotions=promotions.astype(np.float32),
        vocabulary=[name.encode() for name in vocabulary],
        d_sae=fires.shape[1],
    )


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
