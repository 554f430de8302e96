"""Put a trained model or dictionary into the package, as float16.

    python -m sae_core.demo.ship model FOLDER        -> sae_core/demo/model
    python -m sae_core.demo.ship model FOLDER B      -> sae_core/demo/model-B
    python -m sae_core.demo.ship sae FOLDER A/0      -> sae_core/demo/sae/A-0

Ship the model first and train the dictionary on what was shipped: it then reads the rounded
weights. The settings of its training go with it. Model B comes without a tokenizer where it has
that of A.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from sae_core import embedded
from sae_core.errors import FeatureCircuitError, ModelError, SaeError
from sae_core.files import sha256_of, write_bytes
from sae_core.language_model import check_fits, load_model
from sae_core.sae import TRAINING_FILE, load_sae, save_sae
from sae_core.transformer import TOKENIZER_FILE, load_transformer, save_model

MODEL_NAME = re.compile(r"[A-Z]")
SAE_NAME = re.compile(r"([A-Z])/[0-9a-z][0-9a-z-]*")


def ship_model(folder: Path, name: str = embedded.DEFAULT) -> Path:
    """Write the weights of a model folder, rounded to float16, where the embedded model is read.

    Args:
        folder: as written by `train_model`.
        name: of the embedded model, one capital letter.

    Returns:
        Where it was written.

    Raises:
        ModelError: the name is no such letter, or the folder is not usable.
    """
    if not MODEL_NAME.fullmatch(name):
        raise ModelError(
            f"an embedded model is named by one capital letter, got {name!r}; give A, B, ..."
        )
    model, target = load_transformer(folder), embedded.model_folder(name)
    tokenizer, first = folder / TOKENIZER_FILE, embedded.tokenizer_path(embedded.DEFAULT)
    is_other = name != embedded.DEFAULT and first.is_file()
    if is_other and sha256_of(tokenizer) == sha256_of(first):
        save_model(model, target, dtype=torch.float16)
        (target / TOKENIZER_FILE).unlink(missing_ok=True)
    else:
        save_model(model, target, tokenizer=tokenizer, dtype=torch.float16)
    return target


def ship_sae(folder: Path, name: str) -> Path:
    """Write a dictionary, rounded to float16, where the embedded one of that name is read.

    Args:
        folder: as written by `train_sae_on_model`.
        name: of the embedded dictionary; it starts with the name of its model.

    Returns:
        Where it was written, with training.json if the folder has one.

    Raises:
        SaeError: the name is not like `A/0`, the model is not embedded, or the dictionary was
            trained on another one.
    """
    parts, known = SAE_NAME.fullmatch(name), embedded.embedded_models()
    if parts is None or parts[1] not in known:
        raise SaeError(
            f"an embedded dictionary is named like A/0, by its model ({', '.join(known)}) and a "
            f"name of digits and small letters, got {name!r}; ship its model first"
        )
    model = load_model(parts[1])
    sae, target = load_sae(folder), embedded.sae_folder(name)
    check_fits(model, sae)
    training = target / TRAINING_FILE
    training.unlink(missing_ok=True)  # of what was there before
    save_sae(sae, target, dtype=torch.float16)
    if (folder / TRAINING_FILE).is_file():
        write_bytes(training, (folder / TRAINING_FILE).read_bytes())
    return target


def main(arguments: list[str]) -> None:
    """Run as a program."""
    try:
        match arguments:
            case ["model", folder]:
                target = ship_model(Path(folder))
            case ["model", folder, name]:
                target = ship_model(Path(folder), name)
            case ["sae", folder, name]:
                target = ship_sae(Path(folder), name)
            case _:
                sys.exit(f"usage:\n{__doc__}")
    except (FeatureCircuitError, OSError) as err:
        sys.exit(f"Error: {err}")
    sys.stderr.write(f"wrote {target}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
