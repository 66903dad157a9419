"""Reading a model at a sampler's call: data as arguments of programs or, where it cannot be traced, as they are."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from numpyro_kaem._numerics.sharding import compiler_sharded
from numpyro_kaem.models.data import NotAnArray, as_arrays
from numpyro_kaem.models.latent_model import LatentModel

# What JAX says where a model needs the value of something traced, and `Columns` where it needs a table.
NEEDS_VALUES = (jax.errors.JAXTypeError, jax.errors.JAXIndexError, NotAnArray)


def read_model(
    model: Callable, params: dict[str, Any], data: tuple, model_kwargs: dict[str, Any], plate: str | None
) -> LatentModel:
    """Read a model whose data are arguments of compiled programs or, where it cannot be traced, part of the model.

    A model that calls NumPy on its data, or has an `if` that depends on them, needs their values. What no data plate
    divides is then given to it as it was passed; programs are compiled for these values, and for others anew.
    """
    params = compiler_sharded(params)

    def read(model: Callable, data: tuple, model_kwargs: dict[str, Any]) -> LatentModel:
        data, model_kwargs = compiler_sharded((data, model_kwargs))
        return LatentModel(model, params, *data, plate=plate, **model_kwargs)

    try:
        arrays = as_arrays("data", data), as_arrays("model_kwargs", model_kwargs)
        if any(type(leaf) is float for leaf in jax.tree.leaves(arrays)):
            # As arguments of compiled programs, like arrays, unless the model makes of them what is none, such as the
            # domain of a basis. (Integers and flags shape a model.)
            with contextlib.suppress(Exception):
                floats = jax.tree.map(lambda leaf: jnp.asarray(leaf) if type(leaf) is float else leaf, arrays)
                return read(model, *floats)
        return read(model, *arrays)
    except (*NEEDS_VALUES, AttributeError, TypeError) as error:
        first: Exception = error
    # Arrays first: a Series inside of a model is an array to NumPy only.
    for with_values in (_of_numpy, lambda given: given):
        try:
            args, kwargs = with_values(data), with_values(model_kwargs)
            if _is_global(model, params, args, kwargs, plate):
                return read(partial(model, *args, **kwargs), (), {})
            return read(partial(model, **kwargs), as_arrays("data", data), {})
        except (*NEEDS_VALUES, AttributeError, TypeError):
            continue
    better = explained(first)
    raise first if better is first else better from first


def _of_numpy(given: Any) -> Any:
    """Data as NumPy arrays, whose values are known wherever they are used."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, as_arrays("data", given)
    )


def explained(error: Exception) -> Exception:
    """An error that says what to do about a model that cannot be traced; any other error as it is."""
    if not isinstance(error, NEEDS_VALUES):
        return error
    return TypeError(
        f"the model needs the values of its data{_where(error)}, but rows of a data plate are arguments of compiled "
        "programs, which have none: use jax.numpy in place of numpy, jnp.where in place of if, x.shape[0] for lengths, "
        "and give what is not data per row by keyword or from the enclosing scope, as Python's numbers or NumPy arrays "
        f"({type(error).__name__}: {str(error).splitlines()[0]})"
    )


def first_data(latent_model: LatentModel, indices: np.ndarray) -> LatentModel:
    """The model with some of its data alone, for what an interrupted run has to tell."""
    rows = jax.tree.map(lambda leaf: leaf[indices], latent_model.rows)
    try:
        return latent_model.at(data=eqx.combine(rows, latent_model.data))
    except (ValueError, TypeError) as error:
        raise KeyboardInterrupt(
            f"{len(indices)} of {latent_model.num_data} data were finished, but the model needs all of its rows"
        ) from error


def _is_global(model: Callable, params: dict[str, Any], data: tuple, model_kwargs: dict, plate: str | None) -> bool:
    """Whether no plate divides the data of a model that is given them as they are."""
    try:
        return LatentModel(partial(model, *data, **model_kwargs), params, plate=plate, check=False).plate is None
    except (ValueError, KeyError, IndexError):
        return False


def _where(error: BaseException) -> str:
    """The line of the caller's code at which an error arose."""
    libraries = tuple(os.path.dirname(str(module.__file__)) for module in (jax, np, numpyro))
    own = os.path.dirname(os.path.dirname(__file__))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((own, *libraries))
    ]
    return f" at line {frames[-1].lineno} of {Path(frames[-1].filename).name}, `{frames[-1].line}`" if frames else ""
