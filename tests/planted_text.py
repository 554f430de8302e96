"""Text with runs of hidden machines in it.

1. A document has one topic and a few favourite machines.
2. Background words of the topic, each drawn by itself or after the word before (a bigram text), are
   interrupted by runs of machines. Machine tokens also occur in the background.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from planted_machines import EXIT, N_WORDS, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Background: TypeAlias = Callable[[int, int, int], list[int]]
    """(topic, token before, number of words) -> token ids."""

N_TOPICS = 4
N_CONTEXT = 256  # tokens of a window
OUTSIDE = (-1, -1)


@dataclass
class Text:
    """Parallel lists, one entry a token."""

    docs: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    states: list[tuple[int, int]] = field(default_factory=list)
    """(machine, state) after each token; OUTSIDE elsewhere."""

    def append(self, doc: int, token: int, state: tuple[int, int]) -> None:
        """Add a token."""
        self.docs.append(doc)
        self.tokens.append(token)
        self.states.append(state)


def topic_words(n_vocab: int, rng: np.random.Generator) -> Background:
    """Draw each background word by itself, from the topic's frequencies."""
    topics = [_topic_weights(n_vocab, rng) for _ in range(N_TOPICS)]

    def words(topic: int, _before: int, n: int) -> list[int]:
        return [int(token) for token in rng.choice(n_vocab, size=n, p=topics[topic])]

    return words


def bigram_words(n_vocab: int, rng: np.random.Generator) -> Background:
    """Draw each background word after the one before it: what follows what is the same in all topics."""
    after = _topic_weights(n_vocab, rng) * np.exp(rng.normal(0, 1.5, (n_vocab, n_vocab)))
    tables = [
        np.cumsum(after * np.exp(rng.normal(0, 1.0, n_vocab)), axis=1) for _ in range(N_TOPICS)
    ]

    def words(topic: int, before: int, n: int) -> list[int]:
        found = []
        for chance in rng.random(n):
            row = tables[topic][before]
            before = int(np.searchsorted(row, chance * row[-1], side="right"))
            found.append(before)
        return found

    return words


def write_text(
    machines: list[Machine],
    vocabulary: list[str],
    background: Background,
    *,
    n_tokens: int,
    share: float,
    rng: np.random.Generator,
) -> Text:
    """Write documents of 300 to 900 tokens until there are `n_tokens`.

    Args:
        machines: what to hide.
        vocabulary: text of each token id.
        background: gives the words between the machines.
        n_tokens: about how many tokens.
        share: a machine starts after a background stretch with twice this chance.
        rng: source of chance.
    """
    ids = {name: k for k, name in enumerate(vocabulary)}
    text, doc = Text(), 0
    while len(text.tokens) < n_tokens:
        favourites = rng.choice(len(machines), size=min(3, len(machines)), replace=False)
        stop = len(text.tokens) + int(rng.integers(300, 900))
        while len(text.tokens) < stop:
            before = text.tokens[-1] if text.tokens else 0
            for token in background(doc % N_TOPICS, before, int(rng.geometric(0.06))):
                text.append(doc, token, OUTSIDE)
            if rng.random() < share * 2:
                which = int(rng.choice(favourites))
                _run(text, doc, (which, machines[which]), ids, rng)
        doc += 1
    return text


def windows_of(docs: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) window of each token: N_CONTEXT tokens, or fewer at a document's end."""
    pos = np.arange(len(docs)) - np.searchsorted(docs, docs)
    starts = np.append(True, (np.diff(docs) > 0) | (pos[1:] % N_CONTEXT == 0))
    return np.asarray(np.cumsum(starts) - 1)


def held_out_documents(n_docs: int, share: float) -> NDArray[np.bool_]:
    """(n_docs,) which documents are held out: evenly spread."""
    return np.asarray((np.arange(n_docs) * 0.618) % 1 < share)


def _topic_weights(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    weights = 1 / (np.arange(n) + 3.0)
    weights[N_WORDS:] = 0.1 / n  # machine tokens outside machines: 1 in 40 or so
    weights *= np.exp(rng.normal(0, 1.0, n))
    return np.asarray(weights / weights.sum())


def _run(
    text: Text,
    doc: int,
    machine: tuple[int, Machine],
    ids: dict[str, int],
    rng: np.random.Generator,
) -> None:
    which, (_, arcs, states) = machine
    while True:
        arc = arcs[int(rng.choice(len(arcs), p=[a.probability for a in arcs]))]
        if arc.target == EXIT:
            if arc.tokens:
                text.append(doc, ids[str(rng.choice(arc.tokens))], OUTSIDE)
            return
        text.append(doc, ids[str(rng.choice(arc.tokens))], (which, arc.target))
        arcs = states[arc.target]
