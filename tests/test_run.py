"""A run opened for reading: checked first, loaded when asked, its text rebuilt from tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

import circuits
import sae_core
from sae_core.errors import GraphError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [b"<a href", b"\xe0\xae\x85", b""]
VOCABULARY = [b"<", b"a", b" href", b"\xe0\xae", b"\x85"]


@pytest.fixture
def run(tmp_path: Path) -> circuits.Run:
    sae_core.write_run(
        tmp_path / "run",
        documents=pl.DataFrame(
            {"doc_id": [0, 4, 9], "source": ["a", "b", "c"], "held_out": [False, True, False]}
        ),
        tokens={"doc_id": [0, 0, 0, 4, 4], "token_id": [0, 1, 2, 3, 4]},
        indptr=[0, 1, 1, 3, 4, 4],
        features=[1, 0, 2, 2],
        acts=[1.0, 3.0, 2.0, 5.0],
        promotions=[0.5, 0.0, 0.0, 0.2],
        vocabulary=VOCABULARY,
        d_sae=4,
    )
    return circuits.open_run(tmp_path / "run")


def test_a_document_is_rebuilt_from_its_tokens(run: circuits.Run) -> None:
    assert [run.document(doc_id) for doc_id in (0, 4, 9)] == TEXTS


@pytest.mark.parametrize("doc_id", [1, -1, "0", 2.0])
def test_an_unknown_document_is_refused_with_the_valid_range(
    run: circuits.Run, doc_id: object
) -> None:
    with pytest.raises(ValueError, match=r"ids are 0\.\.9"):
        run.document(doc_id)  # type: ignore[arg-type]


def test_held_out_documents_are_left_out_of_the_sums(run: circuits.Run) -> None:
    assert run.tokens().doc_ids.tolist() == [0, 0, 0, 4, 4]
    assert run.tokens(held_out=True).doc_ids.tolist() == [4, 4]
    assert run.statistics.n_tokens == 3
    assert run.statistics.n_fires.tolist() == [1, 1, 1, 0]


def test_mean_activations_are_those_of_the_sums(run: circuits.Run) -> None:
    np.testing.assert_allclose(run.mean_acts, [3.0, 1.0, 2.0, 0.0])
    assert run.features["label"].to_list()[3] == "never fires"


def test_a_graph_that_was_not_built_is_asked_for_by_name(run: circuits.Run) -> None:
    with pytest.raises(GraphError, match=r"has no graph; run `circuits graph .*run` first"):
        _ = run.graph
    circuits.build_graph(run.path)
    assert circuits.open_run(run.path).graph.edges.is_empty()


def test_there_are_no_automata_before_they_are_looked_for(run: circuits.Run) -> None:
    assert run.automata == ()


def test_a_missing_automaton_file_is_named(run: circuits.Run) -> None:
    folder = run.path / "automata"
    folder.mkdir()
    pl.DataFrame({"name": ["html"], "rank": [1]}).write_parquet(folder / "index.parquet")
    with pytest.raises(StoreError, match=r"html\.json is missing; run `circuits automata"):
        _ = run.automata


def test_names_say_unknown_for_a_run_made_elsewhere(run: circuits.Run) -> None:
    assert (run.model_name, run.sae_name) == ("unknown", "unknown")
    assert run.hash == circuits.open_run(run.path).hash
    assert len(run.hash) == 16


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "is not a run's manifest"),
        ({"format_version": 99}, "newer than 1"),
        ({"d_sae": 0}, "has d_sae 0"),
        ({"d_sae": 5}, "checksum does not fit"),
    ],
)
def test_a_wrong_manifest_is_refused(
    run: circuits.Run, change: dict[str, object], sentence: str
) -> None:
    path = run.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=sentence):
        circuits.open_run(run.path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is not a run directory; make one with `circuits gather"):
        circuits.open_run(tmp_path / "nothing")
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        circuits.open_run(tmp_path)


def test_a_cut_shard_is_named(run: circuits.Run) -> None:
    shard = run.path / "tokens" / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"00000\.parquet is not a whole token shard"):
        run.document(0)


def test_importing_circuits_brings_in_nothing_heavy() -> None:
    code = (
        "import circuits, sys; print([m for m in ('torch', 'numba', 'polars') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_graph_side_never_imports_torch() -> None:
    used = "circuits.open_run; circuits.build_graph; circuits.FeatureGraph"
    code = f"import circuits, sys; {used}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_all_is_what_the_public_sees() -> None:
    assert set(circuits.__all__) <= set(dir(circuits))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = circuits.nothing
