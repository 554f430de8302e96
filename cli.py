"""The command `circuits`: each command parses, calls one function, and prints.

Data goes to stdout, words and progress to stderr. Heavy imports are inside the commands, so that
help is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

OURS = "sae-automata"


def refuse_strangers() -> None:
    """Leave with a sentence when another distribution owns the names `circuits` or `sae_core`."""
    for name in ("circuits", "sae_core"):
        try:
            found = import_module(name)
        except ImportError as err:
            sys.exit(f"Error: the package {name} is not found ({err}); install {OURS} again")
        if getattr(found, "DISTRIBUTION", None) != OURS:
            sys.exit(
                f"Error: the package {name} at {found.__file__} is not of {OURS}: another "
                f"distribution overwrote it; install {OURS} in an environment of its own"
            )


refuse_strangers()

from sae_core import __version__, commands, console  # noqa: E402 - only after they are known as ours
from sae_core.console import (  # noqa: E402
    PATH,
    force_option,
    json_option,
    most_states_option,
    output_option,
    texts_argument,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HELP = {"help_option_names": ["-h", "--help"], "show_default": True}
DEMO_TEXT = str(Path(commands.__file__).parent / "demo" / "sample.parquet")
AUTOMATA_COLUMNS = ("rank", "name", "kind", "n_states", "retention", "held_out_retention", "title")
DEMO_COLUMNS = ("automaton", "kind", "retention", "held_out_retention", "file")
TRUTH_COLUMNS = (
    *("what", "accuracy", "low", "high", "macro_f1", "macro_f1_low", "macro_f1_high"),
    *("difference", "difference_low", "difference_high", "n_tokens"),
)
CAUSAL_HELP = "Measure what ablating the source does to the N best edges; needs the model."
STABILITY_HELP = "Look again in N random halves of the documents: how surely each is found."

run_argument = click.argument("run", type=PATH)


@click.group(cls=console.Group, context_settings=HELP)
@click.version_option(__version__, package_name=OURS, prog_name="circuits")
@click.option(
    "--traceback",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=console.set_traceback,
    help="Show where an error comes from.",
)
def cli() -> None:
    r"""Read finite-state automata out of language models, through sparse autoencoders.

    \b
    Example:
      circuits demo
      circuits gather pages/ -o run && circuits graph run && circuits automata run
    """


@cli.command()
@output_option("Folder of the run, the pictures and the page.", default="circuits-demo")
@commands.sae_option
@commands.model_option
@commands.max_tokens_option
@force_option
@json_option
def demo(output: Path, *, as_json: bool, **options: Any) -> None:
    r"""Run the main job on the model, dictionary and text that the package ships.

    \b
    Example:
      circuits demo -o circuits-demo
    """
    from circuits.steps import demo_rows, refuse_foreign_demo

    refuse_foreign_demo(output)
    done = commands.gather_said([DEMO_TEXT], out=output / "run", **options)
    rows = demo_rows(output, is_new=done.n_new_tokens > 0, say=console.say)
    console.emit(rows, as_json=as_json, columns=DEMO_COLUMNS, absent="not measured")
    first = next((row["automaton"] for row in rows), "NAME")
    console.say(f"Next: open {output / 'index.html'} in a browser, or")
    for words in (f"show {output / 'run'} {first}", f"query {output / 'run'} --motif loop"):
        console.say(f"  circuits {words}")
    console.say(f"  circuits truth {output / 'run'} --kind html")


@cli.command()
@run_argument
@click.option("--causal", type=click.IntRange(1), metavar="N", help=CAUSAL_HELP)
def graph(run: Path, *, causal: int | None) -> None:
    r"""Turn a run's statistics into its graph of features, RUN/graph/.

    \b
    Example:
      circuits graph run
      circuits graph run --causal 100
    """
    from circuits.build import build_graph

    measure = commands.measure_best(run, causal) if causal else None
    built = build_graph(run, measure=measure, say=console.say)
    console.say(f"{run / 'graph'}: {len(built.nodes):,} features, {len(built.edges):,} edges.")
    console.say(built.reason or f"Next: circuits automata {run}")


@cli.command()
@run_argument
@click.option("--stability", type=click.IntRange(0), metavar="N", default=0, help=STABILITY_HELP)
@json_option
def automata(run: Path, *, stability: int, as_json: bool) -> None:
    r"""Find, rank, name and score the automata of a run, RUN/automata/; best first.

    \b
    Example:
      circuits automata run
      circuits automata run --stability 10
    """
    from circuits.steps import automata_rows

    rows = automata_rows(run, n_stability=stability, say=console.say)
    console.emit(rows, as_json=as_json, columns=AUTOMATA_COLUMNS, absent="not measured")
    if rows:
        console.say(
            f"{run / 'automata'}: {len(rows)} automata. Next: circuits page {run} -o run.html"
        )


@cli.command()
@run_argument
@click.argument("names", metavar="[NAME]...", nargs=-1)
@output_option("Folder to write to; - prints one picture.")
@click.option("--format", "formats", default="svg", help="Some of svg,html,dot,png,pdf.")
@most_states_option
@click.option(
    "--engine", type=click.Choice(["embedded", "dot"]), default="embedded", help="Layout."
)
@force_option
def render(
    run: Path, names: tuple[str, ...], output: Path, formats: str, *, force: bool, **options: Any
) -> None:
    r"""Draw automata of a run; all of them where no NAME is given.

    PNG and PDF need one more package, pip install 'sae-automata[pictures]', or Graphviz.

    \b
    Example:
      circuits render run -o pictures --format svg,dot
      circuits render run -o pictures --format png,pdf --states 20
    """
    from circuits.automata_files import why_none
    from circuits.render import FORMATS, choose, draw_all
    from circuits.run import open_run

    wanted = [word.strip() for word in formats.split(",")]
    if unknown := [word for word in wanted if word not in FORMATS]:
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(FORMATS)}", param_hint="--format"
        )
    opened = open_run(run)
    chosen = choose(opened, names)
    to_stdout = str(output) == "-"
    if to_stdout and len(chosen) * len(wanted) != 1:
        raise click.UsageError("-o - prints one picture; name one automaton and one format")
    files = draw_all(chosen, wanted, run=opened, **options)
    targets = {output if to_stdout else output / file.name: file.data for file in files}
    console.write_outputs(targets, force=force)
    for note in dict.fromkeys(note for file in files for note in file.notes):
        console.say(note)
    if not files:
        console.say(f"Nothing to draw: {why_none(run)}.")
    elif not to_stdout:
        console.say(f"{len(targets)} written to {output}.")


@cli.command()
@run_argument
@output_option("HTML file to write; - prints it.")
@most_states_option
@force_option
def page(run: Path, output: Path, *, n_states: int | None, force: bool) -> None:
    r"""Write one self-contained, interactive page with all automata of a run.

    \b
    Example:
      circuits page run -o run.html
    """
    from circuits.render import page as page_of
    from circuits.run import open_run

    opened = open_run(run)
    text = page_of(opened, opened.automata, n_states=n_states)
    console.write_output(output, text.encode(), force=force)
    if str(output) != "-":
        console.say(f"{output}: {len(opened.automata)} automata. Open it in a browser.")


@cli.command()
@run_argument
@click.argument("sql", metavar="[SQL]", required=False)
@click.option("--successors", type=int, metavar="I", help="Edges that leave a feature.")
@click.option("--predecessors", type=int, metavar="I", help="Edges that enter a feature.")
@click.option("--token", metavar="STR", help="Edges that run through a token, as it is printed.")
@click.option("--strip", is_flag=True, help="With --token: match leading spaces too.")
@click.option("--path", type=(int, int), metavar="I J", help="Paths between two features.")
@click.option("--motif", type=click.Choice(["loop", "pair", "chain"]), help="Motifs of one kind.")
@click.option("--limit", type=click.IntRange(1), default=100, help="Rows at most.")
@json_option
def query(run: Path, limit: int, *, as_json: bool, **question: Any) -> None:
    r"""Ask a run's graph: SQL over nodes, edges, edge_tokens and automata, or one of the options.

    \b
    Example:
      circuits query run "select source, target, lift from edges where lift > 20"
      circuits query run --token href --strip
    """
    from circuits.run import open_run
    from circuits.steps import answer

    with console.usage_errors():
        frame = answer(open_run(run), question, limit=limit)
    console.emit(frame.to_dicts(), as_json=as_json, columns=frame.columns)
    if len(frame) == limit:
        console.say(f"The first {limit} rows; --limit gives more.")


@cli.command(cls=console.NumbersCommand)
@run_argument
@click.argument("what")
@json_option
def show(run: Path, what: str, *, as_json: bool) -> None:
    r"""Describe WHAT: a feature (12), an edge (12:40) or an automaton (its NAME).

    \b
    Example:
      circuits show run 12
      circuits show run 12:40
    """
    from circuits.run import open_run
    from circuits.show import card_of, lines_of

    with console.usage_errors():
        card = card_of(open_run(run), what)
    if as_json:
        console.emit([card], as_json=True)
        return
    for line in lines_of(card):
        click.echo(line)


@cli.command()
@run_argument
@click.argument("name")
@texts_argument
@click.option("--by", type=click.Choice(["features", "tokens"]), default="features", help="Reader.")
@json_option
def trace(
    run: Path,
    name: str,
    texts: tuple[str, ...],
    *,
    by: Literal["features", "tokens"],
    as_json: bool,
) -> None:
    r"""Run automaton NAME over TEXT: its state on each token, and what it expects next.

    \b
    Example:
      circuits trace run html-tags page.html
      echo '<a href="x">' | circuits trace run html-tags - --by tokens
    """
    from circuits.render import choose
    from circuits.run import open_run
    from circuits.steps import trace_texts

    opened = open_run(run)
    automaton = choose(opened, [name])[0]
    frame = trace_texts(
        automaton, opened, texts, by=by, gather_like=_late("sae_core.regather", "gather_like")
    )
    console.emit(frame.to_dicts(), as_json=as_json, columns=frame.columns)


@cli.command()
@run_argument
@click.option(
    "--kind", type=click.Choice(["html", "python", "utf8"]), required=True, help="Parser."
)
@click.option(
    "--states", type=click.IntRange(1), help="Zoom: automata with at most so many states."
)
@click.option(
    "--all-documents", is_flag=True, help="Score on all documents, not held-out ones only."
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Score this package (a folder of the text) only, from all others; repeatable.",
)
@json_option
def truth(
    run: Path,
    kind: str,
    *,
    states: int | None,
    all_documents: bool,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    r"""Score features, automata, neurons and bare tokens against a real parser.

    Intervals (low, high) are 95 % ones from packages drawn with replacement; `difference` is the
    accuracy of the features less that of the row, both on the same packages.

    \b
    Example:
      circuits truth run --kind html
      circuits truth run --kind html --all-documents --only bash-doc
    """
    from circuits.run import open_run
    from circuits.steps import truth_scores

    rows = truth_scores(
        open_run(run),
        kind,
        n_states=states,
        held_out=None if all_documents else True,
        only=tuple(dict.fromkeys(only)),
        gather_neurons=_late("sae_core.regather", "gather_neurons"),
        say=console.say,
    )
    console.emit(rows, as_json=as_json, columns=TRUTH_COLUMNS)


@cli.command()
@run_argument
@json_option
def verify(run: Path, *, as_json: bool) -> None:
    r"""Check every file of a run against its checksum; exit 1 if one is not as written.

    \b
    Example:
      circuits verify run
    """
    from dataclasses import asdict

    from sae_core.store import verify as check

    checks = check(run)
    console.emit([asdict(one) for one in checks], as_json=as_json, columns=("file", "ok", "reason"))
    for one in checks:
        if not one.ok:
            console.say(f"Error: {run / one.file}: {one.reason}")
    if not all(one.ok for one in checks):
        console.say(commands.REPAIR)
    click.get_current_context().exit(int(not all(one.ok for one in checks)))


for command in commands.COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the program."""
    console.prepare()
    cli(prog_name="circuits")


def _late(module: str, name: str) -> Callable[..., Any]:
    """Give a function whose module, heavy, is loaded when it is called."""

    def call(*args: Any) -> Any:
        return getattr(import_module(module), name)(*args)

    return call
