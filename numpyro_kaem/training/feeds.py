"""Where batches come from: arrays, cut and shuffled on the device, or an iterable on the host."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from numpyro_kaem._checkpoints.arrays import to_host
from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem._numerics.sharding import spreading
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.training.data import IndexedBatch, check_data
from numpyro_kaem.training.sharding import Layout, with_shardings
from numpyro_kaem.training.step import Stepper, TrainState, empty_records

# Seconds between two looks at the keyboard while a batch is waited for.
_SECONDS = 0.5


class ArrayFeed:
    """Minibatches of arrays that are on the device, shuffled there; an epoch's steps are one compiled call or a few."""

    def __init__(self, data: tuple, num_data: int, batch_size: int, layout: Layout):
        self.num_data, self.batch_size, self.layout = num_data, batch_size, layout
        self.num_steps = num_data // batch_size
        self.data = layout.place_data(data)
        self.first_batch = jax.tree.map(lambda array: jnp.asarray(array[:batch_size]), data)
        self.of_all_processes = data

    def compile(self, stepper: Stepper, state: TrainState, shardings: PyTree, kwargs: dict) -> None:
        """Compile the steps of an epoch, or find them compiled."""
        layout, self._kwargs = self.layout, kwargs
        self._empty = layout.place(empty_records(state, self.num_steps))
        self._static = stepper, layout.by_datum, layout.replicated, shardings
        self.begin(jax.random.key(0))
        bound = layout.place(jnp.asarray(0))
        kept = (self._empty, self._order, bound, bound, self.data, kwargs)
        self._take_steps = _take_steps.compiled((self._static, kept), state)

    def num_chains(self, latent_model: LatentModel) -> int:
        """For how many data chains are kept: for those that fill up the last device as well."""
        return self.layout.padded(self.num_data)

    def resume(self, step: int, step_in_epoch: int) -> None:
        """Nothing to pass over: an epoch's batches are a function of its key."""

    def begin(self, key: PRNGKeyArray) -> None:
        """Begin an epoch."""
        self._order = self.layout.place(_shuffle(key, self.num_data, self.num_steps, self.batch_size))
        self._records = self._empty

    def advance(
        self, state: TrainState, first: int, last: int, interrupted: list[bool]
    ) -> tuple[TrainState, dict[str, np.ndarray], bool]:
        """Take the steps from `first` to before `last`: the state after them, their records, whether the epoch ends.

        The state is given up. `interrupted` is no longer empty after Ctrl-C, to which steps on the device do not look.
        """
        bounds = self.layout.place((jnp.asarray(first), jnp.asarray(last)))
        kept = (self._records, self._order, *bounds, self.data, self._kwargs)
        state, self._records, end = self._take_steps((self._static, kept), state)
        end = int(end)
        return state, {name: np.asarray(x)[first:end] for name, x in self._records.items()}, end == self.num_steps

    def close(self) -> None:
        """Nothing to give back."""


# The state goes into the memory of the one before it, which may be most of what there is.
@partial(jit_by_value, first_donated=1)
def _take_steps(kept: tuple, state: TrainState) -> tuple[TrainState, dict[str, Array], Array]:
    """Steps of an epoch on arrays, as `Stepper.run` takes them, on the devices of a layout if there is one."""
    (stepper, by_datum, replicated, shardings), (records, order, first, last, data, kwargs) = kept

    def cut(data, rows):
        return with_shardings(jax.tree.map(lambda array: array[rows], data), by_datum)

    place = partial(with_shardings, shardings=shardings)
    with spreading(by_datum):
        state, *others = stepper.run(state, records, (order, first, last), data, kwargs, cut, place)
    return place(state), *with_shardings(others, replicated)


@jit_by_value
def _shuffle(key: PRNGKeyArray, num_data: int, num_steps: int, batch_size: int) -> Int[Array, "num_steps batch_size"]:
    """The rows of the batches of an epoch."""
    return jax.random.permutation(key, num_data)[: num_steps * batch_size].reshape(num_steps, batch_size)


class StreamFeed:
    """Batches from an iterable on the host, checked, and brought to the device while the step before runs.

    Of several processes each gives its own share of the rows.
    """

    def __init__(self, data: Iterable, steps_per_epoch: int | None, layout: Layout):
        if jax.process_count() > 1 and layout.mesh is not None and steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch must be given for an iterable in several processes: all have to take the same number "
                "of steps"
            )
        self.num_steps, self.layout = steps_per_epoch, layout
        self.is_iterator, self._count, self._batches = isinstance(data, Iterator), 0, self._load(data)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="numpyro_kaem-batches")
        self._submit()
        self._first = self._next.result()
        if self._first is None:
            raise ValueError("data gives no batch: an iterable must give at least one")
        first, self.indices = self._first
        self.batch_size = self.num_data = len(jax.tree.leaves(first)[0])
        # A model that is read for its structure needs values, and what its parameters start from is to be the same in
        # every process.
        self.first_batch = first if layout.mesh is None else jax.tree.map(jnp.asarray, jax.tree.map(to_host, first))
        self.of_all_processes = self.first_batch

    def compile(self, stepper: Stepper, state: TrainState, shardings: PyTree, kwargs: dict) -> None:
        """Compile a step, or find it compiled."""
        self._static = stepper, self.layout.by_datum, shardings
        self._step = _take_step.compiled((self._static, *self._first, kwargs), state)
        self._kwargs, self._max_bad_steps = kwargs, stepper.max_bad_steps

    def num_chains(self, latent_model: LatentModel) -> int | None:
        """For how many data chains are kept; None where batches do not tell which datum is which."""
        return None if self.indices is None else latent_model.structure.plates[latent_model.plate][0]

    def resume(self, step: int, step_in_epoch: int) -> None:
        """Pass over the batches that were used in the steps before the checkpoint."""
        used = step_in_epoch if self.num_steps is None and not self.is_iterator else step
        for number in range(used):
            if self._pop() is None:
                raise ValueError(
                    f"data ended after {number} batches, but the checkpoint had used {used}: resume with data that "
                    "begin where they began at first"
                )

    def begin(self, key: PRNGKeyArray) -> None:
        """Begin an epoch; batches come in the order of the iterable."""

    def advance(
        self, state: TrainState, first: int, last: int, interrupted: list[bool]
    ) -> tuple[TrainState, dict[str, np.ndarray], bool]:
        """See `ArrayFeed.advance`; after Ctrl-C no batch is waited for.

        What is wrong with the data is raised by the next call if steps were taken before it, so that they are not lost.
        """
        records, ended = [], False
        for number in range(first, last):
            if not self._wait(interrupted) or (records and self._next.exception() is not None):
                break
            batch = self._pop()
            if batch is None:
                if self.num_steps is None and number > 0:
                    ended = True
                elif not records:
                    raise ValueError(
                        f"data ended after {self._count} batches, {number} of them in this epoch"
                        + (f" of {self.num_steps}" if self.num_steps else "")
                        + ": give an iterable that can be iterated again, an endless iterator with steps_per_epoch, "
                        "or fewer epochs"
                    )
                break
            state, record = self._step((self._static, *batch, self._kwargs), state)
            records.append(record)
            if int(state.bad_in_a_row) >= self._max_bad_steps:
                break
        ended = ended or first + len(records) == self.num_steps
        if ended and self.num_steps is None:
            self._submit()
        records = jax.device_get(records)
        names = records[0] if records else {}
        return state, {name: np.stack([record[name] for record in records]) for name in names}, ended

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self) -> None:
        self._next = self._pool.submit(next, self._batches)

    def _wait(self, interrupted: list[bool]) -> bool:
        """Whether the next batch has come; False if Ctrl-C came before it."""
        # Of several processes all must take the same number of steps.
        while not self._next.done() and not (interrupted and jax.process_count() == 1):
            wait([self._next], timeout=_SECONDS)
        return self._next.done()

    def _pop(self) -> tuple | None:
        batch = self._next.result()
        if batch is not None:
            self._submit()
        return batch

    def _load(self, source: Iterable) -> Iterator[tuple | None]:
        """The batches of pass after pass, on the device; None where a pass ends, unless epochs do not end there."""
        like, is_told = None, False
        while True:
            batches, before = iter(source), self._count
            for batch in batches:
                batch, indices, num_rows = self._checked(batch)
                kind = num_rows, [(leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(batch)]
                like = kind if like is None else like
                if kind != like:
                    is_short = num_rows < like[0] and kind[1] == like[1]
                    if not is_short or next(batches, None) is not None:
                        raise ValueError(
                            f"batch {self._count} of data has arrays {_describe(*kind)}, the first had "
                            f"{_describe(*like)}: only the last batch of a pass may be short, and is left out"
                        )
                    if not is_told:
                        warnings.warn(
                            f"the last batch of a pass has {num_rows} rows, the others {like[0]}: it is left out, as "
                            "batches of one compiled step have one shape (shuffle, so that no row is left out every "
                            "time)",
                            RuntimeWarning,
                            stacklevel=2,
                        )
                    is_told = True
                    break
                self._count += 1
                yield self._place(batch, num_rows), indices
            # An epoch that is no whole number of passes goes on with the next one, if there is anything in it.
            if self.num_steps is None or self.is_iterator or self._count == before:
                yield None

    def _checked(self, batch: Any) -> tuple[tuple, Array | None, int]:
        """The arguments of a batch, its indices if it has some, and its number of rows."""
        name, indices = f"batch {self._count} of data", None
        if isinstance(batch, IndexedBatch):
            batch, indices = batch
        batch, num_rows = check_data(name, batch)
        if indices is not None:
            if self.layout.mesh is not None:
                raise ValueError("an IndexedBatch needs one device: with a mesh pass all data as arrays")
            indices = np.asarray(indices)
            if indices.shape != (num_rows,) or indices.dtype.kind not in "iu" or len(np.unique(indices)) != num_rows:
                raise ValueError(f"indices of {name} must be {num_rows} different whole numbers, got {indices!r}")
            indices = jnp.asarray(indices.astype(np.int32))
        return batch, indices, num_rows

    def _place(self, batch: tuple, num_rows: int) -> tuple:
        if self.layout.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        self.layout.check_batch("the rows of a batch of data, of all processes,", num_rows * jax.process_count())
        by_datum = self.layout.by_datum
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_datum, np.asarray(x)), batch)


# The state goes into the memory of the one before it, which may be most of what there is.
@partial(jit_by_value, first_donated=1)
def _take_step(kept: tuple, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
    """A step on a batch of a stream."""
    (stepper, by_datum, shardings), batch, indices, kwargs = kept
    rows = slice(None) if indices is None else indices
    with spreading(by_datum):
        state, record = stepper.step(stepper.svi(state, batch, kwargs), state, batch, rows, kwargs)
    return with_shardings(state, shardings), record


def _describe(num_rows: int, rows: list) -> str:
    return ", ".join(f"{dtype}{[num_rows, *shape]}" for shape, dtype in rows)
