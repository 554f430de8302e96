from __future__ import annotations

import io
import json
import tarfile
from hashlib import sha256
from typing import TYPE_CHECKING

import made_up
import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer

from sae_core.demo import download, mix
from sae_core.demo.extract import (
    EXTRACTORS,
    SCRIPTS,
    Document,
)
from sae_core.demo.manifest import seen_hashes
from sae_core.demo.packages import (
    PACKAGES_TOML,
    ROLES,
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


# packages.toml


def test_each_take_names_an_extractor_a_family_with_a_share_and_a_known_script() -> None:
    shares = load_mix("large").shares
    for package in load_packages():
        for take in package.takes:
            assert take.extractor in EXTRACTORS
            assert take.family in shares
            assert take.script in SCRIPTS or not take.script


def test_shares_of_each_mix_sum_to_one_and_the_sample_limits_name_the_same_families() -> None:
    for name in ("large", "markup", "broad"):
        shares = load_mix(name).shares
        assert sum(shares.values()) == pytest.approx(1.0)
        assert set(load_sample_limits()) == set(shares)


def test_an_unknown_mix_is_refused_with_the_known_names() -> None:
    with pytest.raises(
        ValueError, match=r"mix must be one of \['broad', 'large', 'markup'\], got 'huge'"
    ):
        load_mix("huge")


def test_packages_are_named_once_with_a_full_checksum_and_a_known_role() -> None:
    packages = load_packages()
    assert len({package.name for package in packages}) == len(packages)
    for package in packages:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.role in ROLES
        assert package.source in {"debian", "pypi"}


def test_packages_to_train_on_have_caps_and_others_give_no_document() -> None:
    for package in load_packages():
        for take in package.takes:
            assert (take.cap_mb > 0) == (package.role == "train")


def test_reserved_packages_are_not_in_the_recipe() -> None:
    roles = {package.name: package.role for package in load_packages()}
    assert not NEVER_TOUCHED & set(roles)
    assert roles["r-doc-html"] == roles["ada-reference-manual-2012"] == "read-once"
    assert roles["gnuplot-doc"] == roles["twisted-doc"] == "development"


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
    chosen = mix.choose_documents(frame, made_up.small_mix(html=0.9, c=0.1), seed=1)
    counts = chosen.group_by("package").len().rows()
    assert dict(counts) == {"a": 60, "b": 30, "k": 10}


def test_scarce_irc_is_repeated_in_training_only() -> None:
    frame = made_up_frame({("irc", "log"): 30})
    chosen = mix.choose_documents(frame, made_up.small_mix(irc=1.0), seed=1)
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
        download.download(made_up.package_with(file="x-1.tar.gz", digest="00"), tmp_path)


@pytest.fixture
def archive_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `apt-get` whose archive holds version 2 of every package, and no other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    client = folder / "apt-get"
    client.write_text("#!/bin/sh\ncase $2 in *=*) exit 100 ;; esac\necho new > ${2}_2_all.deb\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    return tmp_path / "downloads"


def test_a_version_that_the_archive_has_dropped_is_named_with_what_to_do(
    archive_of_today: Path,
) -> None:
    package = made_up.package_with(name="x", file="x_1_all.deb", source="debian")
    with pytest.raises(FileNotFoundError, match=r"x 1 did not arrive as .*today's with --newer"):
        download.download(package, archive_of_today)


def test_a_dropped_version_is_replaced_by_todays_when_that_is_asked_for(
    archive_of_today: Path,
) -> None:
    package = made_up.package_with(name="x", file="x_1_all.deb", source="debian")
    file = download.download(package, archive_of_today, newer=True)
    assert (file.name, file.read_text()) == ("x_2_all.deb", "new\n")


def test_a_source_distribution_is_unpacked_without_its_top_folder(tmp_path: Path) -> None:
    file = tmp_path / "x-1.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("x-1/data/a.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    target = download.unpack(made_up.package_with(file=file.name), file, tmp_path / "raw")
    assert (target / "data/a.txt").read_bytes() == b"abc"


# what ships


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "model" / "tokenizer.json"))


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
