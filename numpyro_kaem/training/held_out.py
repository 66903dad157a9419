"""Held-out data: what is said of data that a model has not been trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem._compilation.options import LOOP
from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem._numerics.sharding import spreading
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior import Sampler
from numpyro_kaem.posterior.proposal import read_guide
from numpyro_kaem.posterior.weights import log_evidence


def check_held_out(read: Callable, data: tuple) -> None:
    """Raise a ValueError where the model cannot be called with the held-out data; nothing is computed."""
    try:
        jax.eval_shape(lambda data: read(*data) and None, data)
    except ValueError as error:
        raise ValueError(
            f"held_out does not fit the model, whose plate must take any number of rows: {error}"
        ) from error


# A mean log-likelihood, and its standard error by the spread between data.
Score = tuple[float, float]


def score_by_prior(
    static: tuple,
    data: tuple,
    kwargs: dict[str, Any],
    params: dict[str, Any],
    guide_params: Callable,
    key: PRNGKeyArray,
) -> Score:
    """The score of data by draws from the prior; `static` is a model, plate, sharding and numbers of data and draws."""
    mean, std_error = _score(static, data, kwargs, params, key)
    return float(mean), float(std_error)


class SamplerScore:
    """The score of the first `num_data` rows by a posterior sampler, whose first run compiles its programs.

    Its guide has the parameters of the guide that is trained, where it is that one and was given none.
    """

    def __init__(self, sampler: Sampler, model: Callable, guide: Callable, plate: str | None, num_data: int):
        self.model, self.num_data = model, num_data
        self.sampler = sampler.having(progress=False, plate=plate if sampler.plate is None else sampler.plate)
        self.guide, given = getattr(sampler, "guide", None), getattr(sampler, "guide_params", None)
        self.is_trained = self.guide is not None and self.guide == guide and given is None

    def check(self, latent_model: LatentModel, guide_params: dict[str, Any], mesh: Any) -> None:
        """Raise a ValueError where the sampler's guide does not suit the model, or several processes train together."""
        if mesh is not None and jax.process_count() > 1:
            raise ValueError(
                "a sampler of held_out data needs one process, but several train on this mesh: leave it out, for a "
                "score by draws from the prior, or call the sampler's run with the parameters that `fit` returns"
            )
        if self.guide is not None:
            sampler: Any = self._at(lambda: guide_params)
            read_guide(self.guide, sampler.guide_params, latent_model)

    def __call__(
        self, data: tuple, kwargs: dict[str, Any], params: dict[str, Any], guide_params: Callable, key: PRNGKeyArray
    ) -> Score | None:
        """The score; None where Ctrl-C has cut the sampler short."""
        try:
            posterior = self._at(guide_params).run(key, self.model, params, *data, **kwargs)
        except KeyboardInterrupt as interrupt:
            if not interrupt.args:  # Python's own, of a second Ctrl-C
                raise
            return None
        if posterior.unfinished is not None:
            return None
        log_probs = np.asarray(posterior.log_evidence, float)[: self.num_data]
        with np.errstate(invalid="ignore"):  # where one of them is -inf
            return float(np.mean(log_probs)), float(np.std(log_probs)) / self.num_data**0.5

    def _at(self, guide_params: Callable) -> Sampler:
        """The sampler with the parameters that its guide has by now."""
        return self.sampler.having(guide_params=guide_params()) if self.is_trained else self.sampler


@partial(jit_by_value, compiler_options=LOOP)
def _score(
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
