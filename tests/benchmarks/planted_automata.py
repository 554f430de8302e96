"""How well automata of planted worlds are found, beside other ways to group features.

    pip install leidenalg igraph infomap
    python tests/benchmarks/planted_automata.py [--seeds 8] [--write docs/discovery.md] [--choose]

1. Worlds: plain (tests/planted.py) and hard (tests/planted_rich.py) ones, at each share of misses and
   each size. Seeds start at 200: no threshold of ours and no setting of others was chosen on them.
2. Every way gets the same graph, its table of significant edges: `propose` alone; `find_automata`,
   which also reads the tokens; and others (discovery_rivals.py).
3. Scores (tests/discovery_scores.py): best overlap with each planted machine, false sets, states.

`--choose` prints instead how each setting of the others does on seeds 0 and 1, and the best. Without
the packages of the first line their rows are left out, which stderr says.

Each world is a job of its own; as many jobs run at once as there are cores, or as `--jobs` says.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, pstdev
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where worlds and scores are

from benchmarks.discovery_rivals import RIVALS, Rival, Setting
from discovery_scores import KINDS, Matches, false_share, mark, matches, state_agreement
from planted import planted_world
from planted_rich import rich_world

import circuits
from circuits.propose import propose
from figures.tables import markdown, replace_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from planted import PlantedWorld

FIRST_SEED = 200  # a first table, on 100 to 107, showed that the longest loops were lost
CHOOSING_SEEDS = range(2)
MISSES = (0.05, 0.15, 0.25)
SIZES = (60_000, 300_000)
WORLDS = {"plain": planted_world, "hard": rich_world}
PROPOSE, FIND = "`propose` alone", "`find_automata`"
MEANT_FOR = {"paths": ("chain",)}  # the other ways are meant for all kinds


class Job(NamedTuple):
    """One world."""

    world: str
    n_tokens: int
    miss: float
    seed: int


class Result(NamedTuple):
    """One way, or one setting of a way, in one world."""

    matches: Matches
    seconds: float


class Line(NamedTuple):
    """What was measured in one world."""

    job: Job
    results: dict[str, Result]
    agreement: dict[str, list[float]]
    """Adjusted Rand index of the states of each machine with several, by kind."""


class Choice(NamedTuple):
    """What each setting gave in one world."""

    job: Job
    results: dict[tuple[str, Setting], Result]


def main() -> None:
    """Print the tables."""
    options = _options()
    for rival in RIVALS:
        if not rival.is_installed():
            print(f"no row {rival.name!r}: {rival.package} is not installed", file=sys.stderr)
    seeds = CHOOSING_SEEDS if options.choose else range(FIRST_SEED, FIRST_SEED + options.seeds)
    jobs = [Job(*one) for one in product(WORLDS, SIZES, MISSES, seeds)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        if options.choose:
            print(_choice_table(list(pool.map(try_settings, jobs))))
            return
        lines = list(pool.map(run, jobs[::-1]))[::-1]  # large ones first: no core waits at the end
    text = _text(lines, options.seeds)
    print(text, flush=True)
    if options.write:
        replace_block(options.write, "planted-automata", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--write", type=Path, help="a page whose block gets the tables")
    parser.add_argument("--choose", action="store_true", help="try settings on other worlds")
    return parser.parse_args()


def run(job: Job) -> Line:
    """Make one world and measure everything in it."""
    with tempfile.TemporaryDirectory() as folder:
        world = _world(job, Path(folder) / "run")
        graph = circuits.build_graph(world.path)
        results = {PROPOSE: _result(world, lambda: _proposed(graph))}
        for rival in RIVALS:
            if rival.is_installed():
                results[rival.name] = _result(world, _sets_by(rival, graph, rival.chosen))
        start = time.process_time()
        automata = circuits.find_automata(graph)
        seconds = time.process_time() - start
    sets = [one.features for one in automata]
    results[FIND] = Result(matches(world, sets), seconds)
    return Line(job, results, state_agreement(world, automata))


def try_settings(job: Job) -> Choice:
    """Make one world and try all settings of all ways but ours in it."""
    with tempfile.TemporaryDirectory() as folder:
        world = _world(job, Path(folder) / "run")
        graph = circuits.build_graph(world.path)
    tried = [(one, setting) for one in RIVALS if one.is_installed() for setting in one.settings()]
    return Choice(
        job,
        {
            (rival.name, setting): _result(world, _sets_by(rival, graph, setting))
            for rival, setting in tried
        },
    )


def _world(job: Job, path: Path) -> PlantedWorld:
    miss = (job.miss, job.miss)
    return WORLDS[job.world](path, seed=job.seed, n_tokens=job.n_tokens, miss=miss)


def _proposed(graph: circuits.FeatureGraph) -> list[tuple[int, ...]]:
    return [one.features for one in propose(graph.edges, graph.d_sae)]


def _sets_by(
    rival: Rival, graph: circuits.FeatureGraph, setting: Setting
) -> Callable[[], list[frozenset[int]]]:
    return lambda: rival.sets(graph.edges, setting)


def _result(world: PlantedWorld, find: Callable[[], Iterable[Iterable[int]]]) -> Result:
    start = time.process_time()
    sets = list(find())
    seconds = time.process_time() - start
    return Result(matches(world, sets), seconds)


def _text(lines: list[Line], n_seeds: int) -> str:
    n_worlds = n_seeds * len(MISSES)
    misses = ", ".join(f"{miss:.0%}" for miss in MISSES)
    said = (
        f"Mean best Jaccard over {n_worlds} worlds a table ({n_seeds} seeds at misses of {misses}), ± its "
        "standard deviation over worlds; false sets are pooled over worlds. Seconds are of processor time, "
        "the graph being there."
    )
    parts = [said]
    for world, n_tokens in product(WORLDS, SIZES):
        of = [one for one in lines if one.job[:2] == (world, n_tokens)]
        parts += [f"{world.capitalize()} worlds of {n_tokens:,} tokens:", _ways_table(of)]
    parts += [f"{FIND} by share of misses, with the agreement of states:", _ours_table(lines)]
    return "\n\n".join(parts)


def _ways_table(lines: list[Line]) -> str:
    head = ("found by", *KINDS, "false sets", "sets a world", "seconds")
    rows = []
    for name in (FIND, PROPOSE, *(rival.name for rival in RIVALS)):
        results = [one.results[name] for one in lines if name in one.results]
        if results:
            found = [one.matches for one in results]
            cells = [_spread([one.overlaps[kind] for one in found]) for kind in KINDS]
            n_sets = mean(one.n_sets for one in found)
            seconds = mean(one.seconds for one in results)
            rows.append(
                [name, *cells, f"{false_share(found):.0%}", f"{n_sets:.1f}", f"{seconds:.2f}"]
            )
    return markdown(head, rows, n_words=1)


def _ours_table(lines: list[Line]) -> str:
    several = KINDS[1:]
    head = ("worlds", "tokens", "misses", *KINDS, "false", *(f"Rand, {kind}" for kind in several))
    rows = []
    for world, n_tokens, miss in product(WORLDS, SIZES, MISSES):
        of = [one for one in lines if one.job[:3] == (world, n_tokens, miss)]
        found = [one.results[FIND].matches for one in of]
        rows.append(
            [
                world,
                f"{n_tokens:,}",
                f"{miss:.0%}",
                *(_spread([one.overlaps[kind] for one in found]) for kind in KINDS),
                f"{false_share(found):.0%}",
                *(f"{mean(v for one in of for v in one.agreement[kind]):.3f}" for kind in several),
            ]
        )
    return markdown(head, rows, n_words=1)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {pstdev(values):.3f}"


def _choice_table(choices: list[Choice]) -> str:
    rows = []
    for rival in [one for one in RIVALS if one.is_installed()]:
        kinds = MEANT_FOR.get(rival.name, KINDS)
        marks = {
            setting: mark([one.results[rival.name, setting].matches for one in choices], kinds)
            for setting in rival.settings()
        }
        best = max(marks, key=lambda setting: marks[setting])
        rows += [
            [rival.name, f"{setting.min_score:g}", f"{setting.value:g}", f"{value:.3f}",
             "best" if setting == best else ""]
            for setting, value in marks.items()
        ]  # fmt: skip
    return markdown(("found by", "least score", "value", "mark", ""), rows, n_words=1)


if __name__ == "__main__":
    main()
