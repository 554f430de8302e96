"""HTML as a state machine: the state of html5lib's tokenizer after each byte of a page.

1. Bytes become characters, one to one: a byte that is no UTF-8 becomes a character of its own, and
   CR LF becomes one line feed, so that each character knows the bytes it stands for.
2. html5lib's own tokenizer reads them, driven by its tree builder, which alone knows when `script`
   or `title` starts raw text. After each step the position and the states are noted.
3. Characters swallowed in one step carry the state that swallowed them, the last one the state it
   led to (the tree builder included); one read and put back is labelled when consumed for good.
4. The states are gathered in groups and spread back over the bytes.

Hostile pages end, too: html5lib is quadratic in the depth of the tree, the attributes of a tag and
the length of a name, so these are bounded. A page past the bounds, or one that breaks the tree
builder, is read on by the tokenizer alone; raw text then starts by tag name.

Source: the HTML standard, section 13.2.5 (tokenization), as implemented by html5lib 1.1.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

import html5lib
import numpy as np
from html5lib import _tokenizer
from html5lib.constants import digits, hexDigits, namespaces, tokenTypes
from html5lib.treebuilders import base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HTML_GROUPS = (
    "data",
    "entity",
    "tagOpen",
    "endTagOpen",
    "tagName",
    "betweenAttributes",
    "attributeName",
    "beforeAttributeValue",
    "attributeValue",
    "comment",
    "declaration",
    "rawText",
)
HTML_TAG_GROUPS = HTML_GROUPS[2:9]
MAX_OPEN_ELEMENTS = 512  # the depth at which browsers stop nesting
MAX_ATTRIBUTES = 256  # the tokenizer compares each name of a tag with all before it
MAX_NAME = 4096  # characters; no known element or doctype has a longer one
STEPS_A_TRIM = 1024  # how often long names are looked for

# The first group whose word occurs in a state's name, lower-case, holds that state.
_GROUP_OF_WORD = (
    ("rcdatastate", "rawText"),
    ("characterreference", "entity"),
    ("entity", "entity"),
    ("rcdata", "rawText"),
    ("rawtext", "rawText"),
    ("script", "rawText"),
    ("closetagopen", "endTagOpen"),
    ("tagopen", "tagOpen"),
    ("tagname", "tagName"),
    ("beforeattributevalue", "beforeAttributeValue"),
    ("afterattribute", "betweenAttributes"),
    ("beforeattributename", "betweenAttributes"),
    ("selfclosing", "betweenAttributes"),
    ("attributename", "attributeName"),
    ("attributevalue", "attributeValue"),
    ("comment", "comment"),
    ("doctype", "declaration"),
    ("markupdeclaration", "declaration"),
    ("data", "data"),
    ("plaintext", "data"),
)
_RAW_TEXT_STATES = {
    "script": "scriptDataState",
    "title": "rcdataState",
    "textarea": "rcdataState",
    "plaintext": "plaintextState",
} | dict.fromkeys(("style", "xmp", "iframe", "noembed", "noframes"), "rawtextState")


def html_states(document: bytes) -> NDArray[np.uint8]:
    """Give the group of the tokenizer's state after each byte of a page.

    Args:
        document: the page; any bytes, UTF-8 or not.

    Returns:
        (n_bytes,) index into `HTML_GROUPS`; all bytes of a character carry the character's state.

    Example:
        >>> [HTML_GROUPS[state] for state in html_states(b"<p a=1>x")]
        ... # doctest: +NORMALIZE_WHITESPACE
        ['tagOpen', 'tagName', 'betweenAttributes', 'attributeName', 'beforeAttributeValue',
         'attributeValue', 'data', 'data']
    """
    text = document.decode("utf-8", errors="surrogateescape")
    widths = character_widths(text)
    if "\r" in text:
        widths = _joined_line_ends(text, widths)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return np.repeat(_character_states(text), widths)


def character_widths(text: str) -> NDArray[np.int64]:
    r"""Count the bytes of each character of a text decoded with `surrogateescape`.

    Args:
        text: the decoded text.

    Returns:
        (n_characters,) 1 to 4; an escaped byte has 1.

    Example:
        >>> character_widths("a\u00e4\u20ac\udc80").tolist()
        [1, 2, 3, 1]
    """
    codes = code_points(text)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    widths[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1
    return widths


def code_points(text: str) -> NDArray[np.uint32]:
    """Give the code point of each character, lone surrogates included, as (n_characters,)."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _joined_line_ends(text: str, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the widths after each CR LF became one character of two bytes."""
    codes = code_points(text)
    dropped = np.zeros(len(codes), dtype=bool)
    dropped[:-1] = (codes[:-1] == 0x0D) & (codes[1:] == 0x0A)
    joined = widths.copy()
    joined[1:][dropped[:-1]] += 1
    return joined[~dropped]


def _character_states(text: str) -> NDArray[np.uint8]:
    tokenizer = _Tokenizer(text)
    tree_parser = html5lib.HTMLParser(tree=_Tree)
    tree_parser.tree.budget = len(text) + 10_000
    tree_parser.tokenizer = tokenizer
    tree_parser.parseError = _ignore
    tree_parser.innerHTMLMode = tree_parser.scripting = False
    tokenizer.parser = tree_parser
    tree_parser.reset()
    try:
        tree_parser.mainLoop()
    except Exception:  # noqa: BLE001 - a page must not break us where it breaks html5lib's tree
        tokenizer.read_on()
    return tokenizer.states()


def _ignore(*_args: Any, **_fields: Any) -> None:
    """Take the place of the parser's list of errors, which grows with the page."""


class _TooLargeError(Exception):
    """The tree is deeper or larger than we follow it."""


class _Characters:
    """The text as the tokenizer reads it; html5lib's input stream, held in one piece."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.size = len(text)
        self.at = 0
        self.errors: list[str] = []
        self.charEncoding = (None, "certain")

    def char(self) -> str | None:
        at = self.at
        if at >= self.size:
            return None
        self.at = at + 1
        return self.text[at]

    def charsUntil(  # noqa: N802 - html5lib's
        self,
        characters: Any,
        opposite: bool = False,  # noqa: FBT001, FBT002
    ) -> str:
        key = (characters, opposite)
        pattern = _PATTERNS.get(key)
        if pattern is None:
            escaped = "".join(f"\\x{ord(char):02x}" for char in sorted(characters))
            pattern = _PATTERNS[key] = re.compile(f"[{'' if opposite else '^'}{escaped}]*")
        match = pattern.match(self.text, self.at)
        assert match is not None, "a starred class matches anywhere"
        self.at = match.end()
        return match.group()

    def unget(self, char: str | None) -> None:
        if char is not None:
            self.at -= 1


_PATTERNS: dict[Any, re.Pattern[str]] = {}


class _Tokenizer(_tokenizer.HTMLTokenizer):  # type: ignore[misc] # html5lib has no types
    """html5lib's tokenizer, noting after each step how far it came and in which state."""

    def __init__(self, text: str) -> None:
        self.stream = _Characters(text)
        self.parser: Any = None
        self.state: Any = self.dataState
        self.currentToken: Any = None
        self.temporaryBuffer = ""
        self.tokenQueue: deque[dict[str, Any]] = deque()
        self.ends: list[int] = []
        self.stepping: list[int] = []
        self.reached: list[int] = []
        self.walk = self._walk()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.walk

    def _walk(self) -> Iterator[dict[str, Any]]:
        stream, queue, position = self.stream, self.tokenQueue, 0
        more, n_steps = True, 0
        while more:
            step = self.state
            more = step()
            while queue:
                token = queue.popleft()
                if token["type"] != _PARSE_ERROR:
                    yield token
            if stream.at > position:
                position = stream.at
                self.ends.append(position)
                self.stepping.append(_code(step.__name__))
                self.reached.append(_code(self.state.__name__))
            n_steps += 1
            if n_steps % STEPS_A_TRIM == 0:
                self._trim()

    def read_on(self) -> None:
        """Read the rest of the text without a tree; raw text starts by tag name."""
        for token in self.walk:
            if token["type"] == _START_TAG and token["name"] in _RAW_TEXT_STATES:
                self.state = getattr(self, _RAW_TEXT_STATES[token["name"]])

    def states(self) -> NDArray[np.uint8]:
        """Give the group of each character: (n_characters,) index into `HTML_GROUPS`."""
        ends = np.asarray(self.ends, dtype=np.int64)
        states = np.repeat(np.asarray(self.stepping, dtype=np.uint8), np.diff(ends, prepend=0))
        states[ends - 1] = np.asarray(self.reached, dtype=np.uint8)
        return states

    def attributeNameState(self) -> bool:  # noqa: N802 - html5lib's
        attributes = self.currentToken["data"]
        if len(attributes) > MAX_ATTRIBUTES:
            del attributes[:-1]
        return bool(super().attributeNameState())

    def consumeNumberEntity(self, isHex: bool) -> str:  # noqa: N802, FBT001 - html5lib's
        number = self.stream.charsUntil(hexDigits if isHex else digits, opposite=True)
        follower = self.stream.char()
        if follower != ";":
            self.stream.unget(follower)
        code = int(number, 16 if isHex else 10) if len(number) < 8 else 0
        return chr(code) if 0 < code <= 0x10FFFF else "\ufffd"

    def _trim(self) -> None:
        """Cut names and comments that grow a character at a time, each time copied whole."""
        self.temporaryBuffer = self.temporaryBuffer[:MAX_NAME]
        token = self.currentToken or {}
        for key, value in token.items():
            if isinstance(value, str):
                token[key] = value[:MAX_NAME]
            elif key == "data" and isinstance(value, list) and value:
                value[-1][:] = [part[:MAX_NAME] for part in value[-1]]


_PARSE_ERROR = tokenTypes["ParseError"]
_START_TAG = tokenTypes["StartTag"]
_CODES: dict[str, int] = {}


def _code(state: str) -> int:
    code = _CODES.get(state)
    if code is None:
        lower = state.lower()
        group = next(group for word, group in _GROUP_OF_WORD if word in lower)
        code = _CODES[state] = HTML_GROUPS.index(group)
    return code


class _Node:
    """An element without children or text: only what decides the tokenizer's next state."""

    def __init__(self, name: str = "", namespace: str | None = None) -> None:
        self.name = name
        self.namespace = namespace
        self.nameTuple = (namespace or namespaces["html"], name)
        self.attributes: dict[str, str] = {}
        self.parent: _Node | None = None
        self.has_content = False

    def appendChild(self, node: _Node) -> None:  # noqa: N802 - html5lib's, as those below
        self.has_content = True
        node.parent = self

    def insertBefore(self, node: _Node, refNode: _Node) -> None:  # noqa: ARG002, N802
        self.appendChild(node)

    def insertText(  # noqa: N802
        self,
        data: str,  # noqa: ARG002
        insertBefore: _Node | None = None,  # noqa: ARG002
    ) -> None:
        self.has_content = True

    def removeChild(self, node: _Node) -> None:  # noqa: N802
        node.parent = None

    def reparentChildren(self, newParent: _Node) -> None:  # noqa: N802
        newParent.has_content |= self.has_content

    def cloneNode(self) -> _Node:  # noqa: N802
        clone = _Node(self.name, self.namespace)
        clone.attributes = dict(self.attributes)
        return clone

    def hasContent(self) -> bool:  # noqa: N802
        return self.has_content


class _OpenElements(list[_Node]):
    """The stack of open elements, no deeper than a browser's."""

    def append(self, node: _Node) -> None:
        if len(self) >= MAX_OPEN_ELEMENTS:
            raise _TooLargeError
        super().append(node)


class _Tree(base.TreeBuilder):  # type: ignore[misc] # html5lib has no types
    """A tree builder that keeps the open elements and forgets the tree."""

    documentClass = _Node  # noqa: N815 - html5lib's
    budget = 0
    """Elements it may still make: misnested formatting makes far more than the page has tags."""

    def reset(self) -> None:
        super().reset()
        self.openElements = _OpenElements()

    def elementClass(self, name: str, namespace: str | None) -> _Node:  # noqa: N802
        self.budget -= 1
        if self.budget < 0:
            raise _TooLargeError
        return _Node(name, namespace)

    def commentClass(self, data: str) -> _Node:  # noqa: ARG002, N802
        return _Node()

    def doctypeClass(self, *_names: str) -> _Node:  # noqa: N802
        return _Node()
