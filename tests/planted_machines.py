"""The automata that planted worlds hide: loops, pairs, systems and memorised chains.

1. `machines_of`: a system is four states of tags and values; no two machines share a token.
2. `wide_machines_of`: systems of 4-6 states with random arrows and chains of 5-8 words; machines
   share tokens with each other, and chains also with the text around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

N_WORDS = 300
EXIT = -1
SHARED = tuple(f"s{k}" for k in range(8))  # tokens that any machine may use
N_FREQUENT = 30  # words of the background that a memorised phrase may hold


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


def machines_of(n_copies: int, rng: np.random.Generator) -> list[Machine]:
    """Make `n_copies` machines of each kind, each with tokens of its own."""
    makers = (_loop, _pair, _system, _chain)
    return [maker(f"{maker.__name__[1]}{k}", rng) for k in range(n_copies) for maker in makers]


def wide_machines_of(n_copies: int, rng: np.random.Generator) -> list[Machine]:
    """Make `n_copies` machines of each kind that share some of their tokens."""
    makers = (_shared_loop, _pair, _wide_system, _phrase)
    return [maker(f"{maker.__name__[1:4]}{k}", rng) for k in range(n_copies) for maker in makers]


def words_of(machines: list[Machine]) -> list[str]:
    """Give the text of each token id: the background's words, then the machines' own tokens."""
    words = [f" w{k}" for k in range(N_WORDS)]
    arcs = [arc for machine in machines for of in (machine.entry, *machine.states) for arc in of]
    return words + sorted({token for arc in arcs for token in arc.tokens} - set(words))


def tokens_into(machine: Machine, state: int) -> tuple[str, ...]:
    """Give the tokens on which a machine comes into a state, sorted."""
    arcs = [arc for of in (machine.entry, *machine.states) for arc in of if arc.target == state]
    return tuple(sorted({token for arc in arcs for token in arc.tokens}))


def _loop(name: str, rng: np.random.Generator, more: tuple[str, ...] = ()) -> Machine:
    tokens = tuple(f"{name}x{k}" for k in range(int(rng.integers(8, 20)))) + more
    stay = 1 - 10 ** float(rng.uniform(-2.3, -0.8))  # runs of 6 to 200 tokens
    state = (Arc(0, stay, tokens), Arc(EXIT, 1 - stay, ()))
    return Machine("loop", (Arc(0, 1.0, tokens),), (state,))


def _shared_loop(name: str, rng: np.random.Generator) -> Machine:
    return _loop(name, rng, _some(SHARED, 3, rng))


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


def _wide_system(name: str, rng: np.random.Generator) -> Machine:
    """Go round in a circle of states, with short cuts; each state has a class of tokens."""
    n = int(rng.integers(4, 7))
    classes = [_class(f"{name}{'abcdef'[s]}", rng) for s in range(n)]
    states = []
    for s in range(n):
        jumps = [t for t in range(n) if t not in (s, (s + 1) % n) and rng.random() < 0.35]
        leave = 0.25 if s == n - 1 else 0.0
        each = float(rng.uniform(0.15, 0.25)) if jumps else 0.0
        on = Arc((s + 1) % n, 1 - leave - each * len(jumps), classes[(s + 1) % n])
        arcs = [on, *(Arc(t, each, classes[t]) for t in jumps)]
        states.append((*arcs, Arc(EXIT, leave, (f"{name}>",))) if leave else tuple(arcs))
    return Machine("system", (Arc(0, 1.0, classes[0]),), tuple(states))


def _class(name: str, rng: np.random.Generator) -> tuple[str, ...]:
    own = tuple(f"{name}{k}" for k in range(int(rng.choice([1, 2, 6, 12]))))
    return own + (_some(SHARED, 1, rng) if rng.random() < 0.5 else ())


def _chain(name: str, rng: np.random.Generator) -> Machine:
    length = int(rng.integers(4, 7))
    return _in_line([f"{name}c{k}" for k in range(length)])


def _phrase(name: str, rng: np.random.Generator) -> Machine:
    words = [f"{name}c{k}" for k in range(int(rng.integers(5, 9)))]
    for k in range(1, len(words)):
        kind = rng.random()
        if kind < 0.25:
            words[k] = f" w{int(rng.integers(N_FREQUENT))}"
        elif kind < 0.4:
            words[k] = str(rng.choice(SHARED))
    return _in_line(words)


def _in_line(words: list[str]) -> Machine:
    length = len(words)
    steps = [(Arc(k + 1, 1.0, (words[k + 1],)),) for k in range(length - 1)]
    return Machine("chain", (Arc(0, 1.0, (words[0],)),), (*steps, (Arc(EXIT, 1.0, ()),)))


def _some(names: tuple[str, ...], n: int, rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(sorted(str(name) for name in rng.choice(names, size=n, replace=False)))
