"""A gathered run and folders of pages -> the page of scores, its numbers and pictures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shell
import tiny
import torch

import circuits
from circuits.automaton import FeatureAutomaton, State
from circuits.discover import write_automata
from figures import automata
from figures.automata_machines import AUTOMATON, CLUSTERS, HMM
from figures.automata_texts import read_run
from sae_core.gather import gather
from sae_core.language_model import load_model
from sae_core.regather import gather_neurons
from sae_core.store import read_tokens

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shell.write_parts(tmp_path_factory.mktemp("automata"))
    for at, name in enumerate(("ant", "bee")):
        shell.write_text(folder / "pages" / name / "0.html", 10, seed=7000 + 100 * at)
    texts, model, sae = (str(folder / name) for name in ("texts", "model", "sae"))
    gather([texts], out=folder / "run", model=model, sae=sae, held_out=0.5)
    run = circuits.open_run(folder / "run")
    often = run.features.sort("n_fires", descending=True)["feature_idx"].to_list()
    states = tuple(State(at, str(at), (often[at],)) for at in range(3))
    write_automata(
        folder / "run", [FeatureAutomaton("system-often", "Often", "system", {}, states, ())]
    )
    return folder


def test_the_second_reading_gives_the_neurons_and_the_loss_of_the_first(parts: Path) -> None:
    run = circuits.open_run(parts / "run")
    training, held_out = read_run(run)
    documents = {doc: run.document(doc) for doc in np.unique(held_out.tokens.doc_ids).tolist()}
    neurons = gather_neurons(run.path, documents, parts / "neurons")
    table = read_tokens(neurons)
    dense = np.zeros((len(table.token_ids), tiny.config().d_mlp), np.float32)
    dense[np.repeat(np.arange(len(dense)), np.diff(table.indptr)), table.features] = table.acts
    assert held_out.neurons == pytest.approx(dense, rel=1e-2, abs=1e-3)
    assert training.nats is None
    assert held_out.nats is not None
    model = load_model(str(parts / "model"))
    first = held_out.tokens.window_ids == held_out.tokens.window_ids[0]
    ids = torch.tensor([[0, *held_out.tokens.token_ids[first].tolist()]])
    with torch.no_grad():
        logs = model.module(ids).log_softmax(-1)[0]
    expected = [-float(logs[at, ids[0, at + 1]]) for at in range(1, ids.shape[1] - 1)]
    nats = held_out.nats[first]
    assert nats[:-1] == pytest.approx(np.array(expected), rel=1e-4)
    assert np.isnan(nats[-1])


def test_the_script_writes_the_same_page_numbers_and_pictures_each_time(parts: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    written = []
    for _ in range(2):
        docs = parts / "docs"
        automata.main([str(parts / "run"), str(parts / "pages"), "--docs", str(docs)])
        written.append({file.name: file.read_bytes() for file in sorted(docs.iterdir())})
    assert written[0] == written[1]
    names = ["automata-scores-html.svg", "automata-scores.json", "automata-scores.md"]
    assert list(written[0]) == names
    assert all(len(data) < 100_000 for data in written[0].values())
    page = written[0]["automata-scores.md"].decode()
    assert "| `system-often` | system | 3 |" in page
    assert "packages (`ant`, `bee`):" in page
    found = json.loads(written[0]["automata-scores.json"])
    (row,) = found["next_token"]
    assert set(row["bits"]) == {
        AUTOMATON,
        HMM,
        CLUSTERS,
        "spans' unigram",
        "bigram",
        "trigram",
        "model",
    }
    assert found["html"]["packages"] == ["ant", "bee"]
    assert found["python"] is None
