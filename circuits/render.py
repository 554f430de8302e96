"""Files that show a run: a picture or page of each automaton, and one page of all.

Every file is text or bytes made in memory and then written whole; equal runs give equal bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from circuits.automata_files import why_none
from circuits.dot import automaton_dot
from circuits.page import PageHeader, page_html
from circuits.pictures import picture_bytes
from circuits.svg import automaton_svg
from circuits.zoom import drawn
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from circuits.automaton import FeatureAutomaton
    from circuits.run import Run

FORMATS = ("svg", "html", "dot", "png", "pdf")


class Rendered(NamedTuple):
    """One file to be written."""

    name: str
    """Its file name."""

    data: bytes

    notes: tuple[str, ...] = ()
    """What the user should know, such as another layout than asked for."""


def choose(run: Run, names: Sequence[str]) -> list[FeatureAutomaton]:
    """Give the automata of these names, in their order; all of them where none is named.

    Raises:
        GraphError: the run has no automaton of that name; those it has are listed.
    """
    known = {automaton.name: automaton for automaton in run.automata}
    for name in names:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else why_none(run.path)
            raise GraphError(f"{run.path} has no automaton {name!r}; {has}")
    return [known[name] for name in names] if names else list(known.values())


def zoomed(automaton: FeatureAutomaton, n_states: int | None) -> FeatureAutomaton:
    """Give an automaton with at most so many states; None leaves it as it is."""
    if n_states is None or n_states >= len(automaton.states):
        return automaton
    return automaton.zoom(n_states)


def render(
    automaton: FeatureAutomaton,
    output: str,
    *,
    run: Run,
    engine: str = "embedded",
    n_states: int | None = None,
) -> Rendered:
    """Draw an automaton in one format.

    Args:
        automaton: what to draw, as stored.
        output: one of `FORMATS`.
        run: where it is from, for the head of a page.
        engine: "embedded", or "dot" for the system's Graphviz.
        n_states: states at most, as in `circuits.zoom.drawn`.

    Raises:
        GraphError: the automaton is too large for its states to be merged.
        RenderError: the format needs a package that is not there, or the layout failed.
    """
    name = f"{automaton.name}.{output}"
    if output == "html":
        head = page_header(run, title=automaton.title)
        text = page_html([automaton], header=head, engine=engine, n_states=n_states)
        return Rendered(name, text.encode())
    shown = drawn(automaton, n_states)
    if output == "svg":
        picture = automaton_svg(shown, engine=engine)
        return Rendered(name, picture.text.encode(), picture.notes)
    if output == "dot":
        return Rendered(name, automaton_dot(shown).encode())
    return Rendered(name, *picture_bytes(shown, output, engine=engine))


def draw_all(
    automata: Iterable[FeatureAutomaton],
    formats: Sequence[str],
    *,
    run: Run,
    engine: str = "embedded",
    n_states: int | None = None,
) -> list[Rendered]:
    """Draw each automaton in each format; see `render`."""
    return [
        render(automaton, output, run=run, engine=engine, n_states=n_states)
        for automaton in automata
        for output in formats
    ]


def page(
    run: Run,
    automata: Iterable[FeatureAutomaton],
    *,
    engine: str = "embedded",
    n_states: int | None = None,
) -> str:
    """Give one page with these automata of a run, of `n_states` states at most in its pictures."""
    return page_html(list(automata), header=page_header(run), engine=engine, n_states=n_states)


def page_header(run: Run, *, title: str = "Automata") -> PageHeader:
    """Say what a run was made of."""
    documents, graph = run.documents, run.graph
    n_held_out = int(documents["held_out"].sum())
    notes = [graph.reason] if graph.reason else []
    if not run.automata:
        notes.append(f"There is nothing to show: {why_none(run.path, called='RUN')}.")
    if not n_held_out:
        notes.append(
            "No document was held out, so no score is of unseen text: held-out scores are not measured."
        )
    facts = {
        "model": run.model_name,
        "dictionary": run.sae_name,
        "hook point": str(run.manifest.settings.get("hook_point", "unknown")),
        "documents": f"{len(documents):,}, {n_held_out:,} of them held out",
        "tokens": f"{int(documents['n_tokens'].sum()):,}",
        "features": f"{run.manifest.d_sae:,}",
        "edges": f"{len(graph.edges):,}",
        "run": run.hash,
    }
    return PageHeader(title, tuple(facts.items()), tuple(notes))
