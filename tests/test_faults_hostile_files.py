"""Faults S5 and S9: dictionaries that are pickles, and settings files that are traps."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shell
import tiny
import torch

from sae_core.bounded import MAX_JSON_BYTES, read_json
from sae_core.checkpoints import read_sae, write_sae
from sae_core.errors import SaeError
from sae_core.sae import SaeConfig, SparseAutoencoder, load_sae, save_sae

if TYPE_CHECKING:
    from collections.abc import Callable

GIGABYTE = 1 << 30
DEEP = 10**6


def made() -> SparseAutoencoder:
    sae = SparseAutoencoder(SaeConfig(24, 32, "topk", 3))
    generator = torch.Generator().manual_seed(0)
    for weight in sae.requires_grad_(requires_grad=False).parameters():
        weight.normal_(generator=generator)
    return sae


def said(read: Callable[[], object]) -> str:
    with pytest.raises(SaeError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# S5: pickled weights


class Malicious:
    """Creates a file when it is read by the common reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def as_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps({"encoder.weight": Malicious(canary)}))


def as_torch(path: Path, canary: Path) -> None:
    torch.save({"encoder.weight": Malicious(canary)}, path)


def as_old_torch(path: Path, canary: Path) -> None:
    torch.save({"a": Malicious(canary)}, path, _use_new_zipfile_serialization=False)


WRITERS = [as_pickle, as_torch, as_old_torch]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["ae.pt", "sae.pth", "weights.PKL", "pytorch_model.bin"])
def test_s5_a_pickle_is_refused_by_name_and_does_nothing(
    tmp_path: Path, write: Callable[[Path, Path], None], name: str
) -> None:
    folder, canary = tmp_path / "sae", tmp_path / "canary"
    folder.mkdir()
    write(folder / name, canary)
    for given in (folder, folder / name):
        sentence = said(lambda given=given: load_sae(given))  # type: ignore[misc]
        assert sentence.startswith(f"{folder / name} is a pickle, which can run programs when read")
        assert "formats read are SAELens, sparsify and circuit-tracer (safetensors)" in sentence
    said(lambda: read_sae(folder))
    said(lambda: read_sae(folder, unsafe_import=True))
    assert not canary.exists()


@pytest.mark.parametrize("write", WRITERS)
def test_s5_the_same_pickle_is_malicious_where_it_is_read_without_care(
    tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    write(tmp_path / "ae.pt", tmp_path / "canary")
    if write is as_pickle:
        pickle.loads((tmp_path / "ae.pt").read_bytes())
    else:
        torch.load(tmp_path / "ae.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_s5_a_pickle_under_the_name_of_weights_does_nothing(
    tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    save_sae(made(), tmp_path)
    write(tmp_path / "sae_weights.safetensors", tmp_path / "canary")
    assert "is not a readable safetensors file" in said(lambda: load_sae(tmp_path))
    assert not (tmp_path / "canary").exists()


def test_s5_an_array_of_objects_does_nothing(tmp_path: Path) -> None:
    trap = np.array([Malicious(tmp_path / "canary")], dtype=object)
    np.savez(tmp_path / "params.npz", W_enc=trap)
    assert "is not a readable npz of arrays" in said(lambda: read_sae(tmp_path))
    assert not (tmp_path / "canary").exists()


def test_s5_commands_refuse_a_pickle_in_one_sentence(tmp_path: Path) -> None:
    folder, canary = tmp_path / "sae", tmp_path / "canary"
    folder.mkdir()
    as_torch(folder / "ae.pt", canary)
    tiny.write_model(tmp_path / "model")
    text = shell.write_text(tmp_path / "a.html", 3)
    given = ("--model", tmp_path / "model", "--sae", folder)
    for words in (("gather", text, "-o", tmp_path / "run"), ("evaluate", text)):
        result = shell.invoke(*words, *given)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith(f"Error: {folder / 'ae.pt'} is a pickle, which can run")
        assert result.stderr.count("\n") == 1
    assert not canary.exists()
    assert not (tmp_path / "run").exists()


def test_s5_tensors_alone_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    write_sae(made(), tmp_path, to="dictionary-learning")
    assert "add --unsafe-import to read its tensors only" in said(lambda: read_sae(tmp_path))
    assert torch.equal(read_sae(tmp_path, unsafe_import=True).W_enc, made().W_enc)


def test_s5_a_pickle_beside_known_weights_is_left_alone(tmp_path: Path) -> None:
    save_sae(made(), tmp_path)
    as_pickle(tmp_path / "trainer_state.pt", tmp_path / "canary")
    assert torch.equal(load_sae(tmp_path).W_enc, made().W_enc)
    assert not (tmp_path / "canary").exists()


# S9: settings files that are traps


def sparse(path: Path) -> None:
    """Write a file of a gigabyte that takes no room."""
    with path.open("wb") as file:
        file.write(b'{"architecture": "topk", "note": "')
        file.truncate(GIGABYTE)


def nested(text: str) -> Callable[[Path], None]:
    return lambda path: Path(path).write_text(text) and None


CLOSED = '"' + "]" * 400_000 + '"'  # brackets in a string close nothing
TRAPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a gigabyte": (sparse, f"is larger than {MAX_JSON_BYTES:,} bytes"),
    "lists": (nested("[" * DEEP), "is nested over 64 deep"),
    "closed lists": (nested("[" * (DEEP // 2) + "]" * (DEEP // 2)), "is nested over 64 deep"),
    "objects": (nested('{"a":' * (DEEP // 5)), "is nested over 64 deep"),
    "objects, a million": (nested('{"a":' * DEEP), f"is larger than {MAX_JSON_BYTES:,} bytes"),
    "hidden": (nested(f'{{"a": {CLOSED}, "b": {"[" * 400_000}'), "is nested over 64 deep"),
    "quotes": (nested('{"' + '\\"' * 500_000), "is not a readable JSON file"),
    "a key twice": (nested('{"k": 1, "d_in": 24, "k": 2}'), "the key 'k' is there twice"),
    "a key twice within": (nested('{"a": [{"b": 1, "b": 1}]}'), "the key 'b' is there twice"),
    "a long number": (nested('{"k": ' + "9" * 900_000 + "}"), "is not a readable JSON file"),
    "bytes": (lambda path: Path(path).write_bytes(b"\xff\xfe{}") and None, "is not UTF-8 text"),
    "a list": (nested("[]"), "holds a JSON list; an object {...} was expected"),
    "nothing": (nested(""), "is not a readable JSON file"),
    "a pipe": (os.mkfifo, "is no regular file"),
    "a folder": (Path.mkdir, "is no regular file"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_s9_a_trap_is_named_before_much_of_it_is_read(tmp_path: Path, trap: str) -> None:
    write, words = TRAPS[trap]
    write(tmp_path / "cfg.json")
    tracemalloc.start()
    sentence = said(lambda: read_json(tmp_path / "cfg.json", SaeError))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sentence.startswith(f"{tmp_path / 'cfg.json'} "), sentence
    assert words in sentence
    assert len(sentence) < 1000
    assert peak < 32 * MAX_JSON_BYTES


@pytest.mark.parametrize("trap", ["a gigabyte", "hidden", "a key twice"])
@pytest.mark.parametrize(
    ("to", "name"), [("saelens", "cfg.json"), ("sparsify", "cfg.json"), (None, "config.json")]
)
def test_s9_every_format_reads_its_settings_so(
    tmp_path: Path, trap: str, to: str | None, name: str
) -> None:
    write, words = TRAPS[trap]
    write_sae(made(), tmp_path, to=to or "dictionary-learning")
    (tmp_path / name).unlink()
    write(tmp_path / name)
    sentence = said(lambda: read_sae(tmp_path, unsafe_import=True))
    assert sentence.startswith(f"{tmp_path / name} ")
    assert words in sentence


def test_s9_brackets_in_strings_are_no_nesting(tmp_path: Path) -> None:
    text = "[{" * 200 + '\\"[' * 100
    (tmp_path / "cfg.json").write_text('{"note": "' + text + '", "b": [[1]]}')
    fields = read_json(tmp_path / "cfg.json", SaeError)
    assert fields == {"note": text.replace('\\"', '"'), "b": [[1]]}
    assert json.loads((tmp_path / "cfg.json").read_text()) == fields


def test_s9_a_pipe_in_place_of_weights_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    save_sae(made(), tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    assert said(lambda: load_sae(tmp_path)).startswith(f"{weights} is not a file, ")
