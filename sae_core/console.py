"""What every command shares: errors as one line, exit codes, tables or JSON, progress.

1. `Group` turns what a command raises into one sentence on stderr and an exit code: 0 done, 1 our
   error, 2 wrong usage, 130 or 143 stopped by a signal. A closed pipe ends quietly.
2. `emit` prints rows; text of others passes through `visible`, so that a terminal never receives a
   raw control code.
3. Nothing here imports more than click.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_core.errors import FeatureCircuitError, StoreError
from sae_core.tokens import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

PATH = click.Path(path_type=Path)
STOP_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
RESUME = "Stopped. What was finished is kept; run the same command again to go on."
TRACEBACK_HINT = "run `circuits --traceback ...` with the same arguments to see where"
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",  # of the RuntimeError that torch raises then
    "failed to map segment",  # of the ImportError of a library that finds no room
)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}  # of a stream, which has no file name
N_LISTED = 8  # entries of a list that a table's cell shows; --json gives all


texts_argument = click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
most_states_option = click.option(
    "--states",
    "n_states",
    type=click.IntRange(1),
    help="Draw so many states at most, the most alike merged; 8 where it is not given.",
)


def output_option(words: str, *, default: str | None = None) -> Callable[[Any], Any]:
    """Give the option -o, the same everywhere; required where it has no default."""
    given: dict[str, Any] = {"required": True} if default is None else {"default": default}
    return click.option("-o", "--output", type=PATH, help=words, **given)


class Stopped(BaseException):
    """A signal asked the program to end."""


class _State:
    """What one call of the program must remember beside its arguments."""

    traceback = False
    stopped = 0


class Group(click.Group):
    """The program: commands by name, with suggestions, and every error said in one place."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        _keep_lines(self)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command; its example keeps its lines."""
        super().add_command(cmd, name)
        _keep_lines(cmd)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's own signature
        **extra: Any,
    ) -> Any:
        """Run, and leave with the exit code; see `click.Command.main`."""

        def run() -> Any:
            return super(Group, self).main(
                args, prog_name, complete_var, standalone_mode=False, **extra
            )

        if not standalone_mode:
            return run()
        _State.traceback, _State.stopped = False, 0
        sys.exit(_code_of(run))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C counts as a signal, not as an answer to a prompt."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; a misspelt one gets a suggestion."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as err:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else "see `circuits -h`"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx) from err


class NumbersCommand(click.Command):
    """A command whose arguments may be negative numbers, which are then refused by their range."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with words such as -1 kept as arguments."""
        numbers = [word for word in args if word[:1] == "-" and word[1:2].isdigit()]
        if numbers:
            args = [*(word for word in args if word not in numbers), "--", *numbers]
        return super().parse_args(ctx, args)


def set_traceback(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's order
    """Remember that the user wants to see where an error comes from."""
    _State.traceback = value


def prepare() -> None:
    """Make ready for a real terminal: signals end the program in order, odd characters do not."""
    for number in STOP_CODES:
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a ValueError about a value that the user gave into wrong usage, exit 2."""
    try:
        yield
    except ValueError as err:
        raise click.UsageError(str(err), click.get_current_context(silent=True)) from err


def say(message: str) -> None:
    """Say a sentence on stderr."""
    click.echo(_one_line(message), err=True)


def emit(
    rows: Sequence[Mapping[str, Any]],
    *,
    as_json: bool,
    columns: Sequence[str] = (),
    absent: str = "-",
) -> None:
    """Print rows as a table, or as one JSON document.

    Args:
        rows: of equal keys.
        as_json: print a list of objects, ASCII only.
        columns: of the table; those of the first row when empty.
        absent: what the table shows for null and for what is no number; JSON has null.
    """
    if as_json:
        click.echo(json.dumps(_finite(list(rows)), indent=1, default=str))
        return
    names = list(columns) or list(rows[0] if rows else ())
    cells = [[_cell(row.get(name), absent) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    numeric = [bool(rows) and all(_is_number(row.get(name)) for row in rows) for name in names]
    for line in (names, *cells):
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


@contextmanager
def progress_line(unit: str) -> Iterator[Callable[[float], None]]:
    """Give a function that shows a number on stderr in place, where that is a terminal."""
    shows = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(value: float) -> None:
        if shows:
            click.echo(f"\r{value:,.0f} {unit} ", err=True, nl=False)

    try:
        yield show
    finally:
        if shows:
            click.echo("\r" + " " * 30 + "\r", err=True, nl=False)


def write_output(path: Path, data: bytes, *, force: bool) -> None:
    """Write a file that the user named; see `write_outputs`."""
    write_outputs({path: data}, force=force)


def write_outputs(files: Mapping[Path, bytes], *, force: bool) -> None:
    """Write files that the user named; `-` is stdout. None is written where one may not be.

    Raises:
        StoreError: one is a folder, cannot be written, or exists with other bytes and not `force`.
    """
    wanted = [path for path, data in files.items() if _is_wanted(path, data, force=force)]
    for path in wanted:
        if str(path) == "-":
            sys.stdout.buffer.write(files[path])
            sys.stdout.buffer.flush()
        else:
            from sae_core.files import write_bytes  # noqa: PLC0415 - brings in polars

            write_bytes(path, files[path])


def _is_wanted(path: Path, data: bytes, *, force: bool) -> bool:
    """Say whether a file is to be written; False where it is there with these bytes."""
    if str(path) == "-":
        return True
    if path.is_dir():
        raise StoreError(f"{path} is a folder; give the name of a file with -o")
    from sae_core.files import reading  # noqa: PLC0415 - brings in polars

    if not path.exists() or force:
        return True
    with reading(path):
        same = path.read_bytes() == data
    if not same:
        raise StoreError(f"{path} exists and is another; choose another -o, or give --force")
    return False


def _keep_lines(command: click.Command) -> None:
    r"""Turn the \b of a raw docstring into the character that click looks for."""
    if command.help:
        command.help = command.help.replace("\\b\n", "\b\n")


def _code_of(run: Callable[[], Any]) -> int:
    """Run, say what went wrong, and give the exit code."""
    try:
        result = run()
    except SystemExit:  # click leaves so, and only so, when the reader of stdout is gone
        return 0
    except click.ClickException as err:
        _say_usage(err)
        return err.exit_code
    except BaseException as err:  # noqa: BLE001 - the one place: a sentence, never a bare traceback
        return _said(err)
    return result if isinstance(result, int) else 0


def _said(err: BaseException) -> int:
    """Say in one sentence why the program ends, and give the exit code."""
    if _State.traceback:
        click.echo("".join(map(_lines_kept, traceback.format_exception(err))), err=True)
    is_stop = isinstance(err, Stopped | KeyboardInterrupt | click.Abort)
    if is_stop or _State.stopped:
        say(RESUME)
        return _State.stopped or STOP_CODES[signal.SIGINT]
    say(f"Error: {_sentence(err)}")
    return 1


def _sentence(err: BaseException) -> str:
    if isinstance(err, FeatureCircuitError):
        return str(err)
    if isinstance(err, MemoryError) or any(words in str(err) for words in OUT_OF_MEMORY):
        return "memory ran out; give less text, or free some; what was finished is kept"
    if isinstance(err, OSError) and err.filename:
        return f"{err.filename}: {err.strerror}; check the path and its permissions"
    if isinstance(err, OSError) and err.errno in FULL:
        return f"the output: {err.strerror}; make room, or send it elsewhere"
    why = str(err).strip() or "no reason given"
    return f"{type(err).__name__}: {why}; {TRACEBACK_HINT}"


def _say_usage(err: click.ClickException) -> None:
    if isinstance(err, click.exceptions.NoArgsIsHelpError):
        err.show()
        return
    if isinstance(err, click.UsageError) and err.ctx is not None:
        click.echo(err.ctx.get_usage(), err=True)
        click.echo(f"Try '{err.ctx.command_path} -h' for help.", err=True)
    say(f"Error: {err.format_message()}")


def _stop(number: int, _frame: FrameType | None) -> None:
    _State.stopped = STOP_CODES[signal.Signals(number)]
    raise Stopped


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()) if "\n" in text else text)


def _lines_kept(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for, NaN and infinity, by null."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any, absent: str = "-") -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        more = f"  +{len(value) - N_LISTED}" if len(value) > N_LISTED else ""
        return "  ".join(map(_cell, value[:N_LISTED])) + more
    return visible(str(value))
