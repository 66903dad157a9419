"""Held-out data: what is said of data that a model has not been trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem._compilation.options import LOOP
from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem._numerics.sharding import spreading
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior.weights import log_evidence
from numpyro_kaem.training.data import check_data
from numpyro_kaem.training.sharding import Layout


def place_held_out(data: Any, like: tuple, layout: Layout) -> tuple[tuple, int]:
    """Held-out data on the device or the mesh, which may take a few rows more, and their number."""
    data, num_data = check_data("held_out", data, like=like)
    return layout.place_data(data), num_data


def check_held_out(read: Callable, data: tuple) -> None:
    """Raise a ValueError where the model cannot be called with the held-out data; nothing is computed."""
    try:
        jax.eval_shape(lambda data: read(*data) and None, data)
    except ValueError as error:
        raise ValueError(
            f"held_out does not fit the model, whose plate must take any number of rows: {error}"
        ) from error


@partial(jit_by_value, compiler_options=LOOP)
def score(
    static: tuple, data: tuple, kwargs: dict[str, Any], params: dict[str, Any], key: PRNGKeyArray
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean log-likelihood of data, as `place_held_out` returns them, and its error by the spread between data."""
    model, plate, by_datum, num_data, num_samples = static
    model_key, draw_key = jax.random.split(key)
    latent_model = LatentModel(model, params, *data, plate=plate, rng_key=model_key, check=False, **kwargs)
    with spreading(by_datum):
        log_probs, _ = log_evidence(latent_model, draw_key, num_samples)
    log_probs = log_probs[:num_data]
    return jnp.mean(log_probs), jnp.std(log_probs) / num_data**0.5
