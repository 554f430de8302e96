"""The page of causal effects: what is measured is told, and a perfect prediction is told as one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import shell

from figures import causal

if TYPE_CHECKING:
    from pathlib import Path


def measured(noise: float, *, n: int = 400) -> pl.DataFrame:
    """Make edges whose effect is what is predicted; each half adds noise of its own."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1, n)
    halves = true + noise * rng.normal(0, 1, (2, n))
    return pl.DataFrame(
        {
            "source": np.arange(n) // 2,
            "target": np.arange(n) % 2,
            "decile": 1 + np.arange(n) * 10 // n,
            "predicted": true,
            "predicted_in_context": -true,
            "score": rng.normal(0, 1, n),
            "promoted_nats": np.zeros(n),
            "p_target_given_source": true,
            "causal": halves.mean(axis=0),
            "causal_stderr": np.full(n, noise / np.sqrt(2)),
            "half_1": halves[0],
            "half_2": halves[1],
        }
    )


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_a_perfect_prediction_reaches_the_ceiling(noise: float) -> None:
    found = causal.summary(measured(noise))
    assert found["n_sources"] == 200
    assert found["ceiling"] == pytest.approx((1 / (1 + noise**2 / 2)) ** 0.5, abs=0.04)
    value, low, high = found["correlations"]["predicted"]
    assert low <= value <= high
    assert value == pytest.approx(found["ceiling"], abs=0.03)
    assert found["correlations"]["predicted_in_context"][0] == pytest.approx(-value, abs=1e-6)
    assert abs(found["correlations"]["score"][0]) < 0.15
    assert found["correlations"]["promoted_nats"][0] == 0


def test_the_page_has_a_row_a_prediction_and_a_row_a_tenth() -> None:
    edges = measured(0.5)
    text = causal.page_text(causal.summary(edges) | {"n_draws": 1000}, edges)
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 2 + 5 + 2 + 10
    assert "400 edges" in text
    assert "two halves of 1,000 draws a source" in text
    assert "| 10 | 40 |" in text


def test_a_picture_of_equal_numbers_has_equal_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in "ab":
        causal.draw(measured(0.5), tmp_path / f"{name}.svg")
    data = (tmp_path / "a.svg").read_bytes()
    assert data == (tmp_path / "b.svg").read_bytes()
    assert b"by ablation</text>" in data


def test_the_script_measures_a_run_and_writes_three_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shell.write_parts(tmp_path)
    given = ("--model", tmp_path / "model", "--sae", tmp_path / "sae", "--held-out", 0)
    assert shell.invoke("gather", tmp_path / "texts", "-o", tmp_path / "run", *given).exit_code == 0
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "causal.md").write_text("# Mine\n\n<!-- causal -->\nold\n<!-- /causal -->\nend\n")
    words = [str(tmp_path / "run"), "--each", "1", "--draws", "40", "--docs", str(docs)]
    causal.main(words)
    page = (docs / "causal.md").read_text()
    assert page.startswith("# Mine\n")
    assert page.endswith("end\n")
    assert "10 edges" in page
    found = json.loads((docs / "causal.json").read_text())
    assert len(found["edges"]) == 10
    assert found["summary"]["n_draws"] == 40
    assert {row["decile"] for row in found["edges"]} == set(range(1, 11))
    assert (docs / "causal.svg").is_file()
