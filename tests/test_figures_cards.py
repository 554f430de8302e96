"""The cards of dictionaries: measured as `evaluate` does, with their settings, safe to write again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import shell
import tiny

from figures import card_page, cards
from figures.card_curves import Curve, draw_curves
from sae_core import embedded
from sae_core.demo import ship
from sae_core.errors import SaeError
from sae_core.evaluate import evaluate_texts

if TYPE_CHECKING:
    from pathlib import Path

L1 = {"variant": "l1", "l1_coefficient": 0.05, "n_activations": 1000, "batch_size": 64, "lr": 1e-3}
METRICS = [
    {"step": 2**n, "n_activations": 64 * 2**n, "fvu": 0.5 - n / 20, "l0": 4.0, "n_dead": n}
    for n in range(6)
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two models and three dictionaries, and a folder of docs."""
    monkeypatch.setattr(embedded, "DEMO", tmp_path / "demo")
    for name, seed in (("A", 0), ("B", 1)):
        ship.ship_model(tiny.write_model(tmp_path / name, seed=seed), name)
    for at, name in enumerate(("A/0", "A/1", "B/0")):
        ship.ship_sae(shell.write_sae(tmp_path / "sae", seed=at), name)
    settings = json.dumps(L1 | {"seed": 7})
    (embedded.sae_folder("A/0") / "training.json").write_text(settings)
    (tmp_path / "docs" / "training").mkdir(parents=True)
    for name in ("A-0", "B-0"):
        pl.DataFrame(METRICS).write_ndjson(tmp_path / "docs" / "training" / f"{name}.jsonl")
    for at in range(3):
        shell.write_text(tmp_path / "texts" / f"{at}.html", 9, seed=100 * at)
    return tmp_path


def made(package: Path) -> dict[str, str]:
    """Run the script and give what it wrote."""
    pytest.importorskip("matplotlib")
    docs = package / "docs"
    cards.main([str(package / "texts"), "--docs", str(docs)])
    return {
        str(path.relative_to(docs)): path.read_text() for path in docs.rglob("*") if path.is_file()
    }


def card(package: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((package / "docs" / "cards" / name).read_text()))


def test_the_script_writes_the_same_cards_picture_and_page_each_time(package: Path) -> None:
    first = made(package)
    assert made(package) == first
    assert {"dictionaries.md", "dictionary-curves.svg"} <= set(first)
    assert {"cards/A-0.json", "cards/A-1.json", "cards/B-0.json"} <= set(first)
    page = first["dictionaries.md"]
    assert page.startswith("# Dictionaries\n\n<!-- cards -->\nHow the dictionaries")
    assert page.endswith("<!-- /cards -->\n")
    row = "| [A/0](cards/A-0.json) | A | l1 | L1 0.05 | 32 | 1,000 | 64 | 0.001 | 7 |"
    assert row in page
    assert "| [B/0](cards/B-0.json) | B |  |  | 32 |  |  |  |  |" in page


def test_a_card_holds_the_scores_of_evaluate_and_the_settings(package: Path) -> None:
    made(package)
    found = card(package, "B-0.json")
    (scores,) = evaluate_texts([package / "texts"], saes=["B/0"], model="B")
    assert found["scores"]["l0"] == pytest.approx(scores.l0, abs=1e-5)
    assert found["scores"]["loss_recovered_low"] == pytest.approx(
        scores.loss_recovered_low, abs=1e-5
    )
    assert found["scores"]["n_documents"] == 3
    assert found["training"] == {}
    assert card(package, "A-0.json")["training"] == L1 | {"seed": 7}
    hashes = [found[name] for name in ("sae_hash", "model_hash", "text_sha256")]
    assert {len(bytes.fromhex(one)) for one in hashes} == {32}
    assert card(package, "A-1.json")["model_hash"] != found["model_hash"]
    assert card(package, "A-1.json")["text_sha256"] == found["text_sha256"]


def test_only_its_own_block_is_written_and_cards_of_what_is_gone_go_too(package: Path) -> None:
    page = package / "docs" / "dictionaries.md"
    page.write_text("# Dictionaries\n\n<!-- other -->\nkept\n<!-- /other -->\n\n<!-- cards -->\n")
    page.write_text(page.read_text() + "old\n<!-- /cards -->\nend\n")
    (package / "docs" / "cards").mkdir()
    (package / "docs" / "cards" / "Z-9.json").write_text("{}")
    written = made(package)
    assert "<!-- other -->\nkept\n<!-- /other -->\n\n<!-- cards -->\nHow" in page.read_text()
    assert page.read_text().endswith("<!-- /cards -->\nend\n")
    assert "\nold\n" not in page.read_text()
    assert "cards/Z-9.json" not in written
    page.write_text("# Dictionaries\n\n<!-- other -->\nkept\n<!-- /other -->\n")
    made(package)
    assert "kept\n<!-- /other -->\n\n<!-- cards -->\n" in page.read_text()


def test_the_papers_row_stands_after_the_last_l1_dictionary(package: Path) -> None:
    computed = cards.compute([str(package / "texts")])
    assert [row[0] for row in card_page.score_rows(computed)] == [
        "A/0", "the paper's A/1", "A/1", "B/0",
    ]  # fmt: skip
    assert card_page.score_rows(computed[1:])[-1][3] == "0.79"


def test_a_dictionary_without_its_model_is_refused(package: Path) -> None:
    embedded.sae_folder("B/0").rename(embedded.sae_folder("C/0"))
    with pytest.raises(SaeError, match=r"dictionaries A/0, A/1, C/0 and models A, B; ship what"):
        cards.compute([str(package / "texts")])


def test_the_picture_has_a_line_a_dictionary_and_its_words_as_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = pl.DataFrame(METRICS)
    curves = [Curve(f"A/{at}", 32, rows) for at in range(8)]
    draw_curves(curves, tmp_path / "a.svg")
    draw_curves(curves, tmp_path / "b.svg")
    picture = (tmp_path / "a.svg").read_text()
    assert picture == (tmp_path / "b.svg").read_text()
    assert all(f">A/{at}</text>" in picture for at in range(8))
    assert "activations trained on (millions)</text>" in picture
    assert "silent features (% of all)</text>" in picture
