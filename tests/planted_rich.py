"""Planted worlds as hard as real dictionaries: what looks like an edge and is none.

1. Text: bigram words around loops, pairs, systems of 4-6 states and phrases of 5-8 words, which
   share tokens (`planted_text.py`, `planted_machines.py`).
2. States: each is split over 1-3 features, by document or by token. A feature misses its share of
   tokens in stretches, and fires falsely on 5e-4 of all.
3. Weights: strength x the data's own log lifts plus noise, each feature's median at 0.
4. Distractors whose edges count neither way: features of whole spans, of topics and of single
   tokens.
5. Distractors whose edges are false: decoys fire at random in one topic, onlookers fire with a
   state; both promote what follows elsewhere. Dense noise (30 %) and rare noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from planted import PlantedWorld, region
from planted_machines import N_WORDS, Machine, tokens_into, wide_machines_of, words_of
from planted_run import joined, log_lifts, write_planted
from planted_text import N_TOPICS, Text, bigram_words, held_out_documents, write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PARTS = 3  # features of one state
STRETCH = 20  # tokens of a stretch that a feature misses, on average
FALSE_ALARMS = 5e-4
MIN_STEPS = 20  # with fewer, misses may leave too few pairs to count
N_ONLOOKERS, N_DECOYS, N_DENSE, N_RARE, N_TOKENS_NAMED = 4, 12, 3, 30, 8
MACHINE_SHARE, HELD_OUT = 0.3, 0.2
STRENGTH, WEIGHT_NOISE = 0.7, 0.3  # share of the log lift; nats


class Part(NamedTuple):
    """One feature's share of a state: where it should fire."""

    machine: int
    state: int
    home: NDArray[np.bool_]
    """(n,) tokens."""


class Cast(NamedTuple):
    """All features, in order: parts of states, onlookers, decoys, context, identity, noise."""

    parts: list[Part]
    onlookers: list[Part]
    fires: NDArray[np.bool_]
    """(n, d_sae)."""

    borrowed: dict[int, int]
    """Feature -> the feature whose log lifts its weights are made from."""

    context: range
    identity: range


def rich_world(
    path: Path | str,
    *,
    seed: int = 0,
    n_tokens: int = 60_000,
    n_copies: int = 2,
    miss: tuple[float, float] = (0.05, 0.25),
) -> PlantedWorld:
    """Write a run directory that hides automata among distractors.

    Args:
        path: the new run directory.
        seed: the same seed gives the same bytes.
        n_tokens: about how many tokens.
        n_copies: machines of each of the four kinds.
        miss: range of the share of its tokens on which a feature stays silent.

    Returns:
        The path and the truth. An edge is true when its step comes MIN_STEPS times in the documents
        that are not held out; one that comes less often counts neither way.
    """
    rng = np.random.default_rng(seed)
    machines = wide_machines_of(n_copies, rng)
    vocabulary = words_of(machines)
    background = bigram_words(len(vocabulary), rng)
    text = write_text(
        machines, vocabulary, background, n_tokens=n_tokens, share=MACHINE_SHARE, rng=rng
    )
    cast = _cast(text, machines, vocabulary, miss, rng)
    weights = _weights(text, cast, len(vocabulary), rng)
    shuffle = rng.permutation(cast.fires.shape[1])
    write_planted(
        Path(path),
        text,
        vocabulary,
        cast.fires[:, shuffle],
        weights[shuffle],
        nats_noise=0.0,
        held_out=HELD_OUT,
        rng=rng,
    )
    return _truth(Path(path), text, machines, cast, np.argsort(shuffle))


def silences(n: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) true in stretches of STRETCH tokens on average that make up about `share` of all."""
    n_stretches = 2 * n // STRETCH + 2
    lengths = np.empty(2 * n_stretches, np.int64)
    lengths[0::2] = rng.geometric(share / STRETCH / (1 - share), n_stretches)
    lengths[1::2] = rng.geometric(1 / STRETCH, n_stretches)
    silent = np.repeat(np.arange(2 * n_stretches) % 2 == 1, lengths)
    return silent[:n]


def _cast(
    text: Text,
    machines: list[Machine],
    vocabulary: list[str],
    miss: tuple[float, float],
    rng: np.random.Generator,
) -> Cast:
    n, docs, tokens = len(text.tokens), np.array(text.docs), np.array(text.tokens)
    parts = [
        part for m in range(len(machines)) for part in _parts(text, machines, m, vocabulary, rng)
    ]
    chosen = rng.choice(len(parts), size=N_ONLOOKERS, replace=False)
    onlookers = [parts[k] for k in chosen]
    columns = [_heard(part.home, miss, rng) for part in (*parts, *onlookers)]
    borrowed = {
        len(parts) + k: _stranger(parts, machines, part, rng) for k, part in enumerate(onlookers)
    }
    first_decoy = len(columns)
    borrowed |= {first_decoy + k: int(rng.integers(len(parts))) for k in range(N_DECOYS)}
    for _ in range(N_DECOYS):
        topic = docs % N_TOPICS == rng.integers(N_TOPICS)
        columns.append(topic & (rng.random(n) < 10 ** rng.uniform(-2.5, -1.5)))
    context = range(len(columns), len(columns) + N_TOPICS + len(machines))
    columns.extend((docs % N_TOPICS == k) & (rng.random(n) < 0.5) for k in range(N_TOPICS))
    inside = np.array(text.states)[:, 0]
    columns.extend(region(inside == m, docs) & (rng.random(n) < 0.8) for m in range(len(machines)))
    identity = range(len(columns), len(columns) + 2 * N_TOKENS_NAMED)
    of_machines = rng.choice(np.arange(N_WORDS, len(vocabulary)), N_TOKENS_NAMED, replace=False)
    named = [*of_machines, *rng.choice(N_WORDS, N_TOKENS_NAMED, replace=False)]
    columns.extend((tokens == token) & (rng.random(n) < 0.95) for token in named)
    columns.extend(rng.random(n) < 0.3 for _ in range(N_DENSE))
    columns.extend(rng.random(n) < 10 ** rng.uniform(-3.5, -2) for _ in range(N_RARE))
    return Cast(parts, onlookers, np.stack(columns, axis=1), borrowed, context, identity)


def _parts(
    text: Text, machines: list[Machine], m: int, vocabulary: list[str], rng: np.random.Generator
) -> list[Part]:
    """Split each state of a machine over features, by token where there are enough, or by document."""
    states, docs, tokens = np.array(text.states), np.array(text.docs), np.array(text.tokens)
    found = []
    for s in range(len(machines[m].states)):
        n_parts = int(rng.integers(1, MAX_PARTS + 1))
        names = tokens_into(machines[m], s)
        if len(names) >= n_parts and rng.random() < 0.5:
            of_token = np.zeros(len(vocabulary), np.int64)
            ids = [vocabulary.index(name) for name in names]
            of_token[rng.permutation(ids)] = np.arange(len(ids)) % n_parts
            part = of_token[tokens]
        else:
            part = rng.integers(n_parts, size=docs[-1] + 1)[docs]
        at_home = (states == (m, s)).all(1)
        found.extend(Part(m, s, at_home & (part == k)) for k in range(n_parts))
    return found


def _heard(
    home: NDArray[np.bool_], miss: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(n,) firing of a feature that should fire at home, with misses and false alarms."""
    n = len(home)
    missed = silences(n, float(rng.uniform(*miss)), rng)
    return (home & ~missed) | (rng.random(n) < FALSE_ALARMS)


def _stranger(
    parts: list[Part], machines: list[Machine], part: Part, rng: np.random.Generator
) -> int:
    """Choose a part of another kind of machine: what follows it does not follow `part`."""
    kind = machines[part.machine].kind
    return int(rng.choice([k for k, one in enumerate(parts) if machines[one.machine].kind != kind]))


def _weights(text: Text, cast: Cast, d_vocab: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(d_sae, d_vocab) nats a unit, each row's median at 0."""
    lifts = log_lifts(text, cast.fires, d_vocab)
    for feature, lender in cast.borrowed.items():
        lifts[feature] = lifts[lender]
    weights = STRENGTH * lifts + rng.normal(0, WEIGHT_NOISE, lifts.shape)
    return np.asarray(weights - np.median(weights, axis=1, keepdims=True))


def _truth(
    path: Path, text: Text, machines: list[Machine], cast: Cast, place: NDArray[np.int64]
) -> PlantedWorld:
    n_parts, ids = len(cast.parts), [int(k) for k in place]
    steps = _steps(text, [*cast.parts, *cast.onlookers])
    rows, columns = np.nonzero(steps)
    found = {(ids[i], ids[j]): int(steps[i, j]) for i, j in zip(rows, columns, strict=True)}
    promoting = {edge: n for edge, n in found.items() if edge[0] in set(ids[:n_parts])}
    states = [
        [
            frozenset(ids[k] for k, part in enumerate(cast.parts) if part[:2] == (m, s))
            for s in range(len(machine.states))
        ]
        for m, machine in enumerate(machines)
    ]
    return PlantedWorld(
        path=path,
        truth_edges=frozenset(edge for edge, n in promoting.items() if n >= MIN_STEPS),
        groups=[frozenset().union(*of) for of in states],
        kinds=[machine.kind for machine in machines],
        states=states,
        context=frozenset(ids[k] for k in cast.context),
        identity=frozenset(ids[k] for k in cast.identity),
        set_aside=frozenset(ids[k] for k in cast.context),
        rare_edges=frozenset(edge for edge, n in promoting.items() if n < MIN_STEPS),
        unpromoted_edges=frozenset(found) - frozenset(promoting),
    )


def _steps(text: Text, parts: list[Part]) -> NDArray[np.float32]:
    """(len(parts), len(parts)) how often each part's home token is followed by another's."""
    docs = np.array(text.docs)
    held_out = held_out_documents(int(docs[-1]) + 1, HELD_OUT)
    counted = joined(text) & ~held_out[docs[:-1]]
    home = np.stack([part.home for part in parts], axis=1)
    before, after = (home[at][counted].astype(np.float32) for at in (slice(-1), slice(1, None)))
    return before.T @ after
