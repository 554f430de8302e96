"""What automata say of the next token inside their spans, beside machines with as many states.

1. The steps are those of an automaton on held-out text: places inside its spans whose next token is
   known. Every machine predicts the next token on the same steps.
2. Automaton and k-means on neurons: P(token | state), counted on training text, smoothed as in the
   automaton's own scores. Hidden Markov model: fitted to the tokens of the same training spans.
3. As context: the spans' unigram, n-grams of all training text, and the model itself.
4. Documents are drawn with replacement for the intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from circuits.fidelity import next_token_chances, unigram
from circuits.states import state_sequence, steps_of
from circuits.truth_rows import interval_of, unit_draws
from figures.automata_machines import (
    AUTOMATON,
    CLUSTERS,
    HMM,
    TRIAL_STEPS,
    Clusters,
    fit_hmm,
    spans_of,
)
from sae_core.ngrams import START_TOKEN, train_ngrams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from circuits.automaton import FeatureAutomaton
    from circuits.states import Steps
    from figures.automata_texts import Part
    from sae_core.schema import TokenTable

    Chances = NDArray[np.float64]

RIVALS = (HMM, CLUSTERS)
NGRAMS = {"bigram": 2, "trigram": 3}
UNIGRAM = "spans' unigram"
CONTEXT = (UNIGRAM, *NGRAMS, "model")


@dataclass(frozen=True)
class Lead:
    """How many bits a step the automaton is ahead of another machine."""

    bits: float
    low: float | None
    """Lower end of the 95 % interval over documents; None where there is one document."""
    high: float | None


@dataclass(frozen=True)
class BitsRow:
    """One automaton beside all machines."""

    name: str
    title: str
    kind: str
    n_states: int
    n_steps: int
    """Steps scored; with 0, nothing is known."""

    bits: dict[str, float]
    """Machine -> bits a token."""

    leads: dict[str, Lead]
    """Rival -> how far the automaton is ahead of it."""

    @property
    def is_ahead(self) -> bool:
        """Whether it needs fewer bits than every rival."""
        return bool(self.leads) and all(lead.bits > 0 for lead in self.leads.values())

    @property
    def is_clearly_ahead(self) -> bool:
        """Whether the intervals say so too."""
        return bool(self.leads) and all((lead.low or 0.0) > 0 for lead in self.leads.values())


def bits_rows(
    automata: Sequence[FeatureAutomaton], training: Part, held_out: Part
) -> Iterator[BitsRow]:
    """Score automata and machines with as many states.

    Args:
        automata: of one run.
        training: the text that they were made from.
        held_out: the text to score on, with the model's loss where it is known.

    Yields:
        One row an automaton, in their order.
    """
    ngrams = ngram_chances(training.tokens, held_out.tokens, training.run.manifest.d_vocab)
    for automaton in automata:
        yield _row(automaton, training, held_out, ngrams)


def ngram_chances(training: TokenTable, held_out: TokenTable, d_vocab: int) -> dict[str, Chances]:
    """Give the probability of each held-out token by n-grams of the training text.

    Args:
        training: whole documents.
        held_out: whole documents, n tokens.
        d_vocab: size of the vocabulary.

    Returns:
        Name of the n-gram -> (n,) probabilities.
    """
    counted, scored = _stream(training), _stream(held_out)
    found = {}
    for name, order in NGRAMS.items():
        logs = train_ngrams(counted, order=order, d_vocab=d_vocab + 1).log_probs(scored)
        found[name] = np.exp(logs[scored != START_TOKEN])
    return found


def _stream(tokens: TokenTable) -> NDArray[np.int64]:
    """Put a start before each document; ids move up by one, for 0 may be a token like others."""
    begins = np.flatnonzero(np.diff(tokens.doc_ids.astype(np.int64), prepend=-1))
    return np.insert(tokens.token_ids.astype(np.int64) + 1, begins, START_TOKEN)


def _row(
    automaton: FeatureAutomaton, training: Part, held_out: Part, ngrams: Mapping[str, Chances]
) -> BitsRow:
    states, n_states = _states(automaton, training), len(automaton.states)
    counted = steps_of(training.tokens, states)
    scored = steps_of(held_out.tokens, _states(automaton, held_out))
    about = (automaton.name, automaton.title, automaton.kind, n_states, len(scored.rows))
    if not len(counted.rows) or not len(scored.rows):
        return BitsRow(*about, {}, {})
    told = _machines(training, held_out, states, (counted, scored), n_states)
    told |= {name: chances[scored.rows + 1] for name, chances in ngrams.items()}
    if held_out.nats is not None:
        told["model"] = np.exp(-held_out.nats[scored.rows].astype(np.float64))
    documents = np.unique(held_out.tokens.doc_ids[scored.rows], return_inverse=True)[1]
    return BitsRow(*about, *_scores(told, documents))


def _states(automaton: FeatureAutomaton, part: Part) -> NDArray[np.int32]:
    groups = [state.features for state in automaton.states]
    return state_sequence(part.tokens, groups, part.run.mean_acts)


def _machines(
    training: Part,
    held_out: Part,
    states: NDArray[np.int32],
    steps: tuple[Steps, Steps],
    n_states: int,
) -> dict[str, Chances]:
    """Give the probability of each step's token by the automaton, its rivals and the unigram."""
    counted, scored = steps
    prior = unigram(training.tokens, counted, n_states)
    own, _ = next_token_chances(counted, scored, n_states, prior)
    clusters = Clusters(training.neurons[counted.rows], n_states)
    near_counted, near_scored = (
        one._replace(source=clusters.of(part.neurons[one.rows]).astype(np.int32))
        for one, part in ((counted, training), (scored, held_out))
    )
    near, _ = next_token_chances(near_counted, near_scored, n_states, prior)
    base = np.full(training.run.manifest.d_vocab, prior.min())
    base[: len(prior)] = prior
    few, spans = (spans_of(training.tokens, states, max_steps=n) for n in (TRIAL_STEPS, None))
    hidden = fit_hmm(few, spans, n_states, base)
    inside = np.full(len(held_out.tokens.token_ids), -1)
    inside[scored.rows] = 0
    _, alone = next_token_chances(counted, scored, 1, unigram(training.tokens, counted, 2))
    return {
        AUTOMATON: own,
        HMM: hidden.step_chances(spans_of(held_out.tokens, inside)),
        CLUSTERS: near,
        UNIGRAM: alone,
    }


def _scores(
    told: Mapping[str, Chances], documents: NDArray[np.int64]
) -> tuple[dict[str, float], dict[str, Lead]]:
    """Give bits a step, and the automaton's leads with intervals over documents."""
    n_steps = np.bincount(documents)
    sums = {
        what: np.bincount(documents, weights=-np.log2(chances)) for what, chances in told.items()
    }
    draws = unit_draws(len(n_steps))
    leads = {}
    for rival in RIVALS:
        ahead = sums[rival] - sums[AUTOMATON]
        low, high = interval_of((draws @ ahead) / (draws @ n_steps))
        leads[rival] = Lead(float(ahead.sum() / n_steps.sum()), low, high)
    return {what: float(one.sum() / n_steps.sum()) for what, one in sums.items()}, leads
