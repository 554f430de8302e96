"""Drawing; hostile tokens (row D1 of the table of faults) are parsed back and found literally."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import warnings
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import html5lib
import pytest
from drawn import HOSTILE, hostile, html_system, large, loop

from circuits import lettering
from circuits.automaton import Variant
from circuits.page import PageHeader, page_html

if TYPE_CHECKING:
    from pathlib import Path

HEADER = PageHeader("Run <b>x</b>", (("tokens", "1,204"), ("model", '"><i>')), ("Read & kept.",))
HTML = "{http://www.w3.org/1999/xhtml}"


def page() -> str:
    return page_html([html_system(), loop(), hostile()], header=HEADER, n_states=len(HOSTILE))


def parsed(text: str) -> Any:
    parser = html5lib.HTMLParser(strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # html5lib's own, of the standard library
        tree = parser.parse(text)
    assert parser.errors == []
    return tree


def test_the_page_is_the_same_each_time() -> None:
    assert page() == page()


def test_the_page_has_no_parse_error_and_the_header_as_text() -> None:
    tree = parsed(page())
    assert tree.find(f".//{HTML}h1").text == "Run <b>x</b>"
    assert [node.text for node in tree.iter(f"{HTML}dd")][:2] == ["1,204", '"><i>']


def test_every_automaton_is_there_without_a_script() -> None:
    tree = parsed(page())
    cards = [node for node in tree.iter(f"{HTML}details") if node.get("class") == "automaton"]
    assert [card.get("id") for card in cards] == ["html-tags", "base64", "hostile"]
    for card in cards:
        assert len(card.findall(".//{http://www.w3.org/2000/svg}svg[@role='img']")) == 2
        assert len(card.findall(f".//{HTML}table")) == 3
    assert tree.find(f".//{HTML}div[@role='search']").get("hidden") is not None


def test_of_many_states_eight_are_shown_and_all_are_in_the_json() -> None:
    stored = large(23, 400)
    for n_states, shown in ((None, 8), (12, 12), (23, 23)):
        tree = parsed(page_html([stored], header=HEADER, n_states=n_states))
        pictures = tree.iter("{http://www.w3.org/2000/svg}g")
        states = {node.get("data-state") for node in pictures if node.get("class") == "sa-state"}
        rows = {node.get("data-state") for node in tree.iter(f"{HTML}tr")} - {None}
        assert states == rows
        assert len(states) == shown
        text = tree.find(f".//{HTML}script[@id='data']").text
        assert len(json.loads(text)[0]["states"]) == 23
    assert "system · 8 of 23 states" in page_html([stored], header=HEADER)


def test_hostile_tokens_stand_in_the_page_as_they_are() -> None:
    tree = parsed(page())
    found = {"".join(node.itertext()) for node in tree.iter(f"{HTML}bdi")}
    assert {lettering.shown_token(token) for token in HOSTILE} <= found
    scripts = [node.get("type") for node in tree.iter(f"{HTML}script")]
    assert scripts == ["application/json", None]
    handlers = [name for node in tree.iter() for name in node.attrib if str(name).startswith("on")]
    assert handlers == []


def test_the_embedded_json_is_what_was_given() -> None:
    tree = parsed(page())
    text = tree.find(f".//{HTML}script[@id='data']").text
    given = json.loads(json.dumps([asdict(one) for one in (html_system(), loop(), hostile())]))
    assert json.loads(text) == given
    assert "<" not in text


def test_an_automaton_says_what_it_does_and_what_was_folded_into_it() -> None:
    variants = (Variant("system", (12, 408), 1.5, 0.25), Variant("system", (0,), 1.0, 0.1))
    told = replace(html_system(), description="Reads `<b>`.", variants=variants)
    tree = parsed(page_html([told, loop()], header=HEADER))
    (says,) = [node for node in tree.iter(f"{HTML}div") if node.get("class") == "says"]
    assert says.text == "Reads `<b>`."
    notes = ["".join(node.itertext()) for node in tree.iter(f"{HTML}p")]
    folded = (
        "Folded into this: 2 near-duplicates; the best, F12 \u00b7 F408, saves 1.5 bits a step in"
    )
    assert [note for note in notes if note.startswith(folded)]


def test_nothing_is_fetched() -> None:
    text = page()
    assert set(re.findall(r"[a-z]+://[^\"'\s<]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|\bsrc=|\sstyle=", text)


def test_the_policy_allows_our_script_and_style_only() -> None:
    text = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_ids_are_unique() -> None:
    ids = [node.get("id") for node in parsed(page()).iter() if node.get("id")]
    assert len(ids) == len(set(ids))


def test_a_run_without_automata_says_so() -> None:
    assert "No automata were found." in page_html([], header=PageHeader("empty"))


def test_what_the_drawing_had_to_say_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    text = page_html([html_system(), loop()], header=HEADER, engine="dot")
    assert text.count("the embedded layout was used") == 1


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_runs_our_script_and_none_of_the_tokens(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", f"file://{tmp_path / 'page.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert '<div class="tools" role="search">' in done.stdout
    assert "CONSOLE" not in done.stderr
    assert "<svg onload" not in done.stdout
