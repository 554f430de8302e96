"""The command as a user runs it: in this process, or where it matters in one of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny
import torch
from click.testing import CliRunner

import cli
from sae_core.sae import SaeConfig, SparseAutoencoder, save_sae

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(cli.__file__).parent
PROGRAM = (sys.executable, "-c", "import cli; cli.main()")
D_SAE = 32


def invoke(*args: object, stdin: bytes | None = None) -> Result:
    """Run the command here."""
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args], input=stdin)


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | changes


def start(*args: object, **more: Any) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    command = [*PROGRAM, *(str(arg) for arg in args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(command, env=environment(), **pipes)


def run(
    *args: object, env: dict[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, to its end."""
    command = [*PROGRAM, *(str(arg) for arg in args)]
    whole = environment(**(env or {}))
    return subprocess.run(command, env=whole, capture_output=True, check=False, **more)


def write_sae(folder: Path, *, d_in: int = 24, seed: int = 0) -> Path:
    """Write a dictionary of random features for the tiny model."""
    sae = SparseAutoencoder(SaeConfig(d_in, D_SAE, "topk", 3, hook_point="blocks.0.mlp.hook_post"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    save_sae(sae, folder)
    return folder


def write_parts(folder: Path) -> Path:
    """Write what a run is gathered from: model/, sae/ and six texts/."""
    tiny.write_model(folder / "model")
    write_sae(folder / "sae")
    for at in range(6):
        write_text(folder / "texts" / f"{at}.html", 40, seed=1000 * at)
    return folder


def write_text(path: Path, n_lines: int, *, seed: int = 0) -> Path:
    """Write lines that are all different, of the words that the tiny tokenizer knows."""
    words = tiny.WORDS.split()
    lines = [
        f"<a href='{n + seed}'>{words[n % 9]} {words[n // 9 % 9]}</a>\n" for n in range(n_lines)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def digests(folder: Path) -> dict[str, str]:
    """Give the hash of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


TRUTH_COLUMNS = {
    *("what", "accuracy", "low", "high", "macro_f1", "macro_f1_low", "macro_f1_high"),
    *("difference", "difference_low", "difference_high", "n_tokens"),
}
TRACE_COLUMNS = {
    "source", "doc_id", "pos", "token_str", "byte_end", "state", "features", "probability",
    "promoted",
}  # fmt: skip


def refused(result: Result, *words: str) -> None:
    """Expect our error, in one line that holds the words, and no hint at a slip of ours."""
    assert result.exit_code == 1, result.stdout + result.stderr
    (line,) = (one for one in result.stderr.splitlines() if one.startswith("Error: "))
    for word in words:
        assert word in line
    assert "Traceback" not in result.stderr
    assert "--traceback" not in line


def rows_of(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert isinstance(rows, list)
    return rows
