"""The feature sheet: drawn by chance, shown with more than maxima, and safe to print."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from figures import features
from figures.features import draw, example_places, read_phrases, write
from sae_core.run_writer import write_run

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = [b"<b>", b"**", b" a", b"\n", "\u0ba4".encode()[:2], "\u0ba4".encode()[2:], b"</pre>"]
D_SAE = 12


def make_run(folder: Path) -> Path:
    """Write a run of 10 features that fire, on raw tokens that could break a page."""
    rng = np.random.default_rng(0)
    n = 400
    token_ids = rng.integers(4, size=n)
    token_ids[4::20], token_ids[5::20], token_ids[6::20] = 4, 5, 6
    return write_run(
        folder,
        documents=["a.txt", "b.txt"],
        tokens={"doc_id": np.arange(n) // 200, "token_id": token_ids},
        vocabulary=VOCABULARY,
        indptr=np.arange(n + 1),
        features=np.arange(n) % 10,
        acts=rng.exponential(size=n) + 0.01,
        promotions=np.zeros(n),
        d_sae=D_SAE,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("features") / "run")


def page_of(run: Path, docs: Path, n: int = 5, seed: int = 0) -> str:
    write(run, docs, n=n, seed=seed)
    return (docs / "features.md").read_text(encoding="utf-8")


def phrases(docs: Path, text: str) -> None:
    (docs / "features.toml").write_text(text, encoding="utf-8")


def test_features_are_drawn_by_seed_among_those_that_fire() -> None:
    n_fires = np.array([3, 0, 1, 5, 0, 2, 9])
    assert draw(n_fires, n=9, seed=0) == [0, 2, 3, 5, 6]
    assert draw(n_fires, n=2, seed=1) == draw(n_fires, n=2, seed=1)
    assert len({tuple(draw(n_fires, n=2, seed=seed)) for seed in range(20)}) > 3


def test_drawing_none_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be >= 1 feature, got 0"):
        draw(np.ones(3, np.int64), n=0, seed=0)


def test_examples_are_the_strongest_and_some_of_all_strengths() -> None:
    acts = np.arange(1, 105, dtype=np.float32)
    places = example_places(np.arange(104, dtype=np.uint32), acts)
    assert [name for name, _ in places] == ["top"] * 4 + ["85%", "60%", "35%", "10%"]
    assert [acts[at] for _, at in places] == [104, 103, 102, 101, 86, 61, 36, 11]


def test_the_strongest_are_of_different_documents_while_there_are_others() -> None:
    doc_ids = np.array([0, 0, 0, 1, 1, 2], dtype=np.uint32)
    acts = np.array([9, 8, 7, 6, 5, 4], dtype=np.float32)
    assert [at for _, at in example_places(doc_ids, acts)[:4]] == [0, 3, 5, 1]


@pytest.mark.parametrize("n", [0, 1, 4, 5, 8])
def test_no_firing_is_shown_twice(n: int) -> None:
    places = [at for _, at in example_places(np.zeros(n, np.uint32), np.arange(n) + 1.0)]
    assert len(places) == len(set(places)) == min(n, len(places))
    assert len(places) >= min(n, 5)


def test_the_dead_are_counted_and_said(run: Path, tmp_path: Path) -> None:
    page = page_of(run, tmp_path)
    assert "5 of the 10 features" in page
    assert "2 of 12 features never fire" in page
    assert "0 of the 5 are described" in page
    assert page.count("(not described yet)") == page.count("\n## Feature ") == 5


def test_raw_tokens_cannot_break_the_page(run: Path, tmp_path: Path) -> None:
    page = page_of(run, tmp_path, n=10)
    assert page.count("<pre>") == page.count("</pre>") == 10
    for sheet in re.findall(r"<pre>\n(.*?)\n</pre>", page, flags=re.DOTALL):
        assert set(re.findall(r"<[^>]*>", sheet)) <= {"<b>", "</b>", "<i>", "</i>"}
        assert sheet.count("<b>") == sheet.count("</b>") == 8
    text = html.unescape(page)
    assert "\u2423a" in text
    assert "\\n" in text
    assert "\u0ba4" in text  # two tokens, one character


def test_each_example_marks_one_token_in_one_column(run: Path, tmp_path: Path) -> None:
    sheet = re.search(r"<pre>\n(.*?)\n</pre>", page_of(run, tmp_path), flags=re.DOTALL)
    assert sheet
    lines = [line for line in sheet[1].splitlines() if "<b>" in line]
    assert len({round(features.n_cells(html.unescape(x.split("<b>")[0]))) for x in lines}) <= 2


def test_phrases_are_shown_counted_and_escaped(run: Path, tmp_path: Path) -> None:
    phrases(
        tmp_path,
        'sae_hash = ""\n[0]\nphrase = "a *b*"\nfits = true\n[3]\nphrase = "c"\nfits = false\n',
    )
    page = page_of(run, tmp_path, n=10)
    assert r"**a \*b\*** (fits)" in page
    assert "**c** (does not fit)" in page
    assert "2 of the 10 are described, and of those 1 phrases fit" in page


def test_phrases_of_another_dictionary_are_left_out_and_said(run: Path, tmp_path: Path) -> None:
    phrases(tmp_path, 'sae_hash = "beef"\n[0]\nphrase = "a"\nfits = true\n')
    page = page_of(run, tmp_path, n=10)
    assert "1 phrases of another dictionary" in page
    assert "**a**" not in page


def test_phrases_of_no_dictionary_are_refused(tmp_path: Path) -> None:
    phrases(tmp_path, '[0]\nphrase = "a"\nfits = true\n')
    with pytest.raises(ValueError, match='write sae_hash = "beef"'):
        read_phrases(tmp_path / "features.toml", "beef")


@pytest.mark.parametrize(
    "table", ["[0]\nphrase = 'a'", "[x]\nphrase = 'a'\nfits = true", "0 = 'a'"]
)
def test_a_phrase_that_is_not_whole_is_refused(table: str, tmp_path: Path) -> None:
    phrases(tmp_path, f'sae_hash = "beef"\n{table}\n')
    with pytest.raises(ValueError, match="is not whole; write a table"):
        read_phrases(tmp_path / "features.toml", "beef")


def test_the_same_seed_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    assert page_of(run, tmp_path) == page_of(run, tmp_path)
    assert page_of(run, tmp_path) != page_of(run, tmp_path, seed=3)
