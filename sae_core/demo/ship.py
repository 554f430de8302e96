"""Put a trained model or dictionary into the package, as float16.

    python -m sae_core.demo.ship model FOLDER      -> sae_core/demo/model
    python -m sae_core.demo.ship sae FOLDER A/0    -> sae_core/demo/sae/A-0

Ship the model first and train the dictionary on what was shipped: it then reads the rounded weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sae_core.language_model import EMBEDDED, load_model
from sae_core.sae import EMBEDDED as EMBEDDED_SAES
from sae_core.sae import load_sae, save_sae
from sae_core.transformer import TOKENIZER_FILE, load_transformer, save_model


def ship_model(folder: Path) -> Path:
    """Write the weights of a model folder, rounded to float16, where the embedded model is read."""
    model = load_transformer(folder)
    save_model(model, EMBEDDED, tokenizer=folder / TOKENIZER_FILE, dtype=torch.float16)
    return EMBEDDED


def ship_sae(folder: Path, name: str) -> Path:
    """Write a dictionary, rounded to float16, where the embedded one of that name is read."""
    target = EMBEDDED_SAES / name.replace("/", "-")
    save_sae(load_sae(str(folder), model=load_model()), target, dtype=torch.float16)
    return target


def main(arguments: list[str]) -> None:
    """Run as a program."""
    match arguments:
        case ["model", folder]:
            target = ship_model(Path(folder))
        case ["sae", folder, name]:
            target = ship_sae(Path(folder), name)
        case _:
            sys.exit(f"usage:\n{__doc__}")
    sys.stderr.write(f"wrote {target}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
