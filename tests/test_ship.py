"""What is put into the package is read back under its name, with the settings of its training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import shell
import tiny

from circuits import steps
from circuits.run import open_run
from sae_core import embedded
from sae_core.demo import ship
from sae_core.errors import ModelError, SaeError
from sae_core.evaluate import evaluate_texts
from sae_core.language_model import load_model
from sae_core.sae import embedded_saes, load_sae
from sae_core.train_sae import train_sae_on_model
from sae_core.train_settings import TrainSaeConfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships nothing yet, beside folders of two models."""
    for name, seed in (("A", 0), ("B", 1)):
        tiny.write_model(tmp_path / name, seed=seed)
    monkeypatch.setattr(embedded, "DEMO", tmp_path / "demo")
    return tmp_path


def trained(package: Path, model: str) -> Path:
    """Train a small dictionary on a shipped model."""
    train = tiny.write_tokens(package / "train.bin")
    config = TrainSaeConfig(24, 12, 3, 640, batch_size=32, block_windows=8, warm_up_steps=2)
    out = package / f"sae-{model}"
    folder = embedded.model_folder(model)
    train_sae_on_model(folder, train, out, config, progress=lambda _line: None)
    return out


def test_the_second_model_is_shipped_under_its_name_with_the_first_ones_tokenizer(
    package: Path,
) -> None:
    assert ship.ship_model(package / "A") == package / "demo" / "model"
    target = ship.ship_model(package / "B", "B")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert embedded.embedded_models() == ["A", "B"]
    assert load_model("B").vocabulary == load_model().vocabulary
    assert load_model("B").weights_hash != load_model().weights_hash


def test_a_second_model_of_another_vocabulary_brings_its_tokenizer(package: Path) -> None:
    ship.ship_model(package / "A")
    tiny.write_model(package / "C", d_vocab=290)
    tiny.write_tokenizer(package / "C" / "tokenizer.json", d_vocab=290)
    ship.ship_model(package / "C", "B")
    assert load_model("B").d_vocab == 290
    ship.ship_model(package / "B", "B")
    assert load_model("B").d_vocab == 300


def test_a_dictionary_is_shipped_with_all_settings_of_its_training(package: Path) -> None:
    ship.ship_model(package / "A")
    ship.ship_model(package / "B", "B")
    target = ship.ship_sae(trained(package, "B"), "B/0-wide")
    assert target == package / "demo" / "sae" / "B-0-wide"
    assert embedded_saes() == ["B/0-wide"]
    assert load_sae("B/0-wide").config.model_hash == load_model("B").weights_hash
    kept = json.loads((target / "training.json").read_text())
    assert {name: kept[name] for name in ("variant", "k", "d_sae", "lr", "seed")} == {
        "variant": "topk", "k": 3, "d_sae": 12, "lr": 1e-3, "seed": 0,
    }  # fmt: skip
    assert (
        len(bytes.fromhex(kept["model_sha256"])) == len(bytes.fromhex(kept["train_sha256"])) == 32
    )


def test_settings_of_the_dictionary_before_do_not_stay(package: Path) -> None:
    ship.ship_model(package / "A")
    sae = trained(package, "A")
    ship.ship_sae(sae, "A/0")
    (sae / "training.json").unlink()
    assert not (ship.ship_sae(sae, "A/0") / "training.json").exists()


def test_a_dictionary_of_another_model_than_its_name_says_is_not_shipped(package: Path) -> None:
    ship.ship_model(package / "A")
    ship.ship_model(package / "B", "B")
    sae = trained(package, "B")
    with pytest.raises(SaeError, match="was trained on another model than embedded"):
        ship.ship_sae(sae, "A/0")
    with pytest.raises(SaeError, match=r"by its model \(A, B\) and .* got 'C/0'; ship its model"):
        ship.ship_sae(sae, "C/0")
    with pytest.raises(SaeError, match="is named like A/0"):
        ship.ship_sae(sae, "A")
    assert embedded_saes() == []


@pytest.mark.parametrize("name", ["", "model", "b", "AB", "../B"])
def test_a_model_is_named_by_one_capital_letter(package: Path, name: str) -> None:
    with pytest.raises(ModelError, match="one capital letter, got"):
        ship.ship_model(package / "B", name)


def test_the_program_says_what_is_wrong_in_one_line(package: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Error: .*config\.json"):
        ship.main(["model", str(package / "none"), "B"])
    with pytest.raises(SystemExit, match="usage:"):
        ship.main(["model"])
    ship.main(["model", str(package / "A"), "A"])
    assert embedded.model_folder("A").is_dir()


def test_text_is_read_with_the_second_model_and_its_dictionary_by_name(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship.ship_model(package / "A")
    ship.ship_model(package / "B", "B")
    ship.ship_sae(trained(package, "B"), "B/0")
    text = shell.write_text(package / "text.html", 20)
    (found,) = evaluate_texts([text], saes=["B/0"], model="B")
    assert (found.sae, found.n_features) == ("B/0", 12)
    monkeypatch.chdir(package / "demo")  # where no folder is called B
    result = shell.invoke(
        "gather", text, "-o", package / "run", "--model", "B", "--sae", "B/0", "--held-out", 0
    )
    assert result.exit_code == 0, result.stderr
    refused = shell.invoke("gather", text, "-o", package / "other", "--sae", "B/0")
    assert refused.exit_code == 1
    assert refused.stderr.rstrip().endswith("; give --model B")
    tokenizer = steps._tokenizer_of(open_run(package / "run"))
    assert tokenizer is not None
    assert tokenizer.path == package / "demo" / "model" / "tokenizer.json"
