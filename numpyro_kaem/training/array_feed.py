"""Batches of arrays, cut and shuffled on the device."""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem._numerics.sharding import spreading
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.training.sharding import Layout
from numpyro_kaem.training.step import Stepper, TrainState, empty_records


class ArrayFeed:
    """Minibatches of arrays that are on the device, shuffled there; an epoch's steps are one compiled call or a few."""

    def __init__(self, data: tuple, num_data: int, batch_size: int, layout: Layout | None):
        self.num_data, self.batch_size, self.layout = num_data, batch_size, layout
        self.num_steps = num_data // batch_size
        self.data = jax.tree.map(jnp.asarray, data) if layout is None else layout.place_data(data)
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

    def num_chains(self, latent_model: LatentModel) -> int:
        """For how many data chains are kept: for those that fill up the last device as well."""
        return self.num_data if self.layout is None else self.layout.padded(self.num_data)

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
        """Take the steps from `first` to before `last`: the state (the old is given up), records, and if the epoch ends.

        `interrupted` is no longer empty after Ctrl-C; steps on the device do not wait, and do not look at it.
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


@jit_by_value
def _shuffle(key: PRNGKeyArray, num_data: int, num_steps: int, batch_size: int) -> Int[Array, "num_steps batch_size"]:
    """The rows of the batches of an epoch."""
    return jax.random.permutation(key, num_data)[: num_steps * batch_size].reshape(num_steps, batch_size)
