"""Faults R8, R9 and R11: two writers, runs that cannot be written, files unsynced at a rename."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import harsh
import planted
import pytest
import shell
import tiny

from sae_core.files import DirectoryLock

READING = (
    ["show", "RUN", "0"],
    ["query", "RUN", "select * from edges", "--limit", "3"],
    ["verify", "RUN"],
    ["page", "RUN", "-o", "-"],
)
WRITING = (["graph", "RUN"], ["automata", "RUN"])
CALLS = "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat"
CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$")
RACE = """
import sys, time
from pathlib import Path
from sae_core.errors import StoreError
from sae_core.files import DirectoryLock

folder, begin = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < begin:
    pass
try:
    with DirectoryLock(folder):
        print("held", flush=True)
        sys.stdin.read()
except StoreError as err:
    print(err, flush=True)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "model")
    shell.write_sae(folder / "sae")
    shell.write_text(folder / "short.html", 30)
    shell.write_text(folder / "long.html", 4000)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with graph and automata."""
    path = tmp_path_factory.mktemp("world") / "run"
    planted.planted_world(path, n_tokens=10_000)
    for command in ("graph", "automata"):
        assert shell.invoke(command, path).exit_code == 0
    return path


def words(parts: Path, text: str, out: Path) -> list[object]:
    model = ["--model", parts / "model", "--sae", parts / "sae"]
    return ["gather", parts / text, "-o", out, *model]


# The row R8, two writers


def test_r8_a_second_writer_is_refused_and_a_killed_ones_lock_taken_over(
    parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = shell.start(*words(parts, "long.html", out))
    until = time.monotonic() + 60
    while not (out / "manifest.json").exists() and time.monotonic() < until:
        time.sleep(0.002)
    who = f"is being written by process {first.pid} on {socket.gethostname()}"
    shell.refused(shell.invoke(*words(parts, "long.html", out)), who, "wait for it, or delete")
    shell.refused(shell.invoke(*words(parts, "short.html", out), "--force"), who)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert json.loads((out / ".lock").read_text())["pid"] == first.pid
    assert shell.invoke(*words(parts, "short.html", out), "--force").exit_code == 0
    assert not (out / ".lock").exists()


@pytest.mark.parametrize("command", ["graph", "automata"])
def test_r8_graph_and_automata_are_written_by_one_process_at_a_time(
    world: Path, tmp_path: Path, command: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(world, run)
    holder = {"pid": os.getppid(), "host": socket.gethostname()}
    (run / ".lock").write_text(json.dumps(holder))
    shell.refused(shell.invoke(command, run), f"is being written by process {os.getppid()}")
    assert shell.invoke("show", run, "0").exit_code == 0
    (run / ".lock").unlink()
    assert shell.invoke(command, run).exit_code == 0
    assert shell.digests(run) == shell.digests(world)


@pytest.mark.parametrize("left", [None, '{"pid": 99999999, "host": "%s"}'])
def test_r8_of_many_that_come_at_one_moment_one_writes(tmp_path: Path, left: str | None) -> None:
    if left is not None:
        (tmp_path / ".lock").write_text(left.replace("%s", socket.gethostname()))
    begin = str(time.time() + 1)
    command = [sys.executable, "-c", RACE, str(tmp_path), begin]
    rivals = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=shell.environment(),
        )
        for _ in range(3)
    ]  # fmt: skip
    said = [rival.stdout.readline() for rival in rivals if rival.stdout]
    for rival in rivals:
        rival.communicate("")
    assert sorted(line == "held\n" for line in said) == [False, False, True]
    assert all("is being written by process" in line for line in said if line != "held\n")
    with DirectoryLock(tmp_path):
        pass


def test_r8_a_replacement_that_is_killed_leaves_nothing_of_the_old_run(
    parts: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "run", tmp_path / "new"
    less = [*words(parts, "short.html", old), "--max-tokens", 60]
    assert shell.invoke(*words(parts, "short.html", old)).exit_code == 0
    assert shell.invoke("graph", old).exit_code == 0
    process = shell.start(*less, "--force")
    until = time.monotonic() + 60
    while (old / "graph").exists() and process.poll() is None and time.monotonic() < until:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for run in (old, new):
        command = [*words(parts, "short.html", run), "--max-tokens", 60]
        assert shell.invoke(*command).exit_code == 0
    assert shell.digests(old) == shell.digests(new)


# The row R9, what cannot be written


def test_r9_a_run_that_cannot_be_written_is_read_and_writing_says_so(
    parts: Path, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world, tmp_path / "run")
    with harsh.read_only(tmp_path / "run", tmp_path / "mounted") as run:
        for command in READING:
            result = shell.invoke(*(str(run) if word == "RUN" else word for word in command))
            assert result.exit_code == 0, result.stderr
        for command in WRITING:
            result = shell.invoke(*(str(run) if word == "RUN" else word for word in command))
            shell.refused(
                result, str(run), "cannot be written", "choose a folder that can be written"
            )
        shell.refused(shell.invoke(*words(parts, "short.html", run / "new")), "cannot be written")
        shell.refused(
            shell.invoke(*words(parts, "short.html", run), "--force"), "cannot be written"
        )
    assert shell.digests(tmp_path / "run") == shell.digests(world)


def test_r9_a_run_on_another_file_system_is_written_there(parts: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    assert shell.invoke(*words(parts, "short.html", plain)).exit_code == 0
    with harsh.small_disk(tmp_path / "disk") as disk:
        assert disk.stat().st_dev != tmp_path.stat().st_dev
        (tmp_path / "link").symlink_to(disk / "run", target_is_directory=True)
        (disk / "run").mkdir()
        for run in (disk / "other", tmp_path / "link"):
            assert shell.invoke(*words(parts, "short.html", run)).exit_code == 0
            assert shell.digests(run) == shell.digests(plain)
            assert shell.invoke("graph", run).exit_code == 0


# The row R11, power loss


class Event(NamedTuple):
    """A call that ended."""

    name: str
    paths: tuple[str, ...]


def events_of(log: Path) -> list[Event]:
    """Read the calls of all threads in the order of their ends, with the files they are about."""
    pending: dict[str, str] = {}
    events = []
    for line in log.read_text(errors="replace").splitlines():
        found = CALL.match(line)
        if found is None:
            continue
        thread, name, rest = found.groups()
        if rest.endswith("<unfinished ...>"):
            pending[thread] = rest
            continue
        whole = pending.pop(thread, "") + rest
        if " = -1 " in whole:
            continue
        kinds = r"^\d+<([^>]*)>" if name.startswith(("write", "pwrite", "f")) else r'"([^"]*)"'
        events.append(Event(name, tuple(re.findall(kinds, whole))))
    return events


def unsafe(events: list[Event], folder: str) -> list[str]:
    """List the renames below a folder whose data, or whose name, were not on disk in time."""
    faults, n_renames = [], 0
    for at, event in enumerate(events):
        if not event.name.startswith("rename") or not event.paths[-1].startswith(folder):
            continue
        n_renames += 1
        source, target = event.paths
        before = [one.name for one in events[:at] if one.paths == (source,)]
        if not before or before[-1] != "fsync":
            faults.append(f"{target}: data not synced before the rename: {before[-3:]}")
        if ("fsync", (str(Path(target).parent),)) not in events[at + 1 :]:
            faults.append(f"{target}: folder not synced after the rename")
        if Path(source).parent != Path(target).parent:
            faults.append(f"{target}: renamed from another folder")
    for at, event in enumerate(events):
        if event.name.startswith("mkdir") and event.paths[-1].startswith(folder):
            parent = str(Path(event.paths[-1]).parent)
            if ("fsync", (parent,)) not in events[at + 1 :]:
                faults.append(f"{event.paths[-1]}: its name is not synced")
    assert n_renames > 5
    return faults


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")
@pytest.mark.parametrize("what", ["gather", "graph"])
def test_r11_the_kernel_is_asked_to_sync_before_each_rename(
    parts: Path, tmp_path: Path, what: str
) -> None:
    run, log = tmp_path / "new" / "run", tmp_path / "calls"
    if what == "graph":
        planted.planted_world(run, n_tokens=2000)
    command = words(parts, "short.html", run) if what == "gather" else ["graph", run]
    trace = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-s",
        "300",
        "-e",
        f"trace={CALLS}",
        "-o",
        str(log),
    ]
    done = subprocess.run(
        [*trace, *shell.PROGRAM, *(str(word) for word in command)],
        env=shell.environment(), capture_output=True, check=False,
    )  # fmt: skip
    if b"ptrace" in done.stderr:
        pytest.skip("processes cannot be traced here")
    assert done.returncode == 0, done.stderr
    assert unsafe(events_of(log), str(tmp_path)) == []


WRAPPED = """
import json, os, sys
calls = []

def noted(name, call, paths):
    def wrapper(*given, **more):
        found = call(*given, **more)
        calls.append((name, paths(*given)))
        return found
    return wrapper

where = lambda handle: [os.readlink(f"/proc/self/fd/{handle}")]
os.fsync = noted("fsync", os.fsync, where)
for name in ("rename", "replace"):
    setattr(os, name, noted("rename", getattr(os, name), lambda a, b: [str(a), str(b)]))
os.mkdir = noted("mkdir", os.mkdir, lambda path, *_: [str(path)])
import cli
try:
    cli.cli.main(sys.argv[2:], prog_name="circuits")
finally:
    with open(sys.argv[1], "w") as log:
        json.dump(calls, log)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the names of open files")
def test_r11_every_rename_follows_a_sync_also_where_nothing_can_be_traced(
    parts: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "new" / "run", tmp_path / "calls"
    command = [str(word) for word in words(parts, "short.html", run)]
    subprocess.run(
        [sys.executable, "-c", WRAPPED, str(log), *command],
        env=shell.environment(), capture_output=True, check=True,
    )  # fmt: skip
    events = [Event(name, tuple(paths)) for name, paths in json.loads(log.read_text())]
    assert unsafe(events, str(tmp_path)) == []
