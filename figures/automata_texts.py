"""The texts that automata are scored on: tokens with what fires, the raw neurons, the model's loss.

1. A run's own text comes in two parts: what its automata were made from, and what was held out.
2. Pages that are no part of the run are read with its model and dictionary, as it was.
3. The neurons of each part, and where it is asked for the model's loss on each next token, come
   from a second reading of the same windows (`sae_core.draw_plan.ReadWindows`).
4. A parser's labels are put on the tokens of the documents that it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from circuits.labels import LABELERS
from circuits.run import open_run
from circuits.truth import token_labels
from circuits.truth_texts import truth_text
from sae_core.draw_plan import ReadWindows
from sae_core.regather import gather_like, reader_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from circuits.run import Run
    from sae_core.language_model import LanguageModel
    from sae_core.regather import Reader
    from sae_core.schema import TokenTable
    from sae_core.transformer import HookState

BATCH_WINDOWS = 16


class Part(NamedTuple):
    """Whole documents of a run, and what its model does on them."""

    run: Run

    held_out: bool | None
    """Which documents of the run: the held-out ones, the others, or all."""

    tokens: TokenTable

    neurons: NDArray[np.float16]
    """(n_tokens, d_in) the hook point's activations."""

    nats: NDArray[np.float32] | None
    """(n_tokens,) the model's loss on the token after each; nan at a window's end."""


class Labelled(NamedTuple):
    """Documents of a part that a parser reads."""

    tokens: TokenTable

    labels: NDArray[np.uint8]
    """(n_tokens,) the parser's, `UNLABELLED` where it has none."""

    packages: NDArray[np.str_]
    """(n_tokens,) package of each."""

    part: Part

    rows: NDArray[np.int64]
    """(n_tokens,) row of each in the part."""

    @property
    def names(self) -> list[str]:
        """The packages, each once."""
        names: list[str] = np.unique(self.packages).tolist()
        return names

    def neurons(self, keep: NDArray[np.bool_]) -> NDArray[np.float16]:
        """Give the neurons of some tokens: (n_tokens,) which, to (n, d_in)."""
        return self.part.neurons[self.rows[keep]]


def read_run(run: Run) -> tuple[Part, Part]:
    """Read a run's training text, and its held-out text with the model's loss.

    Args:
        run: with kept activations.

    Raises:
        ModelError, SaeError, StoreMismatchError: see `sae_core.regather.reader_of`.
    """
    reader = reader_of(run.path)
    training = _read_part(run, reader, held_out=False, with_loss=False)
    return training, _read_part(run, reader, held_out=True, with_loss=True)


def read_pages(run: Run, pages: Path, out: Path) -> Part:
    """Read pages as a run was read, with their neurons.

    Args:
        run: whose model and dictionary read.
        pages: a folder with one folder a package.
        out: a run of the pages, which is written.
    """
    gathered = open_run(gather_like(run.path, [str(pages)], out))
    return _read_part(gathered, reader_of(run.path), held_out=None, with_loss=False)


def labelled(part: Part, kind: str) -> Labelled:
    """Take the documents of a part that a parser reads, with its labels.

    Args:
        part: whole documents.
        kind: one of `circuits.labels.LABELERS`.

    Raises:
        GraphError: there is no such document.
    """
    text = truth_text(part.run, kind, held_out=part.held_out)
    labels = token_labels(text.tokens, text.documents.__getitem__, LABELERS[kind].label)
    packages = np.array([text.package_of[doc] for doc in text.tokens.doc_ids.tolist()])
    rows = np.flatnonzero(np.isin(part.tokens.doc_ids, list(text.documents)))
    return Labelled(text.tokens, labels, packages, part, rows)


@torch.no_grad()
def _read_part(run: Run, reader: Reader, *, held_out: bool | None, with_loss: bool) -> Part:
    tokens = run.tokens(held_out=held_out)
    model, _, hook_point = reader
    warm_up = int(run.manifest.settings["warm_up"])
    has_start = model.start_token is not None
    windows = ReadWindows.of(tokens, warm_up=warm_up, has_start=has_start)
    neurons = np.empty((len(tokens.token_ids), model.width(hook_point)), np.float16)
    nats = np.full(len(neurons), np.nan, np.float32)
    for first in range(0, len(windows.record), BATCH_WINDOWS):
        chosen = np.arange(first, min(first + BATCH_WINDOWS, len(windows.record)))
        ids = torch.from_numpy(windows.token_ids(tokens, chosen, model.start_token))
        state = model.run_to_hook(ids, hook_point)
        acts = state.acts.half().numpy()  # (n_chosen, pos, d_in)
        losses = _losses(model, state, ids) if with_loss else None
        for row, window in enumerate(chosen):
            record, end = windows.record[window], windows.end[window]
            start = windows.lead[window] + record - windows.read[window]
            neurons[record:end] = acts[row, start : start + end - record]
            if losses is not None:
                nats[record : end - 1] = losses[row, start : start + end - record - 1]
    return Part(run, held_out, tokens, neurons, nats if with_loss else None)


def _losses(model: LanguageModel, state: HookState, ids: Tensor) -> NDArray[np.float32]:
    """Give the loss on the token after each place: (n_windows, pos) ids to (n_windows, pos - 1)."""
    logits = model.logits(state)[:, :-1].transpose(1, 2)  # (n_windows, d_vocab, pos - 1)
    losses: NDArray[np.float32] = functional.cross_entropy(
        logits, ids[:, 1:], reduction="none"
    ).numpy()
    return losses
