"""What a sparse training step does with the weights: four operations, on any device.

`TorchEngine` does them with tensors, on a GPU or wherever many features fire; `CpuEngine` with
compiled loops, for which only features that fire cost anything. Both give the same up to rounding.

A step: (1) `largest` or `above` gives the features that fire, in compressed rows; (2) `reconstruct`
gives what their decoder rows miss, and the slope of the loss by each activation; (3) `move` adds the
gradients up and lets Adam move the features that fired; the others stay, and so do their moments.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from sae_core import train_loops
from sae_core.active import Active, Aid, Missed
from sae_core.devices import Portions
from sae_core.errors import SaeError
from sae_core.screen_loops import round_rows, sort_by_feature
from sae_core.screening import Screen, screen_of
from sae_core.sparsify import Encoder, Room, sparse_acts
from sae_core.train_loops import EPSILON, Entries, Rates, Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

GATHERED = 1 << 16  # entries whose decoder rows are gathered at once (134 MB at d_in 512)
DENSE = 1 / 32  # share of features active above which dense products are faster
DENSE_VALUES = 1 << 25  # of dense activations at once (134 MB)
ROW_WORK = 12  # entries that cost as much as moving one feature's weights


class TorchEngine:
    """Weights and moments of a dictionary in training; a feature's weights side by side."""

    def __init__(self, enc: Tensor, dec: Tensor, say: Callable[[str], None]) -> None:
        """Take over (d_sae, d_in) encoder and decoder; biases start at 0."""
        self.enc, self.dec, self.b_enc = enc, dec, torch.zeros_like(enc[:, 0])
        self.m = [torch.zeros_like(weight) for weight in self.weights()]
        self.v = [torch.zeros_like(weight) for weight in self.weights()]
        self.n_moves = torch.zeros(len(enc), dtype=torch.int64, device=enc.device)
        self.portions = Portions(None, "row", enc.device, say, SaeError)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give encoder, its bias and decoder."""
        return self.enc, self.b_enc, self.dec

    def state(self) -> dict[str, Tensor]:
        """Give all that a checkpoint needs, by name."""
        names = ("enc", "b_enc", "dec")
        state = dict(zip(names, self.weights(), strict=True)) | {"n_moves": self.n_moves}
        state |= {f"m.{name}": value for name, value in zip(names, self.m, strict=True)}
        return state | {f"v.{name}": value for name, value in zip(names, self.v, strict=True)}

    def weights_changed(self) -> None:
        """Be told that weights were changed from outside."""

    def forget(self, features: Tensor) -> None:
        """Let Adam start anew with some features."""
        for moments in (*self.m, *self.v):
            moments[features] = 0
        self.n_moves[features] = 0

    def centre(self, x: Tensor, scale: float, b_dec: Tensor) -> tuple[Tensor, Tensor]:
        """Give scale x - b_dec, and the sum of its rows' squared distances from their mean."""
        centred = x * scale - b_dec
        return centred, (centred - centred.mean(dim=0)).square().sum()

    def largest(self, x: Tensor, k: int) -> Active:
        """Give the k largest activations of each row that are > 0."""

        def some(rows: slice) -> Active:
            values, ids = torch.relu(self._pre_acts(x[rows])).topk(k, sorted=False)
            ids, order = ids.sort(dim=1)
            return _compressed(ids, values.gather(1, order), values.gather(1, order) > 0)

        return self._in_portions(some, len(x))

    def above(self, x: Tensor, floor: Tensor) -> Active:
        """Give the values before any non-linearity that are above a floor (d_sae,) >= 0."""

        def some(rows: slice) -> Active:
            values = self._pre_acts(x[rows])
            ids = torch.arange(len(floor), device=x.device).expand_as(values)
            return _compressed(ids, values, values > floor)

        return self._in_portions(some, len(x))

    def reconstruct(self, x: Tensor, active: Active, ends: list[int]) -> Missed:
        """Reconstruct the centred rows x (n, d_in) at each level."""
        return self.portions.fit(lambda: self._reconstruct(x, active, ends), len(x))

    def move(
        self, x: Tensor, active: Active, missed: Missed, aid: Aid | None, rates: Rates
    ) -> None:
        """Let Adam move the weights; decoder rows keep unit norm."""
        grads = self.portions.fit(lambda: self._gradients(x, active, missed), len(x))
        fires = torch.bincount(active.ids, minlength=len(self.enc))
        if aid is not None:
            rows = Missed(aid.miss[None], aid.miss[None, :, 0], aid.slopes, missed.ends[-1:])
            added = self._gradients(x, aid.active, rows)
            grads = [grad + more for grad, more in zip(grads, added, strict=True)]
            fires += torch.bincount(aid.active.ids, minlength=len(self.enc))
        moved = fires.nonzero()[:, 0]
        self.n_moves[moved] += 1
        n = self.n_moves[moved].double()
        fix_m, fix_v = (1 / (1 - keep**n) for keep in (rates.keep_m, rates.keep_v))
        dec = self.dec[moved]
        grads[2][moved] -= (grads[2][moved] * dec).sum(dim=1, keepdim=True) * dec
        for weight, m, v, grad in zip(self.weights(), self.m, self.v, grads, strict=True):
            wide = (-1, *[1] * (weight.ndim - 1))
            slope = rates.scale * grad[moved]
            m[moved] = m[moved].lerp(slope, 1 - rates.keep_m)
            v[moved] = v[moved].lerp(slope * slope, 1 - rates.keep_v)
            length = (v[moved] * fix_v.view(wide).float()).sqrt() + EPSILON
            weight[moved] -= rates.lr * fix_m.view(wide).float() * m[moved] / length
        self.dec[moved] = functional.normalize(self.dec[moved], dim=1)

    def _reconstruct(self, x: Tensor, active: Active, ends: list[int]) -> Missed:
        rows, levels, miss = active.rows(), _levels(active.ids, ends), -x.repeat(len(ends), 1, 1)
        slopes = torch.empty_like(active.acts)
        is_dense = self._is_dense(active)
        if is_dense:
            for some in self._blocks(len(x)):
                acts = self._dense(active, rows, active.acts, some)
                for level, end in enumerate(ends):
                    miss[level, some] += acts[:, :end] @ self.dec[:end]
        else:
            for some in self._gathers(active):
                part = active.acts[some, None] * self.dec[active.ids[some]]
                for level in range(len(ends)):
                    reaches = levels[some] <= level
                    miss[level].index_add_(0, rows[some][reaches], part[reaches])
        errors = miss.square().sum(dim=2)
        miss = miss.flip(0).cumsum(0).flip(0)
        if is_dense:
            for some in self._blocks(len(x)):
                entries = slice(*active.indptr[[some.start, some.stop]].tolist())
                found = [
                    part[some] @ self.dec[begin:end].T
                    for begin, end, part in zip([0, *ends], ends, miss, strict=False)
                ]
                slopes[entries] = torch.cat(found, dim=1)[
                    rows[entries] - some.start, active.ids[entries]
                ]
        else:
            for some in self._gathers(active):
                part = miss[levels[some], rows[some]]
                slopes[some] = (part * self.dec[active.ids[some]]).sum(dim=1)
        return Missed(miss, errors, slopes, ends)

    def _pre_acts(self, x: Tensor) -> Tensor:
        return x @ self.enc.T + self.b_enc

    def _in_portions(self, some: Callable[[slice], Active], n: int) -> Active:
        def compute() -> list[Active]:
            return [some(rows) for rows in self.portions.slices(n)]

        parts = self.portions.fit(compute, n)
        counts = torch.cat([part.indptr.diff() for part in parts])
        indptr = functional.pad(counts.cumsum(0), (1, 0))
        ids, acts = (torch.cat([part[at] for part in parts]) for at in (1, 2))
        return Active(indptr, ids, acts)

    def _is_dense(self, active: Active) -> bool:
        n = len(active.indptr) - 1
        return len(active.ids) > DENSE * n * len(self.enc)

    def _blocks(self, n: int) -> Iterator[slice]:
        """Give portions of n rows whose dense activations fit into memory."""
        size = min(self.portions.size, max(1, DENSE_VALUES // len(self.enc)))
        yield from (slice(at, min(at + size, n)) for at in range(0, n, size))

    def _gathers(self, active: Active) -> Iterator[slice]:
        """Give portions of the entries, as many as portions of rows have, that fit into memory."""
        m, n = len(active.ids), len(active.indptr) - 1
        size = max(1, min(self.portions.size * m // max(1, n), GATHERED))
        yield from (slice(at, at + size) for at in range(0, m, size))

    def _dense(self, active: Active, rows: Tensor, values: Tensor, some: slice) -> Tensor:
        dense = values.new_zeros(some.stop - some.start, len(self.enc))
        first, after = int(active.indptr[some.start]), int(active.indptr[some.stop])
        dense[rows[first:after] - some.start, active.ids[first:after]] = values[first:after]
        return dense

    def _gradients(self, x: Tensor, active: Active, missed: Missed) -> list[Tensor]:
        """Give half the gradients of encoder, its bias and decoder, of the sum over rows."""
        ends = missed.ends
        rows, levels = active.rows(), _levels(active.ids, ends)
        grads = [torch.zeros_like(weight) for weight in self.weights()]
        if self._is_dense(active):
            for some in self._blocks(len(active.indptr) - 1):
                slopes = self._dense(active, rows, missed.slopes, some)
                acts = self._dense(active, rows, active.acts, some)
                grads[0] += slopes.T @ x[some]
                grads[1] += slopes.sum(dim=0)
                for begin, end, miss in zip([0, *ends], ends, missed.miss, strict=False):
                    grads[2][begin:end] += acts[:, begin:end].T @ miss[some]
            return grads
        for some in self._gathers(active):
            ids, row = active.ids[some], rows[some]
            grads[0].index_add_(0, ids, missed.slopes[some, None] * x[row])
            grads[1].index_add_(0, ids, missed.slopes[some])
            part = active.acts[some, None] * missed.miss[levels[some], row]
            grads[2].index_add_(0, ids, part)
        return grads


class CpuEngine(TorchEngine):
    """The same by compiled loops, on all cores."""

    def __init__(self, enc: Tensor, dec: Tensor, say: Callable[[str], None]) -> None:
        super().__init__(enc, dec, say)
        self.room = Room()
        self._screen = screen_of(self.enc.T, self.b_enc)
        if self._screen is not None:  # the trained weights themselves, not a copy
            self._screen = self._screen._replace(W=self.enc.numpy())
        self._miss = self._centred = torch.empty(0)

    def weights_changed(self) -> None:
        """Round the encoder anew."""
        if self._screen is not None:
            round_rows(self.enc.numpy(), _bits(self._screen), self._screen.sizes)

    def centre(self, x: Tensor, scale: float, b_dec: Tensor) -> tuple[Tensor, Tensor]:
        """Give scale x - b_dec, and the sum of its rows' squared distances from their mean."""
        if self._centred.shape != x.shape:
            self._centred = torch.empty_like(x)
        sums = np.empty((self.room.n_threads, x.shape[1] + 1))
        cuts = self._cuts(len(x))

        def some(begin: int, end: int) -> None:
            part = sums[cuts.index(begin)]
            given = x.numpy(), scale, b_dec.numpy(), self._centred.numpy(), part
            train_loops.centre(begin, end, *given)

        self.room.map(some, cuts)
        total = sums.sum(axis=0)
        variance = total[-1] - float(np.square(total[:-1]).sum()) / len(x)
        return self._centred, torch.tensor(max(variance, 0.0), dtype=torch.float32)

    def largest(self, x: Tensor, k: int) -> Active:
        """Give the k largest activations of each row that are > 0."""
        return self._sparse(x, torch.zeros_like(self.b_enc), k)

    def above(self, x: Tensor, floor: Tensor) -> Active:
        """Give the values before any non-linearity that are above a floor (d_sae,) >= 0."""
        return self._sparse(x, floor, None)

    def reconstruct(self, x: Tensor, active: Active, ends: list[int]) -> Missed:
        """Reconstruct the centred rows x (n, d_in) at each level."""
        if self._is_dense(active):
            with threads(self.room.n_threads):
                return super().reconstruct(x, active, ends)
        shape = (len(ends), *x.shape)
        if self._miss.shape != shape:
            self._miss = torch.empty(shape)
        miss, errors = self._miss, torch.empty(shape[:2])
        slopes = torch.empty_like(active.acts)
        given = (*_arrays(active), np.array(ends), self.dec.numpy(), x.numpy())
        filled = miss.numpy(), errors.numpy(), slopes.numpy()
        self.room.map(
            lambda begin, end: train_loops.reconstruct(begin, end, *given, *filled),
            self._cuts(len(x)),
        )
        return Missed(miss, errors, slopes, ends)

    def move(
        self, x: Tensor, active: Active, missed: Missed, aid: Aid | None, rates: Rates
    ) -> None:
        """Let Adam move the weights; decoder rows keep unit norm."""
        if self._is_dense(active):
            with threads(self.room.n_threads):
                super().move(x, active, missed, aid, rates)
            self.weights_changed()
            return
        miss = missed.miss.flatten(0, 1)
        if aid is not None:
            miss = torch.cat([miss, aid.miss])
            active = Active(
                torch.cat([active.indptr, aid.active.indptr[1:] + active.indptr[-1]]),
                torch.cat([active.ids, aid.active.ids]),
                torch.cat([active.acts, aid.active.acts]),
            )
            missed = missed._replace(slopes=torch.cat([missed.slopes, aid.slopes]))
        entries = self._entries(active, missed.slopes, missed.ends, len(x))
        weights, m, v = (
            Weights(*(part.numpy() for part in parts)) for parts in (self.weights(), self.m, self.v)
        )
        sizes = np.empty((2, len(self.enc)), np.float32)
        rough = np.empty((0, 0), np.uint16)
        if self._screen is not None:
            rough, sizes = _bits(self._screen), self._screen.sizes
        work = entries.starts + ROW_WORK * np.arange(len(entries.starts))
        cuts = np.searchsorted(work, np.linspace(0, work[-1], self.room.n_threads + 1)).tolist()
        given = entries, x.numpy(), miss.numpy(), weights, m, v, self.n_moves.numpy(), rates
        self.room.map(lambda begin, end: train_loops.move(begin, end, *given, rough, sizes), cuts)

    def _cuts(self, n: int) -> list[int]:
        cuts: list[int] = np.linspace(0, n, self.room.n_threads + 1).astype(int).tolist()
        return cuts

    def _sparse(self, x: Tensor, floor: Tensor, k: int | None) -> Active:
        encoder = Encoder(self.enc.T, self.b_enc, floor, k, self._screen)

        def some(rows: slice) -> Active:
            indptr, ids, acts = sparse_acts(x[rows], encoder, self.room)
            return Active(*map(torch.from_numpy, (indptr, ids.view(np.int32), acts)))

        return self._in_portions(some, len(x))

    def _entries(self, active: Active, slopes: Tensor, ends: list[int], n: int) -> Entries:
        indptr, ids, acts = _arrays(active)
        starts, place = np.empty(len(self.enc) + 1, np.int64), np.empty(len(ids), np.int64)
        row = np.empty(len(ids), np.int32)
        sort_by_feature(indptr, ids, starts, place, row)
        miss = row  # rows past the batch's are the aid's, and come after all levels'
        if len(indptr) - 1 > n or len(ends) > 1:
            level = np.searchsorted(ends, ids[place], side="right")
            miss = np.where(row < n, level * n + row, (len(ends) - 1) * n + row).astype(np.int32)
            row = np.where(row < n, row, row - n).astype(np.int32)
        return Entries(starts, row, miss, acts[place], slopes.numpy()[place])


def move_vector(weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, rates: Rates) -> None:
    """Let Adam move a vector that takes part in every step."""
    m.lerp_(grad * rates.scale, 1 - rates.keep_m)
    v.lerp_((grad * rates.scale).square(), 1 - rates.keep_v)
    fix_m, fix_v = (1 / (1 - keep**rates.step) for keep in (rates.keep_m, rates.keep_v))
    weight -= rates.lr * fix_m * m / ((v * fix_v).sqrt() + EPSILON)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch use n threads; more would wait actively where compiled loops want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compressed(ids: Tensor, values: Tensor, keep: Tensor) -> Active:
    indptr = functional.pad(keep.sum(dim=1).cumsum(0), (1, 0))
    return Active(indptr, ids[keep].int(), values[keep])


def _levels(ids: Tensor, ends: list[int]) -> Tensor:
    """Give (m,) the first level that uses each feature."""
    return torch.bucketize(ids, torch.tensor(ends, device=ids.device), right=True)


def _arrays(active: Active) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return active.indptr.numpy(), active.ids.numpy().view(np.uint32), active.acts.numpy()


def _bits(screen: Screen) -> np.ndarray:
    return screen.rough.T.view(torch.uint16).numpy()
