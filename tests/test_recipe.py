from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer

from sae_core.demo import download, extract_data, extract_language, extract_markup, mix
from sae_core.demo.extract import (
    EXTRACTORS,
    SCRIPTS,
    Document,
    cut,
    extract_package,
    sample_files,
)
from sae_core.demo.manifest import seen_hashes
from sae_core.demo.packages import (
    PACKAGES_TOML,
    ROLES,
    Mix,
    Package,
    Take,
    load_mix,
    load_packages,
    load_sample_limits,
)
from sae_core.demo.sample import choose_sample
from sae_core.demo.tokenizer import DOCUMENT_MARK, N_TOKENS, token_bytes

if TYPE_CHECKING:
    from pathlib import Path

DEMO = PACKAGES_TOML.parent
NEVER_TOUCHED = {
    "apache2-doc",
    "exim4-doc-html",
    "stl-manual",
    "c++-annotations-html",
    "groovy-doc",
    "libcrypto++-doc",
}


def package_with(*takes: Take, name: str = "made-up", file: str = "", digest: str = "") -> Package:
    return Package(
        name=name,
        source="pypi",
        version="1",
        file=file,
        sha256=digest,
        licence="MIT",
        role="train",
        in_sample=True,
        notices=(),
        takes=takes,
    )


def small_mix(**shares: float) -> Mix:
    return Mix("tiny", 1000, 60, shares, {})


# packages.toml


def test_each_take_names_an_extractor_a_family_with_a_share_and_a_known_script() -> None:
    shares = load_mix("first").shares
    for package in load_packages():
        for take in package.takes:
            assert take.extractor in EXTRACTORS
            assert take.family in shares
            assert take.script in SCRIPTS or not take.script


def test_shares_of_each_mix_sum_to_one_and_the_sample_limits_name_the_same_families() -> None:
    for name in ("first", "large"):
        shares = load_mix(name).shares
        assert sum(shares.values()) == pytest.approx(1.0)
        assert set(load_sample_limits()) == set(shares)


def test_an_unknown_mix_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"mix must be one of \['first', 'large'\], got 'huge'"):
        load_mix("huge")


def test_packages_are_named_once_with_a_full_checksum_and_a_known_role() -> None:
    packages = load_packages()
    assert len({package.name for package in packages}) == len(packages)
    for package in packages:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.role in ROLES
        assert package.source in {"debian", "pypi"}


def test_training_packages_have_caps_for_both_mixes_and_others_have_none() -> None:
    for package in load_packages():
        for take in package.takes:
            wanted = {"first", "large"} if package.role == "train" else set()
            assert set(take.caps_mb) == wanted


def test_reserved_packages_are_not_in_the_recipe() -> None:
    roles = {package.name: package.role for package in load_packages()}
    assert not NEVER_TOUCHED & set(roles)
    assert roles["r-doc-html"] == roles["ada-reference-manual-2012"] == "read-once"
    assert roles["gnuplot-doc"] == roles["twisted-doc"] == "development"


# extractors


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
    take = Take("html", "plain", ("*.html",), {})
    found = sample_files(take, tmp_path, np.random.default_rng(0))
    assert len(found) == 4
    assert {path.parent.name for path in found[:2]} == {"a", "b"}


def test_a_take_stops_at_its_cap_and_reads_gzip(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.txt.gz").write_bytes(gzip.compress(b"y" * 1999 + b"\n"))
    take = Take("html", "plain", ("*.gz",), {"tiny": 0.005})
    rng = np.random.default_rng(0)
    documents = list(extract_package(package_with(take), tmp_path, small_mix(html=1.0), rng))
    assert [len(document.text) for document in documents] == [2000, 2000]


def test_lines_of_a_script_are_kept_once_and_others_dropped(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>தமிழ் வரி</p><p>English line</p>" * 90)
    take = Take("tamil", "html_text", ("*.html",), {"tiny": 1}, script="tamil")
    rng = np.random.default_rng(0)
    documents = list(extract_package(package_with(take), tmp_path, small_mix(tamil=1.0), rng))
    assert [document.text for document in documents] == ["தமிழ் வரி\n"]


# mixing


def test_a_near_copy_is_dropped_and_a_page_with_the_same_menu_is_kept() -> None:
    rng = np.random.default_rng(0)
    menu, first, second = (rng.bytes(20_000).hex().encode() for _ in range(3))
    table = mix.ShingleTable()
    assert not table.is_repeat(menu + first)
    assert table.is_repeat(menu + first[:-500] + b"changed")
    assert not table.is_repeat(menu + second)


def test_one_document_in_twenty_is_held_out_by_its_hash() -> None:
    splits = [mix.split_of(str(n).encode()) for n in range(4000)]
    assert splits == [mix.split_of(str(n).encode()) for n in range(4000)]
    assert 150 < splits.count("validation") < 250  # 200 expected, sd 14


def made_up_frame(n_each: dict[tuple[str, str], int]) -> pl.DataFrame:
    documents = [
        Document(family, package, "MIT", f"{n}", f"{family} {package} {n}")
        for (family, package), count in n_each.items()
        for n in range(count)
    ]
    frame = mix.documents_frame(documents)
    ids = np.arange(1, 10, dtype=np.uint16).tobytes()
    return frame.with_columns(
        pl.lit(ids).alias("ids"), pl.lit(10, dtype=pl.Int64).alias("n_tokens")
    )


def test_families_get_their_shares_and_packages_of_a_family_the_same_fraction() -> None:
    frame = made_up_frame({("html", "a"): 200, ("html", "b"): 100, ("c", "k"): 50})
    chosen = mix.choose_documents(frame, small_mix(html=0.9, c=0.1), seed=1)
    counts = chosen.group_by("package").len().rows()
    assert dict(counts) == {"a": 60, "b": 30, "k": 10}


def test_scarce_irc_is_repeated_in_training_only() -> None:
    frame = made_up_frame({("irc", "log"): 30})
    chosen = mix.choose_documents(frame, small_mix(irc=1.0), seed=1)
    repeats = chosen.group_by("sha256", "split").len()
    assert set(repeats.filter(pl.col("split") == "train")["len"]) == {3}
    assert set(repeats.filter(pl.col("split") == "validation")["len"]) <= {1}


def test_each_document_of_a_stream_starts_with_id_zero() -> None:
    frame = made_up_frame({("html", "a"): 40})
    stream = mix.token_stream(frame, "train", seed=1)
    starts = stream.docs["start"].to_numpy()
    assert (stream.tokens[starts] == 0).all()
    assert (stream.tokens == 0).sum() == len(stream.docs)
    assert int(stream.docs["n_tokens"].sum()) == len(stream.tokens)


# download


def test_a_file_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x-1.tar.gz").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"has sha256 .*, packages\.toml says 00"):
        download.download(package_with(file="x-1.tar.gz", digest="00"), tmp_path)


def test_a_source_distribution_is_unpacked_without_its_top_folder(tmp_path: Path) -> None:
    file = tmp_path / "x-1.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("x-1/data/a.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    target = download.unpack(package_with(file=file.name), file, tmp_path / "raw")
    assert (target / "data/a.txt").read_bytes() == b"abc"


# what ships


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_the_vocabulary_holds_the_document_mark_at_zero_and_all_bytes(
    tokenizer: Tokenizer,
) -> None:
    rows = token_bytes(tokenizer)
    assert tokenizer.token_to_id(DOCUMENT_MARK) == 0
    assert len(rows) == N_TOKENS
    assert {row for row in rows if len(row) == 1} == {bytes([byte]) for byte in range(256)}
    assert len(set(rows)) == N_TOKENS


@pytest.mark.parametrize(
    "text", ["  <a href='x'>\n\n\té</a>\r\n", "ண 中国 🙂 \x01\x7f", "def f(x):\n        pass\n"]
)
def test_bytes_of_the_tokens_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    rows = token_bytes(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(rows[token_id] for token_id in ids) == text.encode()


def test_parts_of_a_tag_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    rows = token_bytes(tokenizer)
    text = '  <div class="note"><a href="x.html">Next</a></div>\n'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = ["", " <", "div", " class", '="', "note", '">', "<", "a", " href", '="', "x", "."]
    parts += ["html", '">', "Next", "</", "a", ">", "</", "div", ">", "\n"]
    parts[0] = " "
    assert [rows[token_id].decode() for token_id in ids] == parts


def test_a_tamil_letter_takes_two_tokens_as_in_the_paper(tokenizer: Tokenizer) -> None:
    rows = token_bytes(tokenizer)
    ids = tokenizer.encode("\u0ba3", add_special_tokens=False).ids
    assert [rows[token_id] for token_id in ids] == [b"\xe0\xae", b"\xa3"]


def test_the_sample_holds_no_training_document_and_names_its_licences() -> None:
    sample = pl.read_parquet(DEMO / "sample.parquet")
    seen = set(np.load(DEMO / "seen.npy", allow_pickle=False).tolist())
    prefixes = {int.from_bytes(sha256(text).digest()[:8], "big") for text in sample["text"]}
    assert len(prefixes) == len(sample)
    assert not prefixes & seen
    manifest = json.loads((DEMO / "corpus.json").read_text(encoding="utf-8"))
    files = {entry["name"]: entry.get("licence_file") for entry in manifest["packages"]}
    for package in sample["package"].unique():
        assert (DEMO / "LICENSES" / files[package]).exists()


def test_seen_hashes_are_sorted_prefixes() -> None:
    digests = [sha256(text).hexdigest() for text in (b"a", b"b", b"c")]
    hashes = seen_hashes(pl.DataFrame({"sha256": digests}))
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == sorted(int(digest[:16], 16) for digest in digests)


def test_a_sample_keeps_to_its_limits_and_takes_packages_in_turn() -> None:
    texts = ["x" * 900, "y" * 900, "z" * 900]
    candidates = [Document("html", "a", "MIT", f"d/{n}", text) for n, text in enumerate(texts)]
    candidates.append(Document("html", "b", "MIT", "d/9", "w" * 900))
    sample = choose_sample(candidates, {"html": 2})
    assert sample["source"].to_list() == ["html/a/d/0", "html/b/d/9"]
