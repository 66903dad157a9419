"""What the model says of a posterior: draws from the prior, replicated data, log-likelihoods by observation."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from numpyro_kaem._compilation.options import LOOP
from numpyro_kaem._compilation.programs import jit_by_program
from numpyro_kaem._numerics.convolutions import channels_last
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.models.structure import scaled_log_prob

# Runs of the model that are held at once, and numbers that they may give.
_RUNS_AT_ONCE = 2**10
_NUMBERS_AT_ONCE = 2**22


def prior_draws(
    latent_model: LatentModel, key: PRNGKeyArray, num_samples: int
) -> dict[str, Shaped[np.ndarray, "num_data num_samples ..."]]:
    """Draw from the prior, independently for each datum."""
    batch_size = _batch_size(num_samples * sum(map(math.prod, latent_model.latent_shapes.values())))

    def draws_from_prior(latent_model: LatentModel, keys: Array) -> dict[str, Array]:
        def of_datum(args: tuple[Array, tuple]) -> dict[str, Array]:
            return latent_model.sample_prior(args[0], num_samples, *args[1])

        return jax.lax.map(of_datum, (keys, rows_by_datum(latent_model)), batch_size=batch_size)

    return run_with(latent_model, draws_from_prior, jax.random.split(key, latent_model.num_data))


def predictive_draws(
    latent_model: LatentModel, key: PRNGKeyArray, latents: dict[str, np.ndarray], observed: dict[str, np.ndarray]
) -> dict[str, Shaped[np.ndarray, "num_data num_draws ..."]]:
    """Draws of each observed site at each draw of the latents, without sites that cannot be sampled."""
    axes = {name: latent_model.row_axis(name) for name in observed}

    def draw_site(name: str, fn: Any, key: Array) -> Array | None:
        shape, axis = observed[name].shape[1:], axes[name]
        if axis is not None:
            split = len(shape) + 1 + axis
            shape = (*shape[:split], 1, *shape[split:])
        # A site outside every plate takes an observed array to a scalar distribution.
        fn = fn.expand(shape[: len(shape) - fn.event_dim])
        try:
            value = fn.sample(key)
        except NotImplementedError:
            warnings.warn(
                f"observed site {name!r} has a {type(fn).__name__} that cannot be sampled: it is left out of the "
                "posterior predictive",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return value if axis is None else jnp.squeeze(value, axis)

    def run(latent_model: LatentModel, key: Array, z: dict[str, Array], row: tuple) -> dict[str, Array]:
        distributions = latent_model.evaluate(
            lambda out: {name: out["distributions"][name] for name in observed},
            latent_model.lead(z),
            latent_model.lead(row),
        )
        keys = jax.random.split(key, len(observed))
        draws = {name: draw_site(name, distributions[name], k) for name, k in zip(observed, keys, strict=True)}
        return {name: value for name, value in draws.items() if value is not None}

    return _map_draws(latent_model, run, key, latents, sum(value[0].size for value in observed.values()))


def pointwise_density(
    latent_model: LatentModel, latents: dict[str, np.ndarray]
) -> tuple[Float[np.ndarray, "num_data num_draws"], dict[str, Float[np.ndarray, "num_data num_draws ..."]]]:
    """The log-prior of draws, and by observed site the terms of log p(x | z): one for each element of its batch."""
    plate, sites_of = latent_model.plate, latent_model.structure.sites
    axes = {name: () if plate is None else sites_of[name].plates[plate] for name in latent_model.observed_names}

    def run(latent_model: LatentModel, _: Array, z: dict[str, Array], row: tuple) -> tuple[Array, dict[str, Array]]:
        sites, _ = latent_model.run(latent_model.lead(z), latent_model.lead(row))
        log_prior = jnp.asarray(sum(jnp.sum(latent_model.draw_terms(sites, name)) for name in z))
        return log_prior, {name: jnp.squeeze(scaled_log_prob(sites[name]), axis) for name, axis in axes.items()}

    size = sum(math.prod(sites_of[name].shape) for name in axes)
    return _map_draws(latent_model, run, jax.random.key(0), latents, size // latent_model.num_data)


def deterministic_values(
    latent_model: LatentModel, latents: dict[str, np.ndarray]
) -> dict[str, Shaped[np.ndarray, "num_data num_draws ..."]]:
    """The values of `numpyro.deterministic` sites at draws of the latents, `(num_data, num_draws, *shape)`."""
    names = tuple(latent_model.structure.deterministic)
    if not names:
        return {}

    def values(latent_model: LatentModel, z: dict[str, Array], rows: tuple, num_rows: int) -> dict[str, Array]:
        z = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], num_rows, 0), z)
        # A model that itself cuts its data does so at the indices.
        shown = 1 if latent_model.structure.has_subsample_statement else num_rows
        rows = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], shown, 0), rows)
        sites, _ = latent_model.run(z, rows, jnp.zeros(num_rows, int))
        return {name: jnp.asarray(sites[name]["value"]) for name in names}

    axes: dict[str, tuple[int, ...]] = dict.fromkeys(names, ())
    if latent_model.plate is not None:
        # The axis of the data plate is the one that is as long as there are rows.
        first = {name: jnp.asarray(z[0, 0]) for name, z in latents.items()}
        row = latent_model.first_row
        one, two = (jax.eval_shape(lambda k=k: values(latent_model, first, row, k)) for k in (1, 2))
        for name in names:
            sizes = zip(one[name].shape, two[name].shape, strict=True)
            axes[name] = tuple(axis for axis, (m, n) in enumerate(sizes) if m != n)[:1]

    def run(latent_model: LatentModel, _: Array, z: dict[str, Array], row: tuple) -> dict[str, Array]:
        if latent_model.plate is None:
            sites, _ = latent_model.run(z, row)
            return {name: jnp.asarray(sites[name]["value"]) for name in names}
        return {name: jnp.squeeze(x, axes[name]) for name, x in values(latent_model, z, row, 1).items()}

    size = sum(map(math.prod, latent_model.latent_shapes.values()))
    return _map_draws(latent_model, run, jax.random.key(0), latents, size)


def constant_data(latent_model: LatentModel, observed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's positional arrays `(num_data, ...)` that are no observed values, by the names of its signature."""
    arguments = inspect.signature(latent_model.model).bind_partial(*latent_model.rows).arguments
    constants = {}
    for path, leaf in jax.tree.leaves_with_path(arguments):
        value = np.asarray(leaf)
        by_datum = value[None] if latent_model.plate is None else value
        equal_nan = np.issubdtype(value.dtype, np.floating)
        if not any(np.array_equal(by_datum, other, equal_nan=equal_nan) for other in observed.values()):
            name = jax.tree_util.keystr(path, simple=True, separator="_")
            # The name of the plate is that of a dimension.
            constants[f"{name}_value" if name == latent_model.plate else name] = by_datum
    return constants


def rows_by_datum(latent_model: LatentModel) -> tuple:
    """The positional data with the data axis first, also where the whole data set is one datum."""
    rows = latent_model.rows
    return jax.tree.map(lambda leaf: leaf[None], rows) if latent_model.plate is None else rows


def _batch_size(numbers_per_run: int) -> int:
    return min(_RUNS_AT_ONCE, max(1, _NUMBERS_AT_ONCE // max(1, numbers_per_run)))


def _map_draws(
    latent_model: LatentModel, run: Callable, key: PRNGKeyArray, latents: dict[str, np.ndarray], numbers_per_run: int
) -> Any:
    """Apply `run(latent_model, key, latents, row)` to every draw of every datum, some at a time."""
    num_data, num_draws = next(iter(latents.values())).shape[:2]

    def at_every_draw(latent_model: LatentModel, keys: Array, latents: dict[str, Array]) -> Any:
        rows = rows_by_datum(latent_model)

        def of_pair(args: tuple[Array, dict[str, Array], Array]) -> Any:
            key, z, index = args
            return run(latent_model, key, z, jax.tree.map(lambda leaf: leaf[index], rows))

        flat = jax.tree.map(lambda z: z.reshape(-1, *z.shape[2:]), latents)
        indices = jnp.repeat(jnp.arange(num_data), num_draws)
        return jax.lax.map(channels_last(of_pair), (keys, flat, indices), batch_size=_batch_size(numbers_per_run))

    results = run_with(latent_model, at_every_draw, jax.random.split(key, num_data * num_draws), latents)
    return jax.tree.map(lambda x: x.reshape(num_data, num_draws, *x.shape[1:]), results)


def run_with(latent_model: LatentModel, function: Callable, *args: Any) -> Any:
    """`function(latent_model, *args)` on the host, compiled once for all models that compute the same."""
    return jax.device_get(jit_by_program(function, compiler_options=LOOP)(latent_model, *args))
