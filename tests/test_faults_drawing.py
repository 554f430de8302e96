"""The rows D1 to D4 through the commands: hostile tokens, large automata, broken layouts, missing fonts."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import html5lib
import polars as pl
import pytest
import shell
from drawn import large
from paired_run import N_ROUNDS, found_in, write_paired

from circuits import layout, lettering
from circuits.automaton import EXIT, EdgeToken, FeatureAutomaton, State, Transition
from circuits.discover import write_automata
from sae_core.errors import RenderError
from sae_core.tokens import token_bytes, token_str

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
LONG = b"long" * 5000
HOSTILE = [
    b"<script>alert(1)</script>", b'"><svg onload=alert(2)>', b"]]>", b"-->", b"&amp;", b"\\N",
    b"'\"`", b"<B>x</B>", b"{a|b}", b"<f0>|", b"\n", b"\r\t", b"\x00", b"\x1b[31m", b"\x9b1m",
    "\u202egnp.exe".encode(), "\u2066x\u2069".encode(), "\u200b\ufeff".encode(), b"\xed\xa0\x80",
    b"\xff\xe2\x80", "\u2028".encode(), "\u6c49\u5b57".encode(), "\u0ba4\u0bae\u0bbf\u0bb4".encode(),
    "\u0627\u0644\u0639".encode(), b"%s$(id)`id`", b"{{7*7}}", b"javascript:alert(3)", LONG,
]  # fmt: skip
N_TOKENS = 6 * N_ROUNDS * 4


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in whose pair of features every hostile token is a word."""
    path = write_paired(tmp_path_factory.mktemp("hostile") / "run", HOSTILE)
    found_in(path)
    return path


@pytest.fixture(scope="module")
def drawn(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    for words in (
        ("render", hostile, "-o", out, "--format", "svg,html,dot"),
        ("page", hostile, "-o", out / "page.html"),
    ):
        result = shell.invoke(*words)
        assert result.exit_code == 0, result.stderr
    return out


def unseen_in(text: str) -> set[str]:
    return {char for char in text if unicodedata.category(char) in UNSEEN} - {"\n"}


def parsed_page(path: Path) -> Any:
    parser = html5lib.HTMLParser(strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # html5lib's own, of the standard library
        tree = parser.parse(path.read_bytes())
    assert parser.errors == []
    return tree


def document_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next((run / "automata").glob("*.json")).read_text())
    return found


def token_strs(document: dict[str, Any]) -> Iterator[str]:
    for step in document["transitions"]:
        yield from (token["token_str"] for token in step["tokens"])
    for state in document["states"]:
        for example in state["examples"]:
            yield from example["tokens"]


# D1, hostile tokens


def test_d1_the_json_gives_back_the_bytes_of_every_token(hostile: Path) -> None:
    found = {token_bytes(text) for text in token_strs(document_of(hostile))}
    words = {token for token in found if token.startswith(b" word")}
    assert found - words <= set(HOSTILE)
    assert len(found - words) >= len(HOSTILE) / 2
    shown = shell.invoke("show", hostile, document_of(hostile)["name"], "--json").stdout
    assert json.loads(shown) == [document_of(hostile)]


@pytest.mark.parametrize("suffix", ["svg", "html", "dot"])
def test_d1_no_file_holds_a_character_that_nobody_sees(drawn: Path, suffix: str) -> None:
    for file in drawn.glob(f"*.{suffix}"):
        assert unseen_in(file.read_bytes().decode("utf-8")) == set(), file


def test_d1_the_picture_is_xml_with_our_elements_only(drawn: Path, hostile: Path) -> None:
    root = ET.parse(next(drawn.glob("*.svg"))).getroot()
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags == {"svg", "title", "desc", "style", "rect", "g", "path", "text"}
    assert not [name for node in root.iter() for name in node.attrib if name.startswith("on")]
    first = lettering.shown_token(document_of(hostile)["states"][0]["examples"][0]["tokens"][0])
    assert any(first in "".join(node.itertext()) for node in root.iter(f"{SVG}text"))


def test_d1_the_pages_are_html_with_our_scripts_only(drawn: Path, hostile: Path) -> None:
    document = document_of(hostile)
    shown = {lettering.shown_token(text) for text in token_strs(document)}
    for file in drawn.glob("*.html"):
        tree = parsed_page(file)
        names = [str(node.tag).rsplit("}", 1)[-1] for node in tree.iter()]
        assert names.count("script") == 2
        assert not {"iframe", "img", "object", "embed", "base", "form"} & set(names)
        attributes = [str(name) for node in tree.iter() for name in node.attrib]
        assert not [name for name in attributes if name.startswith("on")]
        assert shown & {
            "".join(node.itertext()) for node in tree.iter() if node.tag.endswith("bdi")
        }
        (data,) = (node.text for node in tree.iter() if node.get("id") == "data")
        assert json.loads(data) == [document]


def test_d1_graphviz_reads_the_dot_text(drawn: Path) -> None:
    text = next(drawn.glob("*.dot")).read_text()
    place = layout.lay_out(text)
    assert len(place.nodes) == 2


def test_d1_terminal_and_json_outputs_hold_no_control_character(
    hostile: Path, tmp_path: Path
) -> None:
    name, text = document_of(hostile)["name"], tmp_path / "\u202e\x1b[1m.txt"
    text.write_bytes(b"".join(HOSTILE))
    for words in (
        ("automata", hostile),
        ("show", hostile, name),
        ("show", hostile, 0),
        ("query", hostile, "select * from edge_tokens"),
        ("query", hostile, "--token", token_str(HOSTILE[15])),
        ("query", hostile, "--motif", "pair"),
        ("trace", hostile, name, text, "--by", "tokens"),
        ("truth", hostile, "--kind", "utf8"),
    ):
        for more in ((), ("--json",)):
            result = shell.invoke(*words, *more)
            assert result.exit_code == 0, (words, result.stderr)
            assert unseen_in(result.stdout + result.stderr) == set(), words
            assert not more or isinstance(json.loads(result.stdout), list)


@pytest.mark.parametrize("token", HOSTILE)
def test_d1_a_trace_gives_every_token_back(hostile: Path, tmp_path: Path, token: bytes) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(token)
    name = document_of(hostile)["name"]
    result = shell.invoke("trace", hostile, name, text, "--by", "tokens", "--json")
    if not token.strip():  # a blank text is no text
        shell.refused(result, "text.txt")
        return
    rows = shell.rows_of(result)
    assert b"".join(token_bytes(str(row["token_str"])) for row in rows) == token


def test_d1_a_very_long_token_is_cut_where_it_is_drawn_and_whole_in_the_tables(
    drawn: Path, tmp_path: Path
) -> None:
    assert len(next(drawn.glob("*.svg")).read_bytes()) < 100_000
    root = ET.parse(next(drawn.glob("*.svg"))).getroot()
    assert float(root.attrib["width"]) <= 1600
    only = write_paired(tmp_path / "run", [LONG, b"x"])
    name = found_in(only)
    assert re.fullmatch("[a-z0-9][a-z0-9-]{,80}", name)
    assert shell.invoke("render", only, "-o", tmp_path / "out").exit_code == 0
    picture = ET.parse(tmp_path / "out" / f"{name}.svg").getroot()
    assert float(picture.attrib["width"]) <= 1600
    assert LONG.decode() in shell.invoke("show", only, name).stdout


# G3 and D2: parallel labels, loops, parts; large automata


def tangled() -> FeatureAutomaton:
    """Two parts: a cycle of two with loops and two labels for one pair; a state alone."""

    def step(source: int, target: Any, probability: float, label: str) -> Transition:
        tokens = (EdgeToken(4, label, 1.0),)
        return Transition(source, target, probability, tokens, label, int(100 * probability))

    states = tuple(State(at, f"state {at}", (at,)) for at in range(3))
    steps = (
        step(0, 0, 0.25, "loop"), step(0, 1, 0.25, "one"), step(0, 1, 0.25, "two"),
        step(0, EXIT, 0.25, "out"), step(1, 1, 0.5, "loop"), step(1, 0, 0.5, "back"),
        step(2, EXIT, 1.0, "alone"),
    )  # fmt: skip
    return FeatureAutomaton("tangled", "tangled", "system", {}, states, steps)


def test_g3_loops_parallel_labels_and_parts_are_drawn_and_zoomed(
    hostile: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(hostile, tmp_path / "run")
    write_automata(run, [tangled()])
    for words in ((), ("--states", "2"), ("--states", "1")):
        out = tmp_path / "-".join(("out", *words))
        result = shell.invoke("render", run, "-o", out, "--format", "svg,html,dot", *words)
        assert result.exit_code == 0, result.stderr
        parsed_page(out / "tangled.html")
    root = ET.parse(tmp_path / "out" / "tangled.svg").getroot()
    arrows = [node for node in root.iter(f"{SVG}g") if "sa-arrow" in node.get("class", "")]
    pairs = {(node.get("data-source"), node.get("data-target")) for node in arrows}
    native = tangled().to_networkx()
    assert pairs == {(str(a), str(b)) for a, b in native.edges() if b != EXIT}
    assert any("one \u00b7 two" in "".join(node.itertext()) for node in root.iter(f"{SVG}text"))
    for n_states in (1, 2):
        zoomed = tangled().zoom(n_states)
        assert len(zoomed.states) == n_states
        for state in zoomed.states:
            assert sum(one.probability for one in zoomed.leaving(state.id)) == pytest.approx(1)


def test_d2_a_large_automaton_is_shown_in_time_and_what_is_hidden_is_counted(
    hostile: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(hostile, tmp_path / "run")
    states = pl.read_parquet(run / "features.parquet").height
    shared = large(5000, 100_000)
    cut = tuple(State(one.id, one.label, (one.id % states,)) for one in shared.states)
    write_automata(run, [FeatureAutomaton("large", "large", "system", {}, cut, shared.transitions)])
    out = tmp_path / "out"
    result = shell.invoke("render", run, "-o", out)
    assert result.exit_code == 0
    picture = (out / "large.svg").read_text()
    assert len(picture) < 200_000
    assert "strongest of 5,000 states" in picture
    result = shell.invoke("page", run, "-o", out / "page.html")
    assert result.exit_code == 0
    page = (out / "page.html").read_text()
    assert "strongest of 5,000 states" in page
    assert page.count("<tr") < 5_000
    assert re.search(r"[\d,]+ more .* in the JSON", page)
    assert len(shell.invoke("show", run, "large").stdout.splitlines()) > 100_000
    shell.refused(
        shell.invoke("render", run, "-o", out / "zoom", "--states", "4"),
        "automaton large has 5,000 states", "draw it without --states",
    )  # fmt: skip
    assert not (out / "zoom").exists()


# D3 and D4


def test_d3_a_dot_that_prints_without_end_is_ended_and_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dot = tmp_path / "dot"
    dot.write_text("#!/bin/sh\nyes garbage\n")
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tracemalloc.start()
    with pytest.raises(RenderError, match=r"took over 0\.5 s"):
        layout.run_dot("digraph {}", "json0", seconds=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * layout.OUTPUT_BYTES


def test_d4_scripts_without_a_font_stay_text_within_their_boxes(tmp_path: Path) -> None:
    words = [
        "\u6c49\u5b57\u6f22\u5b57",
        "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
        "\u0627\u0644\u0639\u0631",
    ]
    run = write_paired(tmp_path / "run", [word.encode() for word in words])
    name = found_in(run)
    assert shell.invoke("render", run, "-o", tmp_path / "out").exit_code == 0
    root = ET.parse(tmp_path / "out" / f"{name}.svg").getroot()
    found = {"".join(node.itertext()): node for node in root.iter(f"{SVG}text")}
    for word in words:
        shown = [node for text, node in found.items() if text == word]
        assert shown, word
        for node in shown:
            assert 10 <= float(node.attrib["textLength"]) <= 200
    cards = [node for node in root.iter(f"{SVG}g") if node.get("class") == "sa-state"]
    for card in cards:
        width = float(card[0].attrib["width"])
        for node in card.iter(f"{SVG}text"):
            if "textLength" in node.attrib and node.get("text-anchor") != "end":
                assert float(node.get("x", 0)) + float(node.attrib["textLength"]) <= width
