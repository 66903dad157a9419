"""Data, chains and parameters on a mesh of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from numpyro_kaem._checkpoints.arrays import checksum
from numpyro_kaem._numerics.sharding import with_auto_axes
from numpyro_kaem.objectives.objective import STATE


class Layout(NamedTuple):
    """Where things are: data and chains along the first axis of a mesh, all else everywhere unless `param_specs` says.

    Without a mesh all is on one device: shardings are None, and arrays stay as they are.
    """

    mesh: Mesh | None
    param_specs: Callable[[str, Any], PartitionSpec] | None

    @property
    def num_shards(self) -> int:
        """Number of parts that data are divided into."""
        return 1 if self.mesh is None else self.mesh.shape[self.mesh.axis_names[0]]

    @property
    def replicated(self) -> NamedSharding | None:
        """The same on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_datum(self) -> NamedSharding | None:
        """The leading axis divided."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))

    def padded(self, num_data: int) -> int:
        """The number of rows that divides evenly."""
        return -(-num_data // self.num_shards) * self.num_shards

    def place_data(self, data: PyTree) -> PyTree:
        """Arrays divided along their leading axis, filled up with copies of their last row."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, data)

        def place(array):
            array = np.asarray(array)
            missing = self.padded(len(array)) - len(array)
            filled = np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing else array
            return _place(filled, self.by_datum)

        return jax.tree.map(place, data)

    def state_shardings(self, state: PyTree, sites: set[str]) -> PyTree:
        """The sharding of every leaf of a training state of a model with these parameter sites."""
        if self.mesh is None:
            return None

        def sharding(path, leaf):
            keys = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
            if STATE in keys and "per_datum" in keys:
                return self.by_datum
            # Parameters, and what the optimiser keeps of each, lie below the name of their site.
            site = next((key for key in keys if key in sites), None)
            if self.param_specs is None or site is None:
                return self.replicated
            spec = self.param_specs(site, leaf)
            if not isinstance(spec, PartitionSpec):
                raise TypeError(
                    f"param_specs must return a jax.sharding.PartitionSpec, got {spec!r} for {site!r}: PartitionSpec() "
                    "means a copy on every device"
                )
            return NamedSharding(self.mesh, spec if len(spec) <= jnp.ndim(leaf) else PartitionSpec())

        return jax.tree_util.tree_map_with_path(sharding, state)

    def place(self, tree: PyTree, shardings: PyTree | None = None) -> PyTree:
        """A tree of arrays, the same in every process, on the devices of the mesh."""
        if self.mesh is None:
            return tree
        shardings = jax.tree.map(lambda _: self.replicated, tree) if shardings is None else shardings
        return jax.tree.map(_place, tree, shardings)

    def check_batch(self, what: str, batch_size: int) -> None:
        """Raise a ValueError unless the mesh divides a batch of this size."""
        if batch_size % self.num_shards:
            raise ValueError(
                f"{what} must be a multiple of the {self.num_shards} devices along mesh axis "
                f"{self.mesh.axis_names[0]!r}, got {batch_size}"
            )


def make_layout(mesh: Mesh | None, param_specs: Callable | None) -> Layout:
    """The layout on a user's mesh, whose first axis divides the data; of one device for None."""
    if mesh is None and param_specs is not None:
        raise ValueError("param_specs need a mesh, whose axes they name")
    return Layout(None if mesh is None else with_auto_axes(mesh), param_specs)


def with_shardings(tree: PyTree, shardings: PyTree | None) -> PyTree:
    """In a compiled program: arrays that have these shardings there, where there are any."""
    return tree if shardings is None else jax.lax.with_sharding_constraint(tree, shardings)


def check_same_in_all_processes(**trees: PyTree) -> None:
    """Raise a ValueError that names the argument of `fit` whose arrays are not the same in every process."""
    if jax.process_count() == 1:
        return
    of_all = multihost_utils.process_allgather(np.array([checksum(tree) for tree in trees.values()], np.uint32))
    if differing := [name for name, column in zip(trees, of_all.T, strict=True) if len(set(column.tolist())) > 1]:
        raise ValueError(
            f"with a mesh fit must be called with the same arguments in every process, but {' and '.join(differing)} "
            "differ between the processes: take keys that do not depend on jax.process_index(), and all of the data "
            "everywhere, or an iterable that gives each process its own share of every batch"
        )


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
