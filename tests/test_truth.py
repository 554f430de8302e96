"""Readers of tokens are scored fairly: on text they were not fitted on, against the parser."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from circuits.labels import LABELERS, PYTHON_GROUPS, UTF8_GROUPS, python_kinds, utf8_positions
from circuits.probes import probe_predictions
from circuits.truth import (
    UNLABELLED,
    package_groups,
    package_names,
    presence_of,
    token_labels,
    truth_tables,
)
from circuits.truth_rows import TruthRow, TruthTables, rows_of
from circuits.votes import Presence, matrix_of, presence_only, strongest, vote_predictions
from sae_core.errors import GraphError
from sae_core.schema import TokenTable


def table(token_ids: list[int], doc_ids: list[int], fires: list[list[int]]) -> TokenTable:
    n, flat = len(token_ids), [feature for row in fires for feature in row]
    indptr = np.cumsum([0, *map(len, fires)])
    ones = np.ones(len(flat), dtype=np.float32)
    return TokenTable(
        np.array(doc_ids, dtype=np.uint32),
        np.array(doc_ids, dtype=np.uint32),
        np.arange(n, dtype=np.uint32),
        np.array(token_ids, dtype=np.uint32),
        np.arange(n),
        np.arange(n) + 1,
        indptr,
        np.array(flat, dtype=np.uint32),
        ones,
        0 * ones,
    )


def world(seed: int, n_packages: int = 4, n: int = 3000) -> tuple[TokenTable, list[int], list[int]]:
    """Make tokens whose label is told by feature = label, and half-told by the token."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    token_ids = np.where(rng.random(n) < 0.5, labels, rng.integers(4, 8, size=n))
    noise = rng.integers(4, 10, size=n)
    doc_ids = np.arange(n) * 8 // n
    tokens = table(
        token_ids.tolist(), doc_ids.tolist(), [[a, b] for a, b in zip(labels, noise, strict=True)]
    )
    return tokens, labels.tolist(), (doc_ids * n_packages // 8).tolist()


def tallied(
    tokens: TokenTable, labels: list[int], groups: list[int], d: int = 10, **more: object
) -> TruthTables:
    return truth_tables(
        features=presence_of(tokens, d),
        tokens=tokens,
        labels=np.array(labels, dtype=np.uint8),
        groups=np.array(groups),
        n_labels=4,
        **more,  # type: ignore[arg-type]
    )


def scored(
    tokens: TokenTable, labels: list[int], groups: list[int], d: int = 10, **more: object
) -> dict[str, TruthRow]:
    return {row.what: row for row in rows_of(tallied(tokens, labels, groups, d, **more))}


def neurons_of(labels: list[int], seed: int = 0) -> Presence:
    """Make 12 neurons that mix the labels with noise."""
    rng = np.random.default_rng(seed)
    mixed = np.eye(4)[labels] @ rng.normal(size=(4, 12)) + rng.normal(size=(len(labels), 12)) * 0.3
    acts = csr_array(np.maximum(mixed, 0).astype(np.float32))
    return Presence(acts.indptr.astype(np.int64), acts.indices.astype(np.uint32), acts.data, 12)


@pytest.mark.parametrize("n_packages", [1, 2, 4])
def test_features_that_tell_the_label_score_one(n_packages: int) -> None:
    rows = scored(*world(0, n_packages))
    assert rows["features"].accuracy == rows["features"].macro_f1 == 1.0
    assert 0.55 < rows["token"].accuracy < 0.75
    assert rows["majority"].accuracy < 0.35
    assert rows["features"].n_tokens == (3000 if n_packages == 4 else 1500)


def test_the_interval_holds_the_accuracy() -> None:
    for row in scored(*world(1)).values():
        assert row.low <= row.accuracy <= row.high


def test_noise_features_score_as_the_majority() -> None:
    tokens, labels, groups = world(2)
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    rows = scored(tokens, shuffled, groups)
    assert abs(rows["features"].accuracy - rows["majority"].accuracy) < 0.05


def test_nothing_is_fitted_on_what_it_scores() -> None:
    # A token of one package only says nothing about the others: its own label must not be known.
    tokens = table([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], [[]] * 6)
    rows = scored(tokens, [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2])
    assert rows["token"].accuracy == rows["majority"].accuracy == 0.5


def test_a_pair_never_seen_falls_back_to_its_token() -> None:
    tokens = table([0, 1, 2, 1, 3, 1], [0, 0, 1, 1, 2, 2], [[]] * 6)
    rows = scored(tokens, [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2])
    assert rows["token pair"].accuracy == rows["token"].accuracy == 1.0


def test_no_pair_crosses_a_document() -> None:
    # The token before tells the label, but for the first token of a document.
    ids, labels, doc_ids = [], [], []
    for doc in range(9):
        first = doc % 2
        ids += [2, first, 2]
        labels += [0, 1, 2 + first]
        doc_ids += [doc] * 3
    rows = scored(table(ids, doc_ids, [[]] * 27), labels, [doc // 3 for doc in doc_ids])
    assert rows["token pair"].accuracy == 1.0


def test_states_are_read_by_their_most_frequent_label() -> None:
    tokens, labels, groups = world(3)
    states = np.array([label if label < 2 else -1 for label in labels])
    rows = scored(tokens, labels, groups, states={"html": states})
    assert 0.7 < rows["automaton html"].accuracy < 0.8


def test_neurons_are_scored_beside_the_features() -> None:
    tokens, labels, groups = world(4)
    rows = scored(tokens, labels, groups, neurons=lambda: neurons_of(labels))
    assert rows["neuron probe, all"].accuracy > 0.9
    assert rows["neuron probe, all"].accuracy >= rows["neuron probe, 1"].accuracy
    assert rows["neurons"].accuracy > rows["majority"].accuracy
    assert {
        "features, presence", "neurons, presence", "neurons at equal L0",
        "neurons at equal L0, presence",
    } < set(rows)  # fmt: skip


def test_a_shuffled_model_is_read_by_a_vote_and_by_a_probe() -> None:
    tokens, labels, groups = world(4)
    noise = np.random.default_rng(9).permutation(labels).tolist()
    rows = scored(tokens, labels, groups, shuffled=lambda: neurons_of(noise))
    told = {what: row.accuracy for what, row in rows.items() if "shuffled" in what}
    assert set(told) == {
        "shuffled model, neurons at equal L0",
        "shuffled model, neuron probe, all",
    }
    assert all(abs(one - rows["majority"].accuracy) < 0.08 for one in told.values())


def test_the_neurons_are_dropped_before_the_shuffled_ones_are_read() -> None:
    tokens, labels, groups = world(4)
    alive: list[weakref.ref[Presence]] = []

    def given() -> Presence:
        assert not [one for one in alive if one() is not None]
        made = neurons_of(labels)
        alive.append(weakref.ref(made.values))
        return made

    scored(tokens, labels, groups, neurons=given, shuffled=given)
    assert len(alive) == 2


def test_a_presence_vote_forgets_how_strongly_an_entry_fires() -> None:
    # One entry fires on every token; its strength alone tells the label.
    labels = np.tile([0, 1, 1], 300).astype(np.uint8)
    acts = np.where(labels == 1, 1.0, 30.0).astype(np.float32)
    presence = Presence(np.arange(901), np.zeros(900, np.uint32), acts, 1)
    blind = presence_only(presence)
    told = [
        vote_predictions(matrix_of(one), labels, np.arange(900) % 2, tested=(0, 1), n_labels=2)
        for one in (presence, blind)
    ]
    assert (told[0] == labels).all()
    assert (told[1] == 1).all()
    assert presence.values[0] == 30.0


@pytest.mark.parametrize("k", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_strongest_are_those_of_a_plain_loop(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 8, size=50)
    indices = np.concatenate([np.sort(rng.choice(9, n, replace=False)) for n in lengths])
    values = rng.choice([0.5, 1.0, 2.0], size=len(indices)).astype(np.float32)  # many are equal
    presence = Presence(
        np.concatenate([[0], np.cumsum(lengths)]), indices.astype(np.uint32), values, 9
    )
    n_fires = np.bincount(indices, minlength=9)
    sums = np.bincount(indices, weights=values, minlength=9)
    per_mean = (n_fires / np.maximum(sums, 1e-30)).astype(np.float32)
    expected = []
    for first, n in zip(presence.indptr, lengths, strict=False):
        entries = range(first, first + n)
        best = sorted(entries, key=lambda e: (-values[e] * per_mean[indices[e]], e))[:k]
        expected.append([int(indices[e]) for e in sorted(best)])
    kept = strongest(presence, k)
    parts = np.split(kept.indices, kept.indptr[1:-1])
    assert [part.tolist() for part in parts] == expected


def test_a_presence_without_entries_has_no_strongest() -> None:
    nothing = Presence(np.zeros(4, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32), 3)
    assert strongest(nothing, 2).indptr.tolist() == [0, 0, 0, 0]


def test_packages_named_are_scored_alone_by_what_all_others_teach() -> None:
    tokens, labels, groups = world(0)
    whole, part = tallied(tokens, labels, groups), tallied(tokens, labels, groups, only=[2, 0])
    assert part.units == (0, 2)
    assert part.are_packages
    for what, counts in part.tables.items():
        assert counts.tolist() == whole.tables[what][[0, 2]].tolist(), what


def test_one_package_scored_alone_has_intervals_over_its_documents() -> None:
    tokens, labels, groups = world(0)
    part = tallied(tokens, labels, groups, only=[3])
    assert not part.are_packages
    assert part.units == (6, 7)
    assert rows_of(part)[0].n_tokens == 750


def test_scoring_some_of_two_packages_is_refused() -> None:
    tokens, labels, groups = world(0, 2)
    with pytest.raises(GraphError, match=r"2 packages have labelled tokens; .* at least 3"):
        tallied(tokens, labels, groups, only=[1])


def test_a_package_without_labels_is_refused() -> None:
    tokens, labels, groups = world(0)
    blank = [
        UNLABELLED if group == 1 else label for label, group in zip(labels, groups, strict=True)
    ]
    with pytest.raises(GraphError, match="package 1 has no labelled token"):
        tallied(tokens, blank, groups, only=[1])


def test_too_few_labels_are_refused() -> None:
    tokens = table([0, 1], [0, 0], [[], []])
    with pytest.raises(GraphError, match="1 tokens have a label"):
        scored(tokens, [0, UNLABELLED], [0, 0])


def test_tokens_without_a_label_are_not_scored() -> None:
    tokens, labels, groups = world(5)
    assert scored(tokens, [UNLABELLED] * 100 + labels[100:], groups)["token"].n_tokens == 2900


def test_one_document_is_scored_on_its_second_half_without_an_interval() -> None:
    tokens, labels, _ = world(6)
    alone = tokens._replace(doc_ids=np.zeros(3000, dtype=np.uint32))
    row = scored(alone, labels, [0] * 3000)["features"]
    assert (row.n_tokens, row.accuracy, row.low, row.high) == (1500, 1.0, None, None)


def test_the_strongest_are_those_far_above_their_own_mean() -> None:
    # Entry 0 is always strong; on token 1, entry 1 is far above its mean, entry 0 below it.
    presence = Presence(
        np.array([0, 2, 4, 5]),
        np.array([0, 1, 0, 1, 1], dtype=np.uint32),
        np.array([100, 1, 90, 9, 2], dtype=np.float32),
        3,
    )
    kept = strongest(presence, 1)
    assert kept.indptr.tolist() == [0, 1, 2, 3]
    assert kept.indices.tolist() == [0, 1, 1]
    assert kept.values.tolist() == [100, 9, 2]


def test_entries_that_say_the_same_do_not_drown_the_frequency_of_a_label() -> None:
    # Twenty copies of a hint of odds 3 : 1 for a label of odds 1 : 9; together they stay a hint.
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.1).astype(np.uint8)
    hint = np.where(rng.random(4000) < 0.75, labels, 1 - labels)
    acts = np.stack([hint == 1] * 20 + [hint == 0] * 20, axis=1)
    predicted = vote_predictions(
        csr_array(acts.astype(np.float32)), labels, np.arange(4000) % 2, tested=(0, 1), n_labels=2
    )
    assert (predicted == labels).mean() >= (labels == 0).mean()


def test_a_probe_of_one_neuron_reads_the_best_one() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400).astype(np.uint8)
    acts = np.stack([rng.random(400), labels + 0.1 * rng.random(400), rng.random(400)], axis=1)
    folds = np.arange(400) % 2
    (predicted,) = probe_predictions(
        csr_array(acts), labels, folds, tested=(0, 1), n_labels=2, widths=(1,)
    )
    assert (predicted == labels).all()


def test_a_token_carries_the_label_of_its_last_byte() -> None:
    tokens = table([0, 1, 2], [0, 0, 1], [[]] * 3)._replace(
        byte_start=np.array([0, 2, 0]), byte_end=np.array([2, 5, 1])
    )
    texts = [b"<p>xy", b"<"]
    names = LABELERS["html"].names
    labels = token_labels(tokens, texts.__getitem__, LABELERS["html"].label)
    assert [names[label] for label in labels] == ["tagName", "data", "tagOpen"]


def test_a_token_without_bytes_has_no_label() -> None:
    tokens = table([0, 1], [0, 0], [[]] * 2)._replace(
        byte_start=np.array([0, 0]), byte_end=np.array([0, 1])
    )
    assert token_labels(tokens, lambda _: b"a", utf8_positions).tolist() == [UNLABELLED, 0]


def test_a_token_beyond_its_document_is_refused() -> None:
    tokens = table([0], [0], [[]])._replace(byte_end=np.array([9]))
    with pytest.raises(GraphError, match="has 1 bytes, but a token of it ends at 9"):
        token_labels(tokens, lambda _: b"a", utf8_positions)


@pytest.mark.parametrize(
    ("sources", "groups"),
    [
        (["d/bash/a", "d/bash/x/b", "d/twisted/c"], [0, 0, 1]),
        (["a.html", "b.html"], [0, 0]),
        (["bash/a", "top.html", "twisted/b"], [1, 0, 2]),
        (["d/a.jsonl#1", "d/a.jsonl#2"], [0, 0]),
        (["d/only/deep/a"], [0]),
        ([], []),
    ],
)
def test_packages_are_the_first_folders_that_differ(sources: list[str], groups: list[int]) -> None:
    assert package_groups(sources).tolist() == groups


def test_packages_are_named_by_their_folder() -> None:
    assert package_names(["d/b/x", "d/a/y", "d/z"]) == ["b", "a", "."]


def test_utf8_labels_say_position_and_length() -> None:
    found = [UTF8_GROUPS[label] for label in utf8_positions("a\u00e9\u20ac".encode() + b"\x80")]
    assert found == [
        "byte 1 of 1",
        *("byte 1 of 2", "byte 2 of 2"),
        *("byte 1 of 3", "byte 2 of 3", "byte 3 of 3"),
        "invalid",
    ]


def test_python_labels_follow_tokenize() -> None:
    source = b"if x_1:  # caf\xc3\xa9\n    y = 'a' + 1.5\n"
    found = "".join(PYTHON_GROUPS[label][0] for label in python_kinds(source))
    assert found == "kkwnnnoww" + "ccccccc" + "wwwww" + "nwowssswow" + "nnnw"


def test_python_that_breaks_off_is_an_error_from_there() -> None:
    found = python_kinds(b"x = 1\ny = '''open")
    assert PYTHON_GROUPS[found[0]] == "name"
    assert PYTHON_GROUPS[found[-1]] == "error"


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode), st.sampled_from([*LABELERS]))
def test_any_bytes_have_a_label_each(data: bytes, kind: str) -> None:
    found = LABELERS[kind].label(data)
    assert found.shape == (len(data),)
    assert found.max(initial=0) < len(LABELERS[kind].names)
