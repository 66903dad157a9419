"""What the processes of a run on several hosts must agree on."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def any_process(value: bool) -> bool:
    """Whether the value is true in any process; they wait for each other here."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.array([value], np.uint8))))


def check_same_in_all_processes(**trees: PyTree) -> None:
    """Raise a ValueError that names the argument of `fit` whose arrays are not the same in every process."""
    if jax.process_count() == 1:
        return
    checksums = np.array([_checksum(tree) for tree in trees.values()], np.uint32)
    of_all = multihost_utils.process_allgather(checksums)
    if differing := [name for name, column in zip(trees, of_all.T, strict=True) if len(set(column.tolist())) > 1]:
        raise ValueError(
            f"with a mesh fit must be called with the same arguments in every process, but {' and '.join(differing)} "
            "differ between the processes: take keys that do not depend on jax.process_index(), and all of the data "
            "everywhere, or an iterable that gives each process its own share of every batch"
        )


def _checksum(tree: PyTree) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        checksum = zlib.crc32(f"{array.shape} {array.dtype}".encode(), checksum)
        checksum = zlib.crc32(array.view(np.uint8), checksum)
    return checksum


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
