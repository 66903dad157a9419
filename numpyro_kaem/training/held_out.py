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
    """The mean log-likelihood of the first `num_data` rows, and its standard error, by the spread between them."""
    model, plate, by_datum, num_data, num_samples = static
    model_key, draw_key = jax.random.split(key)
    latent_model = LatentModel(model, params, *data, plate=plate, rng_key=model_key, check=False, **kwargs)
    with spreading(by_datum):
        log_probs, _ = log_evidence(latent_model, draw_key, num_samples)
    log_probs = log_probs[:num_data]
    return jnp.mean(log_probs), jnp.std(log_probs) / num_data**0.5
