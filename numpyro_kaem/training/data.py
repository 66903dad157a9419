"""Data as users pass them, checked: arrays, iterables of batches, batches with the indices of their rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from numpyro_kaem.models.data import as_arrays


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
        import numpyro, numpyro.distributions as dist, optax
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


def is_stream(data: Any) -> bool:
    """Whether data are an iterable of batches, and not arrays (or what NumPy can make one of) or a tuple of them."""
    return isinstance(data, Iterable) and not (
        isinstance(data, tuple | list | dict | str) or hasattr(data, "__array__")
    )


def check_data(name: str, data: Any, like: tuple | None = None) -> tuple[tuple, int]:
    """The positional arguments as arrays, whose rows must resemble those of `like`, and their number of rows."""
    data = as_arrays(name, tuple(data) if isinstance(data, tuple | list) else (data,))
    data = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), data)
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(data):
        label = name + jax.tree_util.keystr(path)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"{label} is spread over several processes: pass all rows in every process, as an array of its own, or "
                "an iterable that gives each process its own share of every batch"
            )
        array = np.asarray(leaf)
        if array.dtype == object:
            raise TypeError(
                f"{label} must be an array of numbers, got {leaf[()]!r}: an iterable of batches has an __iter__ that "
                "yields those of an epoch, and a function that makes one is called first"
            )
        if array.ndim == 0:
            raise ValueError(
                f"{label} must lead with the data axis, got a scalar: pass scalars as model_kwargs, and of a list "
                "of numbers numpy.array(...)"
            )
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
