"""Counting with torch gives what the loops give."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import naive
import numpy as np
import polars as pl
import pytest
import torch

from sae_core import device_counts
from sae_core.counting import transition_counts
from sae_core.errors import ModelError
from sae_core.statistics import Statistics, collect

if TYPE_CHECKING:
    from sae_core.schema import TokenTable

D_SAE, D_VOCAB = 40, 5
HAS_GPU = torch.cuda.is_available()
NO_GPU = "there is no GPU here; the same code runs on the CPU in the other tests"


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch count on the CPU where a GPU is asked for."""
    monkeypatch.setattr(device_counts, "choose_device", lambda _: torch.device("cpu"))


def assert_equal(found: Statistics, expected: Statistics) -> None:
    for name in (field.name for field in fields(Statistics)):
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(one, pl.DataFrame):
            assert one.schema == other.schema
            assert one.equals(other), name
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)


def drawn(seed: int) -> TokenTable:
    return naive.random_tokens(seed, n=300, d_sae=D_SAE, d_vocab=D_VOCAB)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("limits", [(1 << 24, 1 << 25, 1 << 24), (90, 400, 7), (1, 1, 1)])
def test_sums_of_any_ranges_are_those_of_the_loops(
    seed: int, limits: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("CELLS", "PAIRS", "EXPANDED"), limits, strict=True):
        monkeypatch.setattr(device_counts, name, value)
    tokens = drawn(seed)
    assert_equal(collect(tokens, D_SAE, D_VOCAB, device="cuda"), collect(tokens, D_SAE, D_VOCAB))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counted_pairs_are_those_of_the_loops(seed: int) -> None:
    tokens = drawn(seed)
    columns = (tokens.indptr, tokens.features, tokens.doc_ids, D_SAE)
    found = transition_counts(*columns, device="cuda")
    np.testing.assert_array_equal(found.toarray(), naive.pair_counts(tokens, D_SAE))
    assert found.dtype == np.int64


@pytest.mark.usefixtures("on_cpu")
def test_a_text_without_tokens_and_one_without_features_have_no_pairs() -> None:
    nothing = np.empty(0, np.int64)
    assert transition_counts(np.array([0]), nothing, nothing, 3, device="cuda").nnz == 0
    assert transition_counts(np.zeros(4, int), nothing, np.zeros(3), 3, device="cuda").nnz == 0
    silent = naive.part(drawn(0), 0, 0)
    assert_equal(collect(silent, D_SAE, D_VOCAB, device="cuda"), collect(silent, D_SAE, D_VOCAB))


@pytest.mark.skipif(HAS_GPU, reason="here is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no GPU here; use --device cpu"):
        collect(drawn(0), D_SAE, D_VOCAB, device="cuda")


@pytest.mark.skipif(not HAS_GPU, reason=NO_GPU)
def test_sums_counted_on_a_gpu_are_those_of_the_loops() -> None:
    tokens = drawn(3)
    assert_equal(collect(tokens, D_SAE, D_VOCAB, device="cuda"), collect(tokens, D_SAE, D_VOCAB))
