"""Extractors of data formats: base64, HTTP, IRC, sequences, tables.

Same contract as in `extract_markup`: bytes -> texts. Where a text is
*derived* (rewritten from fields or encoded by us) its function says so.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tarfile
import textwrap
from hashlib import sha256
from typing import TYPE_CHECKING

from sae_core.demo.extract_markup import Extractor, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_BASE64 = 2_000  # CORPUS rule: pieces of 2-8 KB
MAX_BASE64 = 8_000
WRAPS = (0, 64, 76)  # not wrapped, as PEM wraps, as MIME wraps
CONTEXT = 600  # characters of HTML kept before and after an image
PIECES_PER_IMAGE = 3  # so that one large plot does not fill the family
MAX_BODY = 3_000  # bytes of an HTTP body: the family is about heads
IRC_PIECE_LINES = 80  # a few KB, so that one long log falls in both splits
IRC_NOISE = ("*** You connected", "*** You disconnected")  # the proxy's, half of some days
MAX_ENTRY = 12_000  # bytes of a sequence entry: all of the annotation, some of the sequence
SPORTS_COLUMNS = ("HomeTeam", "rbi")  # of Bundesliga.csv and baseball.csv

_DATA_URI = re.compile(r"data:[\w/+.-]+;base64,([A-Za-z0-9+/=]{2000,})")
_EXCHANGE_FIELDS = 10  # lines a recorded exchange of PyGithub takes


def base64_uris(data: bytes) -> Iterator[str]:
    """Images inside pages: the HTML around each, its base64 cut in pieces of 2-8 KB."""
    for page in plain(data):
        for match in _DATA_URI.finditer(page):
            before = page[max(0, match.start(1) - CONTEXT) : match.start(1)]
            after = page[match.end(1) : match.end(1) + CONTEXT]
            yield from _base64_pieces(match.group(1), before, after)


def cassette_base64(data: bytes) -> Iterator[str]:
    """Gzip bodies of recorded answers, kept in base64 by the recorder."""
    for interaction in json.loads(data)["http_interactions"]:
        body = interaction["response"]["body"].get("base64_string", "")
        if len(body) >= MIN_BASE64:
            yield from _base64_pieces(body, "", "")


def warc(data: bytes) -> Iterator[str]:
    """Requests and answers of a web archive in their wire format."""
    for record in data.split(b"WARC/1.0\r\n")[1:]:
        head, _, payload = record.partition(b"\r\n\r\n")
        if not re.search(rb"WARC-Type: (request|response)", head) or b"HTTP/1" not in payload:
            continue
        http_head, _, body = payload.partition(b"\r\n\r\n")
        text = next(plain(body.rstrip(b"\r\n")), "")
        yield http_head.decode("utf-8", "replace") + "\r\n\r\n" + text[:MAX_BODY]


def replay(data: bytes) -> Iterator[str]:
    """Derived: recorded fields of PyGithub's tests written as HTTP/1.1 requests and answers."""
    lines = data.decode("utf-8", "replace").split("\n")
    exchanges: list[str] = []
    for start in range(0, len(lines) - _EXCHANGE_FIELDS, _EXCHANGE_FIELDS + 1):
        fields = lines[start : start + _EXCHANGE_FIELDS]
        try:
            exchanges.append(_exchange(fields))
        except (ValueError, SyntaxError):  # a recording with another layout
            break
    if exchanges:
        yield "".join(exchanges)


def irc(data: bytes) -> Iterator[str]:
    """A channel log; users' hosts are removed, `<nick!user@host> +text` -> `<nick> text`."""
    for text in plain(data):
        lines = [_irc_line(line) for line in text.splitlines() if line.strip()]
        lines = [line for line in lines if not line.endswith(IRC_NOISE)]
        for start in range(0, len(lines), IRC_PIECE_LINES):
            yield "\n".join(lines[start : start + IRC_PIECE_LINES]) + "\n"


def irc_fortunes(data: bytes) -> Iterator[str]:
    """Entries of a fortune file that hold at least two lines `<nick> text`."""
    for text in plain(data):
        entries = [e for e in text.split("\n%\n") if len(re.findall(r"(?m)^.{0,9}<\S+> ", e)) > 1]
        for start in range(0, len(entries), 10):  # an entry is a few lines
            yield "\n\n".join(entries[start : start + 10]) + "\n"


def sequences(data: bytes) -> Iterator[str]:
    """Entries of an EMBL, GenBank or FASTA file, each cut after 12 KB."""
    for text in plain(data):
        entries = re.split(r"(?m)^//\n|(?=^>)", text)
        for entry in entries:
            if len(entry) > 200:  # shorter ones are separators
                yield entry[:MAX_ENTRY]


def tables_in_tar(data: bytes) -> Iterator[str]:
    """The csv files inside a tar archive (already gunzipped), without `._*` leftovers."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: sha256(m.name.encode()).digest()):
            stem = member.name.rsplit("/", 1)[-1]
            if member.isfile() and stem.endswith(".csv") and not stem.startswith("._"):
                handle = archive.extractfile(member)
                assert handle is not None  # a regular file always opens
                yield from plain(handle.read())


def sports_in_tar(data: bytes) -> Iterator[str]:
    """The two large tables of sports results among `tables_in_tar`."""
    for text in tables_in_tar(data):
        head = text[: text.find("\n")]
        if any(column in head for column in SPORTS_COLUMNS):
            yield text


def _base64_pieces(body: str, before: str, after: str) -> Iterator[str]:
    """Cut a base64 string in pieces whose lengths and wrapping follow its own hash."""
    start = 0
    for n in range(PIECES_PER_IMAGE):
        digest = sha256(body[start : start + 64].encode()).digest()
        size = MIN_BASE64 + int.from_bytes(digest[:2], "big") % (MAX_BASE64 - MIN_BASE64)
        piece = body[start : start + size]
        if len(piece) < MIN_BASE64:
            return
        start += size
        if n == 0 and before:
            yield before + piece + after
            continue
        width = WRAPS[digest[2] % len(WRAPS)]
        yield ("\n".join(textwrap.wrap(piece, width)) if width else piece) + "\n"


def _exchange(fields: list[str]) -> str:
    _, method, host, _, path, request, sent, status, answer, body = fields
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    head += [f"{key}: {value}" for key, value in dict(ast.literal_eval(request)).items()]
    reply = dict(ast.literal_eval(answer))
    back = [f"HTTP/1.1 {reply.pop('status', status)}"]
    back += [f"{key}: {value}" for key, value in reply.items()]
    sent = "" if sent == "None" else sent
    body = body if len(body) < MAX_BODY // 4 else ""
    return "\r\n".join([*head, "", sent, *back, "", body]) + "\r\n"


def _irc_line(line: str) -> str:
    line = re.sub(r"<([^\s!>]+)![^>]*> [+-]?", r"<\1> ", line)
    return re.sub(r" \(?[^\s()]+@[^\s()]+\)?", "", line)


EXTRACTORS: dict[str, Extractor] = {
    "base64_uris": base64_uris,
    "cassette_base64": cassette_base64,
    "warc": warc,
    "replay": replay,
    "irc": irc,
    "irc_fortunes": irc_fortunes,
    "sequences": sequences,
    "tables_in_tar": tables_in_tar,
    "sports_in_tar": sports_in_tar,
}
