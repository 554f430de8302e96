"""A planted text and its features -> a run directory of the public schema.

A feature's logit weights are made from the data's own log lifts: how much likelier each token is
after the feature fired. Its promotion of the token that came is weight x activation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from planted_text import Text, held_out_documents, windows_of

from sae_core.run_writer import write_run

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHRINKAGE = 20.0  # pseudo-counts of the unigram in each log lift


def joined(text: Text) -> NDArray[np.bool_]:
    """(n - 1,) whether each token and the next are in one window."""
    windows = windows_of(np.array(text.docs))
    return np.asarray(windows[1:] == windows[:-1])


def log_lifts(text: Text, fires: NDArray[np.bool_], d_vocab: int) -> NDArray[np.float64]:
    """(d_sae, d_vocab) log of P(next token | feature) / P(next token), shrunk for small counts."""
    same = joined(text)
    following = np.array(text.tokens)[1:][same]
    base = np.bincount(following, minlength=d_vocab) + 0.5
    base = base / base.sum()
    lifts = []
    for column in fires[:-1][same].T:
        counts = np.bincount(following[column], minlength=d_vocab)
        share = (counts + SHRINKAGE * base) / (counts.sum() + SHRINKAGE)
        lifts.append(np.log(share / base))
    return np.array(lifts)


def write_planted(
    path: Path,
    text: Text,
    vocabulary: list[str],
    fires: NDArray[np.bool_],
    weights: NDArray[np.float64],
    *,
    nats_noise: float,
    held_out: float,
    rng: np.random.Generator,
) -> None:
    """Write the run directory.

    Args:
        path: the new run directory.
        text: the tokens.
        vocabulary: text of each token id.
        fires: (n, d_sae) which features fire on each token.
        weights: (d_sae, d_vocab) nats that one unit of each feature gives to each token.
        nats_noise: standard deviation of a promotion's noise.
        held_out: share of the documents marked as held out.
        rng: source of chance.
    """
    docs, tokens = np.array(text.docs), np.array(text.tokens)
    rows, features = np.nonzero(fires)
    acts = rng.gamma(4.0, 0.25, len(rows)).astype(np.float32) + np.float32(0.05)
    promotions = weights[features, np.append(tokens[1:], 0)[rows]] * acts
    promotions += rng.normal(0, nats_noise, len(rows))
    promotions[~np.append(joined(text), False)[rows]] = 0
    n_docs = int(docs[-1]) + 1
    documents = pl.DataFrame(
        {
            "doc_id": np.arange(n_docs),
            "source": [f"planted/{k}.txt" for k in range(n_docs)],
            "held_out": held_out_documents(n_docs, held_out),
        }
    )
    write_run(
        path,
        documents=documents,
        tokens={"doc_id": docs, "window_id": windows_of(docs), "token_id": tokens},
        indptr=np.concatenate([[0], np.cumsum(fires.sum(1))]),
        features=features,
        acts=acts,
        promotions=promotions.astype(np.float32),
        vocabulary=[name.encode() for name in vocabulary],
        d_sae=fires.shape[1],
    )
