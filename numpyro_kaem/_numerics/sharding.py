"""Arrays that are spread over devices: arguments as they come, and what a program makes of its own accord."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

_SPREADING: ContextVar[NamedSharding | None] = ContextVar("spreading", default=None)


def with_auto_axes(mesh: Mesh) -> Mesh:
    """The same devices, with axes along which the compiler divides the work by itself."""
    return Mesh(mesh.devices, mesh.axis_names)


def compiler_sharded(tree: PyTree) -> PyTree:
    """The same arrays where they are, their meshes with axes as of `with_auto_axes`.

    On one of `jax.make_mesh` shardings are part of types, which models written for one device do not know of.
    """

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer) or not isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf
        mesh = leaf.sharding.mesh
        if not isinstance(mesh, Mesh) or mesh == with_auto_axes(mesh):
            return leaf
        return jax.device_put(leaf, NamedSharding(with_auto_axes(mesh), leaf.sharding.spec))

    return jax.tree.map(of_leaf, tree)


@contextlib.contextmanager
def spreading(sharding: NamedSharding | None) -> Iterator[None]:
    """While programs are traced in it, `spread` divides arrays among the devices; None leaves them as they are."""
    token = _SPREADING.set(sharding)
    try:
        yield
    finally:
        _SPREADING.reset(token)


def spread(tree: PyTree) -> PyTree:
    """Arrays whose leading axis is divided among devices, where a caller asks for it and it divides evenly.

    Draws from the prior belong to no datum: every device would run the decoder on all of them.
    """
    sharding = _SPREADING.get()
    if sharding is None:
        return tree
    num_parts = _num_parts(sharding)
    return jax.tree.map(
        lambda leaf: leaf if len(leaf) % num_parts else jax.lax.with_sharding_constraint(leaf, sharding), tree
    )


def take_rows(rows: PyTree, keys: jax.Array, indices: np.ndarray) -> tuple[PyTree, jax.Array]:
    """Some of the rows and their keys, divided among devices as all the rows were, where that divides them evenly."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(rows) if _is_divided(leaf)]
    is_all = np.array_equal(indices, np.arange(len(keys)))
    if not shardings:
        return (rows, keys) if is_all else jax.tree.map(lambda leaf: leaf[indices], (rows, keys))

    by_row = NamedSharding(shardings[0].mesh, PartitionSpec(shardings[0].spec[0]))

    def take(leaf: Any) -> Any:
        sharding = leaf.sharding if _is_divided(leaf) else by_row
        # Taken by index, rows would be gathered on every device, and all work on them done on each.
        taken = leaf if is_all else leaf[indices]
        return jax.device_put(taken, sharding) if len(taken) % _num_parts(sharding) == 0 else taken

    return jax.tree.map(take, (rows, keys))


def _is_divided(leaf: Any) -> bool:
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and len(sharding.spec) > 0 and sharding.spec[0] is not None


def _num_parts(sharding: NamedSharding) -> int:
    """Number of parts of the leading axis."""
    names = sharding.spec[0]
    names = (names,) if isinstance(names, str) else names
    return math.prod(sharding.mesh.shape[name] for name in names)
