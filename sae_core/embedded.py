"""What the package ships, by name: models `A` and `B`, dictionaries `A/0`, `A/1`, `B/0`, ... of them.

1. Model A lies in `demo/model`, any other in `demo/model-NAME`; one that is not there is not known.
2. A model without a tokenizer of its own shares that of A.
3. A dictionary's name starts with its model's; it lies in `demo/sae/A-0`.
"""

from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).parent / "demo"
DEFAULT = "A"
DEFAULT_ALIAS = "embedded"  # how runs name A
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"


def embedded_models() -> list[str]:
    """List the names of the models that the package ships, `A` first."""
    names = {path.parent.name for path in DEMO.glob(f"model-*/{CONFIG_FILE}")}
    return [DEFAULT, *sorted(name.removeprefix("model-") for name in names)]


def embedded_model(name: str | None) -> str | None:
    """Give the name of the embedded model that is meant; None when it is no embedded one.

    Args:
        name: as the user gave it; None and `embedded` mean the default.

    Example:
        >>> embedded_model("embedded"), embedded_model("pages/model")
        ('A', None)
    """
    if name is None or name == DEFAULT_ALIAS:
        return DEFAULT
    return name if name in embedded_models() else None


def model_folder(name: str) -> Path:
    """Give the folder of an embedded model, there or not."""
    return DEMO / ("model" if name == DEFAULT else f"model-{name}")


def tokenizer_path(name: str) -> Path:
    """Give the tokenizer of an embedded model: its own, or that of the default."""
    own = model_folder(name) / TOKENIZER_FILE
    return own if own.is_file() else model_folder(DEFAULT) / TOKENIZER_FILE


def sae_folder(name: str) -> Path:
    """Give the folder of an embedded dictionary, there or not.

    Example:
        >>> sae_folder("A/1").name
        'A-1'
    """
    return DEMO / "sae" / name.replace("/", "-", 1)


def sae_names(config_file: str) -> list[str]:
    """List the names of the dictionaries that the package ships.

    Args:
        config_file: name of the file that a folder must hold to be a dictionary.
    """
    folders = (path.parent.name for path in (DEMO / "sae").glob(f"*/{config_file}"))
    return sorted(name.replace("-", "/", 1) for name in folders)


def model_of_sae(name: str) -> str | None:
    """Give the embedded model that an embedded dictionary belongs to; None for any other name.

    Example:
        >>> model_of_sae("A/1"), model_of_sae("cache/sae")
        ('A', None)
    """
    model, slash, _ = name.partition("/")
    return model if slash and model in embedded_models() else None
