"""One HTML page with all automata of a run: pure text, nothing fetched, nothing stored.

1. Each automaton is a `<details>`: closed, a card with a small picture and its scores; open, the
   large picture and tables of states, arrows and scores. This needs no script.
2. A script adds search, order, pointing at states and saving; it reads the automata from JSON.
3. A content security policy allows that script and style sheet by their hashes and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

from circuits import cards, lettering, palette
from circuits.automaton import EXIT
from circuits.score_words import score_words
from circuits.svg import automaton_svg, style_sheet
from circuits.zoom import drawn
from sae_core.tokens import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuits.automaton import Example, FeatureAutomaton, State, Transition

N_FIGURES = 3
N_TOKENS = 12
N_SHADES = 8
MAX_ROWS = 500  # of a table; more are not read, and slow a browser down


@dataclass(frozen=True)
class PageHeader:
    """What stands above the automata."""

    title: str

    facts: tuple[tuple[str, str], ...] = ()
    """What was read, as (name, value): documents, tokens, model, SAE, hook point."""

    notes: tuple[str, ...] = ()
    """Sentences a reader should know."""


def page_html(
    automata: Sequence[FeatureAutomaton],
    *,
    header: PageHeader,
    engine: str = "embedded",
    n_states: int | None = None,
) -> str:
    """Give one self-contained HTML page.

    Args:
        automata: in the order they are shown, best first.
        header: what was read.
        engine: layout of the pictures, as in `circuits.svg`.
        n_states: states at most in pictures and tables, as in `circuits.zoom.drawn`; the JSON has all.

    Returns:
        HTML text that loads nothing; equal input gives equal text.

    Raises:
        GraphError: an automaton is too large for its states to be merged.
        RenderError: a picture cannot be laid out.
    """
    notes, script = list(header.notes), _resource("page.js")
    shown = [drawn(automaton, n_states) for automaton in automata]
    articles = [_article(automaton, engine, notes) for automaton in shown]
    lines = [
        *_opening(header.title, script),
        *_head(header, list(dict.fromkeys(notes))),
        _tools(automata),
        "<main>",
        *articles,
        "</main>",
        f'<footer><p class="note">{_legend(len(automata), header)}</p></footer>',
        f'<script type="application/json" id="data">{_json(automata)}</script>',
        f"<script>{script}</script>",
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _opening(title: str, script: str) -> list[str]:
    """Give all above the visible page; its policy allows our style sheet and script only."""
    style = _style()
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{_text(title)}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
    ]


def _legend(n_automata: int, header: PageHeader) -> str:
    if not n_automata:
        return "" if header.notes else "No automata were found."  # notes say why there are none
    return (
        "Fn is feature n. In examples the shade is the activation and the outlined token is where"
        f" the state fires; {lettering.SPACE} is a space. Percentages are the probability of the"
        " next state, given the state; leaving means that no state of the automaton comes next."
    )


@functools.cache
def _resource(name: str) -> str:
    return (importlib.resources.files("circuits") / name).read_text(encoding="utf-8")


@functools.cache
def _style() -> str:
    """Join the page's and the pictures' style sheets and the colours of states."""
    rules = []
    for at, colour in enumerate(palette.ACCENTS):
        red, green, blue = bytes.fromhex(colour[1:])
        rules.append(f".a{at} {{ --a: {red} {green} {blue}; }}")
    for step in range(N_SHADES + 1):
        opacity = palette.shade(step / N_SHADES)
        rules.append(f".v{step} {{ background: rgb(var(--a) / {opacity}); }}")
    return "\n".join([_resource("page.css"), style_sheet(), *rules])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(text: str) -> str:
    return escape(visible(text), quote=True)


def _json(automata: Sequence[FeatureAutomaton]) -> str:
    """Give the automata as JSON that no HTML parser can leave: no angle bracket, no ampersand."""
    text = json.dumps(
        [asdict(automaton) for automaton in automata], allow_nan=False, separators=(",", ":")
    )
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _head(header: PageHeader, notes: list[str]) -> list[str]:
    facts = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in header.facts
    )
    return [
        "<header>",
        f"<h1>{_text(header.title)}</h1>",
        f'<dl class="facts">{facts}</dl>' if facts else "",
        *(f'<p class="note">{_text(note)}</p>' for note in notes),
        "</header>",
    ]


def _tools(automata: Sequence[FeatureAutomaton]) -> str:
    kinds = sorted({automaton.kind for automaton in automata})
    options = "".join(f'<option value="{_text(kind)}">{_text(kind)}</option>' for kind in kinds)
    return (
        '<div class="tools" role="search" hidden>'
        '<label>Find <input id="find" type="search" placeholder="title, token, F12"></label>'
        f'<label>Kind <select id="kind"><option value="">all</option>{options}</select></label>'
        '<label>Order <select id="order"><option value="rank">best first</option>'
        '<option value="title">title</option><option value="states">states</option>'
        "</select></label>"
        '<span class="note" id="said" role="status"></span></div>'
    )


def _article(automaton: FeatureAutomaton, engine: str, notes: list[str]) -> str:
    """Give one automaton as a card that opens; what its drawing had to say goes to `notes`."""
    small = automaton_svg(automaton, engine=engine, detail=False, standalone=False)
    large = automaton_svg(automaton, engine=engine, standalone=False)
    notes += [*small.notes, *large.notes]
    kind = f"{_text(automaton.kind)} · {cards.state_count(automaton)}"
    return "\n".join(
        [
            (
                f'<details class="automaton" id="{_text(automaton.name)}"'
                f' data-name="{_text(automaton.name)}">'
            ),
            f'<summary><span class="thumb">{small.text.strip()}</span>',
            f'<h2>{_text(automaton.title)}</h2><div class="kind">{kind}</div>',
            f'<div class="says">{_text(automaton.description)}</div>'
            if automaton.description
            else "",
            f"{_figures(automaton)}</summary>",
            f'<div class="inside"><div class="picture">{large.text.strip()}</div>',
            _states(automaton),
            _arrows(automaton),
            _more(automaton),
            "</div></details>",
        ]
    )


def _figures(automaton: FeatureAutomaton) -> str:
    """Give the scores that stand on the card: held-out ones first."""
    words = sorted(score_words(automaton.scores), key=lambda pair: "held" not in pair[0])
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(number)}</dd></div>"
        for name, number in words[:N_FIGURES]
    )
    return f'<dl class="figures">{cells}</dl>' if cells else ""


def _states(automaton: FeatureAutomaton) -> str:
    order = {state.id: at for at, state in enumerate(automaton.states)}
    kept = cards.strongest_states(automaton, MAX_ROWS)
    rows = "".join(_state_row(automaton, order[state.id], state) for state in kept)
    return (
        '<h3>States</h3><div class="wide"><table class="states"><thead><tr>'
        '<th>State</th><th>Features</th><th class="number">Leaves</th><th>Examples</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{_hidden(len(order) - len(kept), 'states')}"
    )


def _hidden(n_rows: int, what: str) -> str:
    """Count the rows that a table leaves out."""
    said = f"{n_rows:,} more {what}, with fewer pairs, are in the JSON only."
    return f'<p class="note">{said}</p>' if n_rows else ""


def _state_row(automaton: FeatureAutomaton, at: int, state: State) -> str:
    features = " ".join(f"F{feature}" for feature in state.features)
    lines = "".join(_example(example) for example in state.examples)
    return (
        f'<tr class="{_accent(at)}" data-state="{state.id}">'
        f'<td><bdi class="name">{_text(lettering.shown_label(state.label))}</bdi></td>'
        f"<td>{features}</td>"
        f'<td class="number">{_percent(automaton.exit_probability(state.id))}</td>'
        f"<td>{lines}</td></tr>"
    )


def _example(example: Example) -> str:
    """Give an example as a line whose tokens are shaded by activation."""
    pieces = []
    for at, (token, value) in enumerate(zip(example.tokens, example.values, strict=True)):
        text = f"<bdi>{escape(lettering.shown_token(token))}</bdi>"
        shade = f' class="v{round(value * N_SHADES)}"' if value >= cards.SHADE_FROM else ""
        if at == example.focus:
            pieces.append(f"<b{shade}>{text}</b>")
        else:
            pieces.append(f"<mark{shade}>{text}</mark>" if shade else text)
    return f'<span class="line">{"".join(pieces)}</span>'


def _accent(order: int) -> str:
    return f"a{order % len(palette.ACCENTS)}"


def _arrows(automaton: FeatureAutomaton) -> str:
    order = {state.id: at for at, state in enumerate(automaton.states)}
    names = {state.id: lettering.shown_label(state.label) for state in automaton.states}

    def state_cell(state: int | str) -> str:
        if state == EXIT:
            return '<td><span class="name exit">leaves</span></td>'
        at = int(state)
        return f'<td class="{_accent(order[at])}"><bdi class="name">{escape(names[at])}</bdi></td>'

    def row(step: Transition) -> str:
        causal = "" if step.causal is None else f"{step.causal:.3g}"
        return (
            f'<tr data-source="{step.source}" data-target="{step.target}">'
            f"{state_cell(step.source)}{state_cell(step.target)}"
            f'<td class="number">{_bar(step.probability)}'
            f'<span class="share">{_percent(step.probability)}</span></td>'
            f"<td>{_tokens(step)}</td>"
            f'<td class="number">{step.n_pairs:,}</td><td class="number">{causal}</td></tr>'
        )

    steps = [step for state in automaton.states for step in automaton.leaving(state.id)]
    strongest = sorted(range(len(steps)), key=lambda at: (-steps[at].n_pairs, at))[:MAX_ROWS]
    rows = "".join(row(steps[at]) for at in sorted(strongest))
    return (
        '<h3>Arrows</h3><div class="wide"><table><thead><tr><th>From</th><th>To</th>'
        '<th class="number">Probability</th><th>Tokens, share of the arrow</th>'
        '<th class="number">Pairs</th><th class="number">Ablation, nats</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_hidden(len(steps) - len(strongest), 'arrows')}"
    )


def _percent(probability: float) -> str:
    return escape(lettering.percent(probability))


def _bar(probability: float) -> str:
    return (
        '<svg class="bar" width="70" height="7" aria-hidden="true">'
        f'<rect width="{probability * 70:.1f}" height="7" rx="2"/></svg>'
    )


def _tokens(step: Transition) -> str:
    cells = "".join(
        f'<span class="token"><bdi>{escape(lettering.shown_token(token.token_str))}</bdi>'
        f"<small>{_percent(token.share)}</small></span>"
        for token in step.tokens[:N_TOKENS]
    )
    hidden = len(step.tokens) - N_TOKENS
    return cells + (f'<span class="note">and {hidden} more</span>' if hidden > 0 else "")


def _more(automaton: FeatureAutomaton) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{escape(number)}</td></tr>'
        for name, number in score_words(automaton.scores)
    )
    origin = json.dumps(automaton.provenance, indent=1, sort_keys=True, default=str)
    return (
        f"{_variants(automaton)}"
        f"<details><summary>All scores</summary><table><tbody>{rows}</tbody></table></details>"
        f"<details><summary>Where it comes from</summary><pre>{_lines(origin)}</pre></details>"
        '<p><button class="save" type="button" hidden>Save as JSON</button></p>'
    )


def _variants(automaton: FeatureAutomaton) -> str:
    """Give a line of what was folded into an automaton."""
    if not automaton.variants:
        return ""
    return f'<p class="note">{_text(cards.variant_words(automaton.variants))}</p>'


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.split("\n"))
