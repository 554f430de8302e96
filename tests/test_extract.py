"""Extractors: the files of a package become documents."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
from typing import TYPE_CHECKING

import made_up
import numpy as np

from sae_core.demo import extract_data, extract_language, extract_markup
from sae_core.demo.extract import (
    cut,
    extract_package,
    sample_files,
)
from sae_core.demo.packages import (
    Take,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_plain_text_that_is_not_utf8_or_holds_nul_is_left_out() -> None:
    assert list(extract_markup.plain("é\n".encode())) == ["é\n"]
    assert list(extract_markup.plain(b"\xff\xfe")) == []
    assert list(extract_markup.plain(b"a\0b")) == []


def test_a_licence_loses_its_yaml_head_and_nothing_else() -> None:
    text = b"---\nkey: mit\n---\n\nPermission is granted\n---\nmore\n"
    assert list(extract_markup.licence_text(text)) == ["Permission is granted\n---\nmore\n"]


def test_words_of_a_page_come_without_script_style_comment_and_tags() -> None:
    page = b"<style>p{}</style><h1>One</h1><!-- no --><p>two &lt; <b>three</b></p>"
    assert list(extract_markup.html_text(page)) == ["One\ntwo < three\n"]


def test_prose_skips_pieces_with_gutenberg_notes_and_pieces_that_are_not_utf8() -> None:
    long = b"word " * 5000
    book = b"\n\n".join([b"Project Gutenberg" + long, b"\xff" + long, b"kept " + long])
    assert [text[:9] for text in extract_markup.prose(book)] == ["kept word"]


def test_a_pubmed_article_becomes_title_abstract_and_grant() -> None:
    xml = (
        b"<S><PubmedArticle><ArticleTitle>T</ArticleTitle><AbstractText>A <i>b</i></AbstractText>"
        b"<Grant><GrantID>R01</GrantID><Agency>NIH</Agency></Grant></PubmedArticle>"
        b"<PubmedArticle><ArticleTitle>only</ArticleTitle></PubmedArticle></S>"
    )
    assert list(extract_markup.pubmed(xml)) == ["T\n\nA b\n\nR01, NIH\n"]


def test_base64_is_cut_in_pieces_of_two_to_eight_kb_with_the_page_around_the_first() -> None:
    image = base64.b64encode(np.random.default_rng(0).bytes(40_000)).decode()
    page = f'<p>before</p><img src="data:image/png;base64,{image}" alt="x"><p>after</p>'
    pieces = list(extract_data.base64_uris(page.encode()))
    assert len(pieces) == 3
    assert pieces[0].startswith("<p>before</p><img")
    assert pieces[0].endswith("<p>after</p>")
    for piece in pieces[1:]:
        joined = piece.replace("\n", "")
        assert 2000 <= len(joined) <= 8000
        assert joined in image


def test_recorded_bodies_in_base64_are_taken_and_short_ones_are_not() -> None:
    bodies = ["QUJD" * 1000, "QUJD"]
    answers = [{"response": {"body": {"base64_string": body}}} for body in bodies]
    cassette = json.dumps({"http_interactions": answers}).encode()
    texts = list(extract_data.cassette_base64(cassette))
    assert texts
    assert all(set(text) <= set("ABCDJQU\n") for text in texts)


def test_a_web_archive_gives_requests_and_answers_in_wire_format() -> None:
    record = (
        b"WARC/1.0\r\nWARC-Type: response\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n<html></html>\r\n\r\n"
    )
    info = b"WARC/1.0\r\nWARC-Type: warcinfo\r\n\r\nsoftware: y\r\n\r\n"
    binary = b"WARC/1.0\r\nWARC-Type: response\r\n\r\nHTTP/1.1 200 OK\r\n\r\n\xff\xd8\r\n\r\n"
    assert list(extract_data.warc(info + record + binary)) == [
        "HTTP/1.1 200 OK\r\nServer: x\r\n\r\n<html></html>",
        "HTTP/1.1 200 OK\r\n\r\n",
    ]


def test_a_recorded_exchange_is_written_as_http() -> None:
    fields = ["https", "GET", "api.example", "None", "/user", "{'A': 'b'}", "None", "200"]
    fields += ["[('status', '200 OK'), ('etag', '1')]", "{}", "", ""]
    (text,) = extract_data.replay("\n".join(fields).encode())
    assert text == (
        "GET /user HTTP/1.1\r\nHost: api.example\r\nA: b\r\n\r\n\r\n"
        "HTTP/1.1 200 OK\r\netag: 1\r\n\r\n{}\r\n"
    )


def test_hosts_of_irc_users_are_removed() -> None:
    log = (
        b"[14 Jan 12:36] <ann!n=ann@host.example> -hello\n"
        b"[14 Jan 12:37] --> bob (n=bob@10.0.0.1) joined the channel\n"
        b"[14 Jan 12:38] *** You connected\n"
    )
    assert list(extract_data.irc(log)) == [
        "[14 Jan 12:36] <ann> hello\n[14 Jan 12:37] --> bob joined the channel\n"
    ]


def test_only_fortunes_that_are_conversations_are_taken() -> None:
    fortunes = b"a proverb\n%\n<a> hi\n<b> hi\n%\n<a> alone"
    assert list(extract_data.irc_fortunes(fortunes)) == ["<a> hi\n<b> hi\n"]


def test_sequence_entries_are_split_and_cut() -> None:
    entry = "ID   X\nSQ\n" + "     acgtacgt\n" * 2000
    texts = list(extract_data.sequences(f"{entry}//\n{entry}//\n".encode()))
    assert [len(text) for text in texts] == [extract_data.MAX_ENTRY] * 2


def test_tables_in_an_archive_come_without_leftovers() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("csv/a.csv", "csv/._a.csv", "readme.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"1,2\n"))
    assert list(extract_data.tables_in_tar(buffer.getvalue())) == ["1,2\n"]


def test_a_compiled_catalogue_gives_its_translations_without_the_header() -> None:
    strings = [b"Content-Type: text/plain", "שלום".encode(), "אחד\0רבים".encode()]  # noqa: RUF001
    head = 28 + 8 * len(strings) * 2
    table, blob = b"", b""
    for string in strings:
        table += struct.pack("<II", len(string), head + len(blob))
        blob += string + b"\0"
    n = len(strings)
    data = struct.pack("<IIIIIII", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 0) + table + table + blob
    assert list(extract_language.mo(data)) == ["שלום", "אחד"]
    assert list(extract_language.mo(b"not a catalogue at all")) == []


def test_a_source_catalogue_gives_its_translations_without_the_header() -> None:
    text = 'msgid ""\nmsgstr ""\n"Content-Type: x\\n"\n\nmsgid "a"\nmsgstr "b\\n"\n"c"\n'
    assert list(extract_language.po(text.encode())) == ["b\nc"]


def test_json_messages_leave_out_metadata() -> None:
    data = json.dumps({"@metadata": {"authors": ["A"]}, "x": "one", "y": [["two"]]}).encode()
    assert list(extract_language.json_messages(data)) == ["one", "two"]


def test_hebrew_verses_lose_points_and_morpheme_marks() -> None:
    xml = '<verse osisID="Gen.1.1"><w id="1">בְּ/רֵאשִׁ֖ית</w><w id="2">כָּל־</w></verse>'
    expected = ["בראשית כל־"]
    assert list(extract_language.morphhb(xml.encode())) == expected


# files to documents


def test_pieces_of_a_text_join_to_the_text_and_none_is_too_long() -> None:
    text = "".join(f"line {n} é\n" for n in range(500))
    pieces = cut(text, 300)
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 300
    assert cut(text, 300, head_only=True) == pieces[:1]


def test_links_are_not_followed_and_directories_take_turns(tmp_path: Path) -> None:
    for name in ("a/1.html", "a/2.html", "a/3.html", "b/1.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * 2000)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "b/link.html").symlink_to(tmp_path / "a/1.html")
    take = Take("html", "plain", ("*.html",), 0.0)
    found = sample_files(take, tmp_path, np.random.default_rng(0))
    assert len(found) == 4
    assert {path.parent.name for path in found[:2]} == {"a", "b"}


def test_a_take_stops_at_its_cap_and_reads_gzip(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.txt.gz").write_bytes(gzip.compress(b"y" * 1999 + b"\n"))
    take = Take("html", "plain", ("*.gz",), 0.005)
    rng = np.random.default_rng(0)
    documents = list(extract_package(made_up.package_with(take), tmp_path, rng))
    assert [len(document.text) for document in documents] == [2000, 2000]


def test_lines_of_a_script_are_kept_once_and_others_dropped(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>தமிழ் வரி</p><p>English line</p>" * 90)
    take = Take("tamil", "html_text", ("*.html",), 1.0, script="tamil")
    rng = np.random.default_rng(0)
    documents = list(extract_package(made_up.package_with(take), tmp_path, rng))
    assert [document.text for document in documents] == ["தமிழ் வரி\n"]
