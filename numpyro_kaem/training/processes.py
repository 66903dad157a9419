"""What the processes of a run on several hosts must agree on."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from numpyro_kaem._checkpoints.arrays import checksum


def any_process(value: bool) -> bool:
    """Whether the value is true in any process; they wait for each other here."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.array([value], np.uint8))))


def check_same_in_all_processes(**trees: PyTree) -> None:
    """Raise a ValueError that names the argument of `fit` whose arrays are not the same in every process."""
    if jax.process_count() == 1:
        return
    checksums = np.array([checksum(tree) for tree in trees.values()], np.uint32)
    of_all = multihost_utils.process_allgather(checksums)
    if differing := [name for name, column in zip(trees, of_all.T, strict=True) if len(set(column.tolist())) > 1]:
        raise ValueError(
            f"with a mesh fit must be called with the same arguments in every process, but {' and '.join(differing)} "
            "differ between the processes: take keys that do not depend on jax.process_index(), and all of the data "
            "everywhere, or an iterable that gives each process its own share of every batch"
        )
