"""Where batches come from: arrays on the device, or an iterable on the host."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from numpyro_kaem._checkpoints.arrays import to_host
from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem._numerics.sharding import spreading
from numpyro_kaem.models.data import as_arrays, is_table
from numpyro_kaem.training.sharding import Layout
from numpyro_kaem.training.step import Stepper, TrainState, empty_records

# Seconds between two looks at the keyboard while a batch is waited for.
_SECONDS = 0.5


def is_stream(data: Any) -> bool:
    """Whether data are an iterable of batches, and not arrays (or what NumPy can make one of) or a tuple of them."""
    return isinstance(data, Iterable) and not (
        isinstance(data, tuple | list | dict | str) or hasattr(data, "__array__")
    )


def check_is_data(data: Any) -> None:
    """Raise a TypeError for what is neither arrays nor an iterable of batches."""
    if callable(data) and not isinstance(data, Iterable) and not hasattr(data, "__array__"):
        raise TypeError(
            f"data must be arrays or an iterable of batches, got the function {getattr(data, '__name__', data)!r}: "
            "call it, fit(key, model, data(), ...), or for a fresh pass every epoch give an object with an __iter__"
        )
    if not (isinstance(data, Iterable) or hasattr(data, "__array__") or is_table(data)):
        raise TypeError(
            f"data must be arrays or an iterable of batches, got a {type(data).__name__}, which has no __iter__: a "
            "loader needs one that yields the batches of an epoch"
        )


def check_data(name: str, data: Any, like: tuple | None = None) -> tuple[tuple, int]:
    """The positional arguments as host or device arrays, and their number of rows.

    Args:
        name: how the caller calls the argument.
        data: array, or tuple of arrays or pytrees of arrays.
        like: arguments whose rows these must resemble.
    """
    if isinstance(data, list) and any(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(data)):
        raise TypeError(
            f"{name} must be an array or a tuple of arrays, got a list of single values: pass numpy.array({name})"
        )
    data = as_arrays(name, tuple(data) if isinstance(data, tuple | list) else (data,))
    data = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) or np.isscalar(leaf) else np.asarray(leaf), data
    )
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(data):
        label = name + jax.tree_util.keystr(path)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"{label} is spread over several processes: pass all rows in every process, as an array of its own, or "
                "an iterable that gives each process its own share of every batch"
            )
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufc" and not jnp.issubdtype(array.dtype, jnp.inexact):
            raise TypeError(f"{label} must be an array of numbers, got {leaf!r}")
        if array.ndim == 0:
            raise ValueError(f"{label} must lead with the data axis, got a scalar; pass scalars as model_kwargs")
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(array.astype(dtype, copy=False))
        if len(bad := np.argwhere(~is_finite)):
            index = tuple(bad[0].tolist())
            beyond = f", which is beyond {dtype}: rescale it" if np.isfinite(array[index]) else ""
            raise ValueError(f"{label} must be finite, got {array[index]} at index {index}{beyond}")
        lengths[label] = len(array)
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{name} must hold arrays of the same number of rows, at least 1, got {lengths}")
    if like is not None:
        rows, like_rows = (jax.tree.map(lambda array: np.shape(array)[1:], tree) for tree in (data, like))
        if rows != like_rows:
            raise ValueError(f"{name} must have rows of the same shapes as data, {like_rows}, got {rows}")
    return data, next(iter(lengths.values()))


class ArrayFeed:
    """Minibatches of arrays that are on the device, shuffled there; an epoch's steps are one compiled call or a few.

    Args:
        data: positional arguments, all rows.
        num_data: their number.
        batch_size: rows of a batch.
        layout: where they go; None for one device.
    """

    def __init__(self, data: tuple, num_data: int, batch_size: int, layout: Layout | None):
        self.num_data, self.batch_size, self.layout = num_data, batch_size, layout
        self.num_steps = num_data // batch_size
        self.data = jax.tree.map(jnp.asarray, data) if layout is None else layout.place_data(data)
        self.num_rows = num_data if layout is None else layout.padded(num_data)
        self.first_batch = jax.tree.map(lambda array: jnp.asarray(array[:batch_size]), data)
        self.of_all_processes = data

    def compile(self, stepper: Stepper, state: TrainState, shardings: PyTree, kwargs: dict) -> float:
        """Compile the steps of an epoch, or find them compiled; returns the seconds that it took."""
        layout, self._kwargs = self.layout, kwargs
        records = empty_records(state, self.num_steps)
        self._empty = records if layout is None else layout.place(records)
        self._static = stepper, None if layout is None else (layout.by_datum, layout.replicated), shardings
        self.begin(jax.random.key(0))
        start = time.perf_counter()
        bound = self._bound(0)
        kept = (self._empty, self._order, bound, bound, self.data, kwargs)
        self._take_steps = _take_steps.compiled((self._static, kept), state)
        return time.perf_counter() - start

    def resume(self, step: int, step_in_epoch: int) -> None:
        """Nothing to pass over: an epoch's batches are a function of its key."""

    def begin(self, key: PRNGKeyArray) -> None:
        """Begin an epoch."""
        self._order = _shuffle(key, self.num_data, self.num_steps, self.batch_size)
        if self.layout is not None:
            self._order = self.layout.place(self._order)
        self._records = self._empty

    def advance(
        self, state: TrainState, first: int, last: int, interrupted: list[bool]
    ) -> tuple[TrainState, dict[str, np.ndarray], bool]:
        """Take the steps `first` to `last` of the epoch.

        Args:
            state: before them; its arrays are given up.
            first: number of the first step.
            last: number of the step after the last.
            interrupted: is no longer empty after Ctrl-C; steps on the device do not wait, and do not look at it.

        Returns:
            The state, the records of the steps that were taken, and whether the epoch ends here.
        """
        kept = (self._records, self._order, self._bound(first), self._bound(last), self.data, self._kwargs)
        state, self._records, end = self._take_steps((self._static, kept), state)
        end = int(end)
        return state, {name: np.asarray(x)[first:end] for name, x in self._records.items()}, end == self.num_steps

    def _bound(self, value: int) -> Array:
        bound = jnp.asarray(value)
        return bound if self.layout is None else self.layout.place(bound)

    def close(self) -> None:
        """Nothing to give back."""


class IndexedBatch(NamedTuple):
    """A batch of a stream that says which data its rows are, so that chains can be kept by datum.

    The model's data plate has the number of all data for size, and the batch's for `subsample_size`.

    Attributes:
        data: the model's positional argument, or a tuple of them.
        indices: of its rows among all data, from 0; no row twice.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpy as np
        import numpyro
        import numpyro.distributions as dist
        import optax
        from numpyro_kaem import IndexedBatch, LangevinMLE, fit

        x = 2.0 + 1.1 * np.random.default_rng(0).normal(size=200)


        class Batches:
            def __iter__(self):
                for rows in np.random.default_rng(1).permutation(200).reshape(4, 50):
                    yield IndexedBatch(x[rows], rows)


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", 200, subsample_size=x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        options = {"optimizer": optax.adam(0.1), "num_epochs": 15, "progress": False}
        result = fit(jax.random.key(0), model, Batches(), objective=LangevinMLE(persistent=True), **options)
        assert abs(result.params["location"] - x.mean()) < 0.3
        ```
    """

    data: Any
    indices: Any


def check_indices(name: str, indices: Any, num_rows: int) -> np.ndarray:
    """The indices of a batch, or an error that names what is wrong with them."""
    indices = np.asarray(indices)
    if indices.shape != (num_rows,) or indices.dtype.kind not in "iu" or len(np.unique(indices)) != num_rows:
        raise ValueError(f"indices of {name} must be {num_rows} different whole numbers, got {indices!r}")
    return indices.astype(np.int32)


class StreamFeed:
    """Batches from an iterable on the host, checked, and brought to the device while the step before runs.

    Args:
        data: iterable of batches, each the model's positional argument or a tuple of them. Iterated anew at every
            epoch, unless it is an iterator itself.
        steps_per_epoch: batches that make an epoch; None for all that a pass gives.
        layout: where they go; None for one device. Of several processes each gives its own share of the rows.
    """

    def __init__(self, data: Iterable, steps_per_epoch: int | None, layout: Layout | None):
        if jax.process_count() > 1 and layout is not None and steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch must be given for an iterable in several processes: all have to take the same number "
                "of steps"
            )
        self.source, self.num_steps, self.layout = data, steps_per_epoch, layout
        self.is_iterator = isinstance(data, Iterator)
        self._batches: Iterator | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="numpyro_kaem-batches")
        self._next: Future | None = None
        self._count, self._like, self._warned = 0, None, False
        self._submit()
        loaded = self._next.result()
        if loaded is None:
            raise ValueError("data gives no batch: an iterable must give at least one")
        first, self.indices = loaded
        self._first = loaded
        self.batch_size = self.num_data = self.num_rows = len(jax.tree.leaves(first)[0])
        # A model that is read for its structure needs values, and what its parameters start from is to be the same in
        # every process.
        self.first_batch = first if layout is None else jax.tree.map(jnp.asarray, jax.tree.map(to_host, first))
        self.of_all_processes = self.first_batch

    def compile(self, stepper: Stepper, state: TrainState, shardings: PyTree, kwargs: dict) -> float:
        """Compile a step, or find it compiled; returns the seconds that it took."""
        start = time.perf_counter()
        self._static = stepper, None if self.layout is None else self.layout.by_datum, shardings
        self._step = _take_step.compiled((self._static, *self._first, kwargs), state)
        self._kwargs, self._max_bad_steps = kwargs, stepper.max_bad_steps
        return time.perf_counter() - start

    def resume(self, step: int, step_in_epoch: int) -> None:
        """Pass over the batches that were used before the checkpoint.

        Args:
            step: steps of the whole run so far.
            step_in_epoch: those of the epoch at hand.
        """
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
        """Take up to `last` steps of the epoch; see `ArrayFeed.advance`.

        What is wrong with the data is raised when no step was taken before it; otherwise by the next call, so that the
        steps are not lost. After Ctrl-C no batch is waited for.
        """
        records, ended = [], False
        for number in range(first, last):
            if not self._wait(interrupted):
                break
            if records and self._next.exception() is not None:
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
            self._batches = None if not self.is_iterator else self._batches
            self._submit()
        records = jax.device_get(records)
        names = records[0] if records else {}
        return state, {name: np.stack([record[name] for record in records]) for name in names}, ended

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self) -> None:
        self._next = self._pool.submit(self._load)

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

    def _load(self) -> tuple | None:
        """The next batch, on the device; None at the end of a pass."""
        if self._batches is None:
            self._batches = iter(self.source)
        batch = next(self._batches, None)
        if batch is None and self.num_steps is not None and not self.is_iterator and self._count:
            # An epoch that is no whole number of passes goes on with the next one.
            self._batches = iter(self.source)
            batch = next(self._batches, None)
        if batch is None:
            return None
        name, indices = f"batch {self._count} of data", None
        if isinstance(batch, IndexedBatch):
            batch, indices = batch
        batch, num_rows = check_data(name, batch)
        if indices is not None:
            indices = check_indices(name, indices, num_rows)
        shapes = [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in jax.tree.leaves(batch)]
        if self._like is not None and shapes != self._like:
            if _is_shorter(shapes, self._like) and self._pass_is_over():
                return self._load_after_short(num_rows)
            raise ValueError(
                f"batch {self._count} of data has arrays {_describe(shapes)}, the first had {_describe(self._like)}: "
                "only the last batch of a pass may be short, and is left out"
            )
        self._like, self._count = shapes, self._count + 1
        if self.layout is None:
            return jax.tree.map(jnp.asarray, (batch, indices))
        if indices is not None:
            raise ValueError("an IndexedBatch needs one device: with a mesh pass all data as arrays")
        self.layout.check_batch("the rows of a batch of data, of all processes,", num_rows * jax.process_count())
        batch = jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(self.layout.by_datum, np.asarray(leaf)), batch
        )
        return batch, None

    def _pass_is_over(self) -> bool:
        """Whether no batch follows in this pass; one that does is kept for the next call."""
        ahead = next(self._batches, None)
        if ahead is not None:
            self._batches = itertools.chain([ahead], self._batches)
        return ahead is None

    def _load_after_short(self, num_rows: int) -> tuple | None:
        """What follows the short last batch of a pass, which is left out."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the last batch of a pass has {num_rows} rows, the others {self._like[0][0][0]}: it is left out, as "
                "batches of one compiled step have one shape (shuffle, so that no row is left out every time)",
                RuntimeWarning,
                stacklevel=2,
            )
        if self.num_steps is None or self.is_iterator:
            return None
        self._batches = iter(self.source)
        return self._load()


# The state goes into the memory of the one before it, which may be most of what there is.


@partial(jit_by_value, first_donated=1)
def _take_steps(kept: tuple, state: TrainState) -> tuple[TrainState, dict[str, Array], Array]:
    """Steps of an epoch on arrays, as `Stepper.run` takes them, on the devices of a layout if there is one."""
    (stepper, placement, shardings), (records, order, first, last, data, kwargs) = kept
    by_datum, replicated = placement or (None, None)

    def cut(data, rows):
        batch = jax.tree.map(lambda array: array[rows], data)
        return batch if by_datum is None else jax.lax.with_sharding_constraint(batch, by_datum)

    def place(state):
        return state if by_datum is None else jax.lax.with_sharding_constraint(state, shardings)

    with spreading(by_datum):
        state, *others = stepper.run(state, records, order, first, last, data, kwargs, cut, place)
    if by_datum is not None:
        others = jax.lax.with_sharding_constraint(others, replicated)
    return place(state), *others


@partial(jit_by_value, first_donated=1)
def _take_step(kept: tuple, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
    """A step on a batch of a stream."""
    (stepper, by_datum, shardings), batch, indices, kwargs = kept
    rows = slice(None) if indices is None else indices
    with spreading(by_datum):
        state, record = stepper.step(stepper.svi(state, batch, kwargs), state, batch, rows, kwargs)
    return state if by_datum is None else jax.lax.with_sharding_constraint(state, shardings), record


@jit_by_value
def _shuffle(key: PRNGKeyArray, num_data: int, num_steps: int, batch_size: int) -> Int[Array, "num_steps batch_size"]:
    """The rows of the batches of an epoch."""
    return jax.random.permutation(key, num_data)[: num_steps * batch_size].reshape(num_steps, batch_size)


def _is_shorter(shapes: list, like: list) -> bool:
    """Whether arrays differ from others only in having fewer rows."""
    return len(shapes) == len(like) and all(
        shape[1:] == other[1:] and shape[0] < other[0] and dtype == other_dtype
        for (shape, dtype), (other, other_dtype) in zip(shapes, like, strict=True)
    )


def _describe(shapes: list) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in shapes)
