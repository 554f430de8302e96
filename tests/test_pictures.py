"""PNG and PDF: by the extra `pictures`, else by Graphviz, the same bytes each time, or a sentence."""

from __future__ import annotations

import re
import shutil
import struct
import sys
import zlib
from importlib.util import find_spec
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
import shell
from drawn import hostile, html_system, loop
from planted import planted_world

from circuits.pictures import SCALE, ordered_pdf, picture_bytes
from circuits.svg import automaton_svg
from sae_core.errors import RenderError

if TYPE_CHECKING:
    from pathlib import Path

needs_extra = pytest.mark.skipif(
    not find_spec("vl_convert"), reason="needs vl-convert-python, of the extra `pictures`"
)
OBJECTS = {
    "catalog": b"<<\n  /Pages %(page)d 0 R\n>>",
    "page": b"<<\n  /Font <<\n%(names)s  >>\n  /Contents %(text)d 0 R\n  /Up %(catalog)d 0 R\n>>",
    "one": b"<<\n  /BaseFont /One\n>>",
    "two": b"<<\n  /BaseFont /Two\n>>",
    "text": b"<<\n  /Length 9\n>>\nstream\n7 0 R obj\n\nendstream",
}


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)


@pytest.fixture
def no_graphviz(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pictures") / "run"
    planted_world(run, n_tokens=40_000)
    for command in ("graph", "automata"):
        assert shell.invoke(command, run).exit_code == 0
    return run


def small_pdf(order: list[str]) -> bytes:
    """Write a PDF of five objects in some order, its two fonts as they come in it."""
    place: dict[str, int] = {name: at for at, name in enumerate(order, start=1)}
    fonts = [name for name in order if name in ("one", "two")]
    names = b"".join(b"    /%s %d 0 R\n" % (name.encode(), place[name]) for name in fonts)
    pdf, starts = b"%PDF-1.7\n%\x80\x80\n\n", []
    for name in order:
        starts.append(len(pdf))
        body = OBJECTS[name]
        if b"%" in body:
            body %= {key.encode(): value for key, value in place.items()} | {b"names": names}
        pdf += b"%d 0 obj\n%s\nendobj\n\n" % (place[name], body)
    table = b"".join(b"%010d 00000 n\r\n" % start for start in starts)
    head = b"xref\n0 6\n0000000000 65535 f\r\n"
    trailer = b"trailer\n<<\n  /Size 6\n  /Root %d 0 R\n>>\n" % place["catalog"]
    return pdf + head + table + trailer + b"startxref\n%d\n%%%%EOF" % len(pdf)


@needs_extra
@pytest.mark.usefixtures("no_graphviz")
def test_png_and_pdf_need_no_graphviz() -> None:
    assert picture_bytes(loop(), "png")[0].startswith(b"\x89PNG")
    assert picture_bytes(loop(), "pdf")[0].startswith(b"%PDF")


@needs_extra
def test_a_png_has_two_pixels_for_one_of_the_picture_on_white_paper() -> None:
    root = ET.fromstring(automaton_svg(loop()).text)
    png = picture_bytes(loop(), "png")[0]
    size = struct.unpack(">II", png[16:24])
    assert size == pytest.approx([SCALE * float(root.attrib[at]) for at in ("width", "height")], 1)
    data = zlib.decompress(png[(at := png.index(b"IDAT") + 4) :][: len(png) - at - 16])
    assert data[1:5] == b"\xff\xff\xff\xff"


@needs_extra
def test_the_same_automaton_gives_the_same_bytes() -> None:
    assert picture_bytes(loop(), "png") == picture_bytes(loop(), "png")
    assert len({picture_bytes(html_system(), "pdf") for _ in range(4)}) == 1


@needs_extra
def test_the_text_of_a_pdf_is_text_and_no_date_stands_in_it() -> None:
    pdf = picture_bytes(html_system(), "pdf")[0]
    assert pdf.count(b"/ToUnicode") >= 3
    assert not re.search(rb"/(CreationDate|ModDate|ID)\b", pdf)


@needs_extra
def test_hostile_words_are_converted() -> None:
    assert picture_bytes(hostile(), "png")[0].startswith(b"\x89PNG")
    assert picture_bytes(hostile(), "pdf")[0].startswith(b"%PDF")


@needs_extra
@pytest.mark.usefixtures("no_graphviz")
def test_the_engine_of_a_png_is_the_one_asked_for() -> None:
    notes = picture_bytes(loop(), "png", engine="dot")[1]
    assert re.search("not installed.*the embedded layout was used", notes[0])


@pytest.mark.usefixtures("no_extra")
def test_without_the_extra_graphviz_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dot = tmp_path / "dot"
    dot.write_text('#!/bin/sh\necho "drawn by $1"\n')
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert picture_bytes(loop(), "png") == (b"drawn by -Tpng\n", ())


@pytest.mark.dot
@pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")
@pytest.mark.usefixtures("no_extra")
def test_png_and_pdf_come_from_the_system_dot() -> None:
    assert picture_bytes(loop(), "png")[0].startswith(b"\x89PNG")
    assert picture_bytes(loop(), "pdf")[0].startswith(b"%PDF")


@pytest.mark.usefixtures("no_extra", "no_graphviz")
@pytest.mark.parametrize("output", ["png", "pdf"])
def test_with_neither_it_is_said_what_to_install(output: str) -> None:
    said = rf"{output} needs one more package: pip install 'sae-automata\[pictures\]'"
    with pytest.raises(RenderError, match=said):
        picture_bytes(loop(), output)


def test_an_unknown_format_lists_the_known() -> None:
    with pytest.raises(RenderError, match="svg, html, dot, png or pdf, not 'tiff'"):
        picture_bytes(loop(), "tiff")


def test_every_list_of_fonts_ends_in_one_that_the_converter_brings() -> None:
    root = ET.fromstring(automaton_svg(html_system()).text)
    fonts = {node.get("font-family") for node in root.iter()} - {None}
    assert len(fonts) == 2
    assert all(str(names).endswith(" sans-serif") for names in fonts)


def test_a_pdf_in_any_order_becomes_the_same_pdf() -> None:
    names = list(OBJECTS)
    written = {ordered_pdf(small_pdf([*names[at:], *names[:at]])) for at in range(5)}
    written.add(ordered_pdf(small_pdf(names[::-1])))
    assert written == {ordered_pdf(small_pdf(["catalog", "page", "one", "two", "text"]))}
    (pdf,) = written
    assert b"/one 3 0 R\n    /two 4 0 R\n" in pdf
    assert b"stream\n7 0 R obj\n\nendstream" in pdf
    places = re.findall(rb"(\d{10}) 00000 n", pdf)
    assert all(pdf[int(at) :].startswith(b"%d 0 obj" % n) for n, at in enumerate(places, start=1))
    assert pdf.endswith(b"startxref\n%d\n%%%%EOF" % pdf.index(b"xref\n0 6"))


@pytest.mark.parametrize("pdf", [b"", b"%PDF-1.4\nno table", b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n"])
def test_a_pdf_of_another_make_is_left_as_it_is(pdf: bytes) -> None:
    assert ordered_pdf(pdf) == pdf


@needs_extra
def test_render_writes_png_and_pdf(world: Path, tmp_path: Path) -> None:
    words = ("render", world, "-o", tmp_path, "--format", "png,pdf")
    assert shell.invoke(*words).exit_code == 0
    kinds = {path.suffix: path.read_bytes()[:4] for path in tmp_path.iterdir()}
    assert kinds == {".png": b"\x89PNG", ".pdf": b"%PDF"}
    assert shell.invoke(*words).exit_code == 0  # other bytes would be refused


@needs_extra
def test_where_one_picture_fails_none_is_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise ValueError("no such paper")

    monkeypatch.setattr("vl_convert.svg_to_pdf", fail)
    result = shell.invoke("render", world, "-o", tmp_path / "out", "--format", "svg,pdf")
    shell.refused(result, "could not be converted to pdf: no such paper")
    assert not (tmp_path / "out").exists()
