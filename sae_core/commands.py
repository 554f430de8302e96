"""The commands left of the run: text in, runs, models and dictionaries out.

Options become settings, one function is called, and what was done is said with the next command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sae_core import console
from sae_core.console import PATH, force_option, json_option, output_option, texts_argument
from sae_core.train_settings import NEEDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import polars as pl

    from sae_core.gather import GatherResult

REPAIR = (
    "With the texts and options of before, run `circuits gather --repair`: it computes again what "
    "is damaged, and nothing else (a merged run: `circuits merge --force`)."
)
PRECISION = click.Choice(["float32", "bfloat16"])
MODEL_HELP = "Model: an embedded one (`embedded` is A, the first), or a folder."
SAE_HELP = "Dictionary: an embedded one (A/0, A/1, A/1-l1, B/0, B/1), `neurons`, or a folder."

model_option = click.option("--model", default="embedded", help=MODEL_HELP)
sae_option = click.option("--sae", default="A/0", help=SAE_HELP)
hook_option = click.option("--hook-point", help="Where the dictionary reads  [default: its own]")
skip_option = click.option(
    "--skip-bad-rows", is_flag=True, help="Count and leave out table rows without text."
)
device_option = click.option(
    "--device", metavar="DEVICE", default="cpu", help="cpu, cuda (the first GPU) or cuda:N."
)
max_tokens_option = click.option(
    "--max-tokens", type=click.IntRange(1), help="Read at most so many tokens."
)


def _numbers(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas."""
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        said = f"{text!r} is not a list of whole numbers, such as 1000,4000"
        raise click.BadParameter(said) from None


def _byte_size(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    """Read a size, e.g. 2G."""
    if text is None:
        return None
    from sae_core.memory import byte_size

    try:
        return byte_size(text)
    except ValueError as err:
        raise click.BadParameter(str(err)) from None


@click.command("gather")
@texts_argument
@output_option("Run directory to write, or to go on with.")
@model_option
@sae_option
@hook_option
@max_tokens_option
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    help="Share of the documents set aside for scoring.",
)
@click.option(
    "--keep-acts/--no-keep-acts", default=True, help="Keep activations; automata need them."
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=_byte_size,
    help="Most memory to take, e.g. 2G  [default: what the machine has]",
)
@skip_option
@click.option(
    "--repair", is_flag=True, help="Compute again the files that are damaged, and no others."
)
@force_option
def gather_command(texts: tuple[str, ...], output: Path, **options: Any) -> None:
    r"""Read TEXT (files, folders, globs or -) with a model and a dictionary into a run directory.

    \b
    Example:
      circuits gather pages/*.html -o run
      circuits gather pages/*.html -o run --memory 1G
      circuits gather pages/*.html -o run --repair
    """
    with console.usage_errors():
        if options["force"] and options["repair"]:
            raise ValueError("--force replaces a run, --repair keeps it; give one of them")
    done = gather_said(texts, out=output, **options)
    console.say(f"Next: circuits graph {done.run}")


@click.command("merge")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@output_option("Run directory to write.")
@force_option
def merge_command(runs: tuple[Path, ...], output: Path, *, force: bool) -> None:
    r"""Add up runs of one model, dictionary and settings.

    \b
    Example:
      circuits merge monday tuesday -o week
    """
    from sae_core.merge import merge_runs

    with console.usage_errors():
        manifest = merge_runs(runs, output, force=force)
    n_tokens = sum(shard.n_tokens for shard in manifest.shards)
    console.say(f"{output}: {n_tokens:,} tokens of {len(runs)} runs. Next: circuits graph {output}")


@click.command("evaluate")
@texts_argument
@click.option("--sae", "saes", multiple=True, default=["A/0"], help=SAE_HELP)
@model_option
@hook_option
@skip_option
@json_option
def evaluate_command(
    texts: tuple[str, ...], saes: tuple[str, ...], *, as_json: bool, **options: Any
) -> None:
    r"""Measure dictionaries on TEXT: sparsity, error, and how much of the model's loss they keep.

    Intervals are of 95 %, over documents drawn with replacement.

    \b
    Example:
      circuits evaluate page.html --sae A/0
      circuits evaluate pages/ --sae A/0 --sae neurons
    """
    from sae_core.evaluate import evaluate_texts
    from sae_core.evaluate_result import measure_rows

    with console.progress_line("tokens") as progress:
        found = evaluate_texts(texts, saes=list(dict.fromkeys(saes)), progress=progress, **options)
    rows = [result.to_dict() for result in found] if as_json else measure_rows(found)
    console.emit(rows, as_json=as_json)


@click.command("train-model")
@click.argument("train", type=PATH)
@click.argument("validation", type=PATH)
@output_option("Folder to write to, or to go on in.")
@click.option("--tokenizer", type=PATH, required=True, help="tokenizer.json of the token ids.")
@click.option("--tokens", type=click.IntRange(1), required=True, help="Tokens to train on.")
@click.option(
    "--d-model", type=click.IntRange(1), default=128, help="Width of the residual stream."
)
@click.option("--n-heads", type=click.IntRange(1), default=4, help="Attention heads.")
@click.option("--d-mlp", type=click.IntRange(1), default=512, help="Neurons of the MLP.")
@click.option("--n-ctx", type=click.IntRange(2), default=256, help="Longest window, tokens.")
@click.option("--batch-windows", type=click.IntRange(1), default=32, help="Windows a step.")
@click.option("--lr", type=float, default=3e-3, help="Learning rate of the stable phase.")
@click.option("--warm-up-steps", type=click.IntRange(0), default=200, help="Steps of linear rise.")
@click.option(
    "--decay-share", type=float, default=0.3, help="Share of the steps, the last, of linear fall."
)
@click.option("--seed", type=int, default=0, help="Seed of weights and order.")
@click.option("--precision", type=PRECISION, default="bfloat16", help="Of the matrix products.")
@click.option(
    "--validate-every",
    type=click.IntRange(1),
    default=250,
    help="Steps between lines of progress and metrics.jsonl.",
)
@click.option(
    "--checkpoint-every", type=click.IntRange(1), default=250, help="Steps between checkpoints."
)
@click.option(
    "--snapshots",
    metavar="N,N,...",
    default="",
    show_default=False,
    callback=_numbers,
    help="Keep the weights after so many tokens as OUTPUT/snapshots/N, float16.",
)
@device_option
def train_model_command(
    train: Path,
    validation: Path,
    *,
    output: Path,
    tokenizer: Path,
    tokens: int,
    d_model: int,
    n_heads: int,
    d_mlp: int,
    n_ctx: int,
    device: str,
    **options: Any,
) -> None:
    r"""Train a one-layer transformer on TRAIN, a file of uint16 token ids; go on where one stopped.

    \b
    Example:
      circuits train-model train.bin val.bin -o model --tokenizer tokenizer.json --tokens 24000000
    """
    from sae_core.byte_tokenizer import ByteTokenizer
    from sae_core.devices import choose_device
    from sae_core.memory import keep_freed_memory
    from sae_core.train_model import TrainModelConfig, train_model
    from sae_core.transformer import ModelConfig

    with console.usage_errors():
        choose_device(device)  # before the tokenizer is read
    d_vocab = len(ByteTokenizer(tokenizer).vocabulary)
    with console.usage_errors():
        sizes = ModelConfig(
            d_model=d_model, n_heads=n_heads, d_mlp=d_mlp, n_ctx=n_ctx, d_vocab=d_vocab
        )
        config = TrainModelConfig(n_tokens=tokens, model=sizes, **options)
    keep_freed_memory()
    train_model(train, validation, output, config, tokenizer=tokenizer, device=device)
    console.say(f"{output}: trained. Next: circuits train-sae {output} {train} -o sae")


@click.command("train-sae")
@click.argument("model", type=PATH)
@click.argument("train", type=PATH)
@output_option("Folder to write to, or to go on in.")
@click.option("--variant", type=click.Choice(list(NEEDS)), default="topk", help="What fires.")
@click.option(
    "--features",
    type=click.IntRange(1),
    required=True,
    multiple=True,
    help="Features to learn; given again, several dictionaries in one pass, as OUTPUT/FEATURES.",
)
@click.option(
    "--active",
    "k",
    type=click.IntRange(1),
    multiple=True,
    help="Features active on a token; one, or one for each --features.",
)
@click.option(
    "--keep", "n_kept", type=click.IntRange(1), help="Keep so many features, those that fire most."
)
@click.option("--l1", "l1_coefficient", type=float, help="Of l1: cost of an activation of 1.")
@click.option("--l0", "l0_coefficient", type=float, help="Of jumprelu: cost of a feature more.")
@click.option(
    "--activations",
    "n_activations",
    type=click.IntRange(1),
    required=True,
    help="Activations to train on.",
)
@click.option("--hook-point", default="blocks.0.mlp.hook_post", help="Where activations are read.")
@click.option("--batch-size", type=click.IntRange(1), default=2048, help="Activations a step.")
@click.option("--lr", type=float, default=1e-3, help="Learning rate on the plateau.")
@click.option("--warm-up-steps", type=click.IntRange(0), default=200, help="Steps of linear rise.")
@click.option("--decay-share", type=float, default=0.2, help="Last share of steps: linear fall.")
@click.option(
    "--sparsity-warm-up-steps", type=click.IntRange(0), default=0, help="Of l1: its linear rise."
)
@click.option(
    "--aux", "aux_coefficient", type=float, default=1 / 32, help="Weight of the auxiliary loss."
)
@click.option(
    "--dead-after",
    type=click.IntRange(1),
    default=500_000,
    help="Activations without firing after which a feature is dead.",
)
@click.option(
    "--resample-at", callback=_numbers, default="", help="Steps at which the dead start anew."
)
@click.option(
    "--resample-window", type=click.IntRange(1), default=12_500, help="Steps silent, to be dead."
)
@click.option(
    "--resample-inputs", type=click.IntRange(1), default=819_200, help="Activations looked at."
)
@click.option("--seed", type=int, default=0, help="Seed of weights and order.")
@click.option(
    "--block-windows", type=click.IntRange(1), default=512, help="Windows shuffled at once."
)
@click.option(
    "--checkpoint-every", type=click.IntRange(1), default=2000, help="Steps between checkpoints."
)
@device_option
def train_sae_command(
    model: Path,
    train: Path,
    *,
    output: Path,
    features: tuple[int, ...],
    k: tuple[int, ...],
    device: str,
    **options: Any,
) -> None:
    r"""Train a dictionary on the activations of MODEL over TRAIN; go on where one stopped.

    \b
    Example:
      circuits train-sae model train.bin -o sae --features 4096 --active 8 --activations 100000000
      circuits train-sae model train.bin -o sae --features 5120 --keep 4096 --active 8 \
          --activations 30000000
      circuits train-sae model train.bin -o saes --features 512 --features 4096 --active 4 \
          --active 12 --activations 100000000
      circuits train-sae model train.bin -o sae --variant l1 --l1 0.1 --features 4096 \
          --activations 100000000
    """
    from sae_core.devices import choose_device
    from sae_core.train_sae import train_saes_on_model
    from sae_core.train_settings import TrainSaeConfig
    from sae_core.transformer import load_transformer

    with console.usage_errors():
        choose_device(device)  # before the model is read
        active: tuple[int | None, ...] = k if len(k) > 1 else (k or (None,)) * len(features)
        if len(active) != len(features) or len(set(features)) != len(features):
            raise ValueError(
                "--active must be given once, or once for each --features, and those must differ; "
                f"got {len(k)} for {len(features)}"
            )
    d_in = load_transformer(model).config.d_mlp
    with console.usage_errors():
        configs = {
            output if len(features) == 1 else output / str(d_sae): TrainSaeConfig(
                d_in=d_in, d_sae=d_sae, k=k_of, **options
            )
            for d_sae, k_of in zip(features, active, strict=True)
        }
    train_saes_on_model(model, train, configs, device=device)
    first = next(iter(configs))
    console.say(f"{output}: trained. Next: circuits evaluate TEXT --sae {first}")


def gather_said(texts: Sequence[str], **options: Any) -> GatherResult:
    """Gather, with progress, and say what was done; see `sae_core.gather.gather`."""
    from sae_core.gather import gather as gather_texts

    with console.progress_line("bytes") as progress:
        done = gather_texts(texts, progress=progress, say=console.say, **options)
    state = "complete" if done.n_new_tokens == 0 else f"{done.n_new_tokens:,} new tokens"
    total = f"{done.n_tokens:,} tokens of {done.n_documents:,} documents"
    console.say(f"{done.run}: {state}; {total}.")
    for sentence in done.sentences:
        console.say(sentence)
    return done


def measure_best(run: Path, n_edges: int) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Give what measures the best edges of a run, with progress, and says what it did.

    Args:
        run: of our own, with kept activations; its model and dictionary are loaded now.
        n_edges: edges to measure, at most.

    Returns:
        From edges, best first, to the effects of the first `n_edges`.
    """
    from sae_core.run_effects import N_DRAWS, EffectMeter

    meter = EffectMeter(run)

    def measure(edges: pl.DataFrame) -> pl.DataFrame:
        best = edges.head(n_edges)
        n_new = len(meter.missing(best))
        with console.progress_line("draws") as progress:
            effects = meter.measure_once(best, progress=progress)
        did = f"measured {n_new:,} effects, {N_DRAWS:,} draws a source" if n_new else "complete"
        console.say(f"{run}: {did}; {len(best):,} of {len(edges):,} edges have their effect.")
        return effects

    return measure


COMMANDS = (
    gather_command,
    merge_command,
    evaluate_command,
    train_model_command,
    train_sae_command,
)
