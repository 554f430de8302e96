"""Rule F1: a feature with a plain rule is told from one without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from circuits.run import open_run
from figures import rules
from sae_core import write_run

if TYPE_CHECKING:
    from pathlib import Path

PAGE = [b"<", b"a", b">", b"b", b"\n"]


def _run(path: Path) -> None:
    """Write a page of 500 tokens: feature 0 fires on `<`, 1 at random, 2 on `a` or `b`, 3 once."""
    rng = np.random.default_rng(0)
    ids = np.tile(np.arange(5), 100)
    fires = np.stack([ids == 0, rng.random(500) < 0.3, (ids == 1) | (ids == 3), ids == 9], axis=1)
    fires[0, 3] = True
    write_run(
        str(path),
        documents=["html/page.html"],
        tokens={"doc_id": [0] * 500, "token_id": ids.tolist(), "pos": list(range(500))},
        vocabulary=PAGE,
        indptr=np.concatenate([[0], np.cumsum(fires.sum(1))]),
        features=np.nonzero(fires)[1],
        acts=np.ones(fires.sum(), np.float32),
        promotions=np.zeros(fires.sum(), np.float32),
    )


def test_features_with_a_rule_score_one_and_others_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path / "run")
    found = rules.rule_scores(open_run(tmp_path / "run"))
    assert found.features.tolist() == [0, 1, 2]
    assert found.f1[[0, 2]].tolist() == [1.0, 1.0]
    assert 0.3 < found.f1[1] < 0.6
    rules.main([str(tmp_path / "run")])
    assert "3 features, L0 0.8" in capsys.readouterr().err


def test_a_rule_takes_up_values_only_while_that_helps() -> None:
    kind = np.repeat(np.arange(10), 10)
    fires = np.concatenate([np.arange(10), np.arange(10, 19), [20]])
    total = np.bincount(kind)
    assert rules.best_f1(fires, [kind], [total]) == pytest.approx(2 * 19 / (20 + 20))
    assert rules.best_f1(fires, [kind * 0, kind], [np.array([100]), total]) == pytest.approx(0.95)
