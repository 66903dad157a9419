"""The arrays of a checkpoint: from a pytree to files written by Orbax, and back to where they were."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree under their paths, such as `state.optim_state['weight'][0]`; no class is named."""
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def signature(leaves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every leaf, as JSON has them; a typed key's dtype names its generator."""
    dtypes = {path: leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype for path, leaf in leaves.items()}
    return {path: {"shape": list(np.shape(leaf)), "dtype": str(dtypes[path])} for path, leaf in leaves.items()}


def checksum(tree: PyTree) -> int:
    """A number of 32 bits that differs between trees of arrays and numbers whose shapes, dtypes or contents do."""
    number = 0
    for leaf in jax.tree.leaves(tree):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        number = zlib.crc32(f"{array.shape} {array.dtype}".encode(), number)
        number = zlib.crc32(array.view(np.uint8).data, number)
    return number


def to_host(leaf: Any) -> np.ndarray:
    """The whole of a leaf as a NumPy array, a typed key as its data; collective where processes share the leaf."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def to_device(array: np.ndarray, like: Any) -> Any:
    """What `to_host` made of a leaf, as the same kind of leaf as `like` and with its sharding."""
    if _is_key(like):
        data = to_device(array, jax.random.key_data(like))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if not hasattr(like, "dtype"):
        return type(like)(array.item())
    array = array.view(like.dtype)
    if not isinstance(like, jax.Array):
        return array if isinstance(like, np.ndarray) else array[()]
    if not like.committed:
        # Committed to its device, it could no longer meet data that are spread over several devices.
        restored = jnp.array(array)
    else:
        restored = jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])
    if restored.dtype != like.dtype:
        raise ValueError(f"restoring {like.dtype} arrays takes JAX's x64 mode (jax_enable_x64), which is off")
    return restored


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write non-empty arrays as a new Orbax checkpoint, from this process alone; an OSError if they cannot be."""
    import orbax.checkpoint as ocp

    # The storage format knows NumPy's own dtypes and bfloat16 but not all of the narrow ones, which take a byte each.
    arrays = {
        path: array if array.dtype.kind in "biufc" or array.dtype == jnp.bfloat16 else array.view(np.uint8)
        for path, array in arrays.items()
    }
    with _checkpointer() as checkpointer:
        try:
            checkpointer.save(os.fspath(folder), args=ocp.args.PyTreeSave(item=arrays))
        except ValueError as error:
            # So says TensorStore, which does the writing, when the disk is full.
            code = re.search(r"os_error_code='(\d+)'|OS error (\d+)", str(error))
            if code is None:
                raise OSError(f"Orbax could not write {folder}: {str(error).splitlines()[0]}") from error
            number = int(code[1] or code[2])
            raise OSError(number, os.strerror(number), os.fspath(folder)) from error


def read_arrays(folder: Path, paths: list[str]) -> dict[str, np.ndarray]:
    """Read arrays that `write_arrays` has written, by this process alone."""
    import orbax.checkpoint as ocp

    restore_args = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths}
    args = ocp.args.PyTreeRestore(item=dict.fromkeys(paths, 0), restore_args=restore_args)
    with _checkpointer() as checkpointer:
        try:
            return checkpointer.restore(os.fspath(folder), args=args)
        except Exception as error:
            raise RuntimeError(
                f"the checkpoint {folder} is undamaged but orbax-checkpoint {ocp.__version__} cannot read it: {error}"
            ) from error


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """An Orbax checkpointer that waits for no other process: JSON and TensorStore's arrays, no pickle."""
    import orbax.checkpoint as ocp

    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"numpyro_kaem_{process}"
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, multiprocessing_options=options)
    logger = logging.getLogger("absl")

    def drop(record):  # several tracebacks for a full disk; the exception itself comes through
        return False

    logger.addFilter(drop)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
            yield checkpointer
    finally:
        logger.removeFilter(drop)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
