"""Features too rare to have edges join the place of a chain whose part they play."""

from __future__ import annotations

import numpy as np
import polars as pl

from circuits.propose import Proposal
from circuits.rare_parts import with_rare_parts
from sae_core.schema import TokenTable

D_SAE = 12
PHRASE = (0, 1, 2, 3)  # each place's feature
RARE, LATE, TWIN, SILENT, STRAY = 4, 5, 6, 7, 8
COLUMNS = ("source", "target", "score", "lift", "burst_ratio")
NO_EDGES = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.Float64))
CHAIN = Proposal(tuple((feature,) for feature in PHRASE), "chain")


def text() -> TokenTable:
    """Give 200 phrases among plain tokens.

    In ten of them RARE stands for 1, in ten LATE for 3. TWIN fires with 2, SILENT stands for 2 ten
    times and gives nothing to what follows, STRAY fires between phrases.
    """
    fires: list[list[int]] = []
    for k in range(200):
        phrase = [[0], [RARE if k % 20 == 3 else 1], [2, TWIN], [LATE if k % 20 == 5 else 3]]
        if k % 20 == 7:
            phrase[2] = [SILENT]
        fires += [*phrase, [], [STRAY] if k % 20 == 0 else [], []]
    features = np.array([f for one in fires for f in one], np.uint32)
    n, at = len(fires), np.arange(len(fires))
    return TokenTable(
        doc_ids=np.zeros(n, np.uint32),
        window_ids=np.zeros(n, np.uint32),
        pos=at.astype(np.uint32),
        token_ids=at.astype(np.uint32) % 7,
        byte_start=at,
        byte_end=at + 1,
        indptr=np.concatenate([[0], np.cumsum([len(one) for one in fires])]),
        features=features,
        acts=np.ones(len(features), np.float32),
        promotions=np.where(features == SILENT, 0.0, 2.0).astype(np.float32),
    )


def test_a_rare_part_joins_its_place_and_no_other_feature_does() -> None:
    grown = with_rare_parts([CHAIN], NO_EDGES, text(), D_SAE)
    assert [one.groups for one in grown] == [((0,), (1, RARE), (2,), (3, LATE))]


def test_a_feature_with_a_strong_edge_stays_where_it_is() -> None:
    strong = pl.DataFrame([(RARE, 9, 2.0, 9.0, 9.0)], schema=COLUMNS, orient="row")
    grown = with_rare_parts([CHAIN], strong, text(), D_SAE)
    assert [one.groups for one in grown] == [((0,), (1,), (2,), (3, LATE))]


def test_what_is_no_chain_stays_as_it_is() -> None:
    system = CHAIN._replace(kind="system")
    assert with_rare_parts([system], NO_EDGES, text(), D_SAE) == [system]
    assert with_rare_parts([system, CHAIN], NO_EDGES, text(), D_SAE)[0] == system


def test_no_step_is_taken_from_one_window_to_the_next() -> None:
    cut = text()
    # Every token is a window of its own: nothing comes after anything.
    cut = cut._replace(window_ids=np.arange(len(cut.token_ids), dtype=np.uint32))
    assert with_rare_parts([CHAIN], NO_EDGES, cut, D_SAE) == [CHAIN]
