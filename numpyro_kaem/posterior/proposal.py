"""An encoder as the proposal: a NumPyro guide, read as `LatentModel` reads a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from numpyro_kaem.models.latent_model import LatentModel


def check_guide(guide: Callable | None, guide_params: dict[str, Any] | None) -> None:
    """Raise a ValueError for parameters of a guide that there is none of."""
    if guide is None and guide_params is not None:
        raise ValueError(f"guide_params {sorted(guide_params)} need a guide, but guide is None")


def read_guide(
    guide: Callable | None, guide_params: dict[str, Any] | None, latent_model: LatentModel
) -> LatentModel | None:
    """A guide on the data of a model: its `sample_prior` draws from q(z | x), its `log_prior` is log q(z | x)."""
    if guide is None:
        return None
    options = {"plate": latent_model.plate, "rng_key": latent_model.rng_key, **latent_model.model_kwargs}
    try:
        encoder = LatentModel(guide, dict(guide_params or {}), *latent_model.data, **options)
    except ValueError as error:
        raise ValueError(f"guide cannot be read, as if it were a model: {error}") from error
    _check_sites(latent_model, encoder)
    shared = sorted(set(encoder.plate_indices) & set(latent_model.plate_indices))
    # A sub-sample is drawn once, by the model.
    return eqx.tree_at(
        lambda model: [model.plate_indices[name] for name in shared],
        encoder,
        [latent_model.plate_indices[name] for name in shared],
    )


def in_support(latent_model: LatentModel, z: dict[str, Array], *x: Any) -> Bool[Array, ""]:
    """Whether the latents of a datum, arguments as those of `LatentModel.log_prior`, lie in their prior's support."""
    sites, _ = latent_model.run(latent_model.lead(z), latent_model.lead(x or latent_model.first_row))
    return jnp.all(jnp.stack([jnp.all(sites[name]["fn"].support(sites[name]["value"])) for name in z]))


def is_excluded(latent_model: LatentModel, encoder: LatentModel, z: dict[str, Array], *x: Any) -> Bool[Array, ""]:
    """Whether latents of a guide are outside of the prior's support, of which NumPyro's densities do not say."""
    # What rounding has put outside of both supports, such as a point of the simplex, belongs to both.
    return in_support(encoder, z, *x) & ~in_support(latent_model, z, *x)


def _check_sites(latent_model: LatentModel, encoder: LatentModel) -> None:
    if observed := [*encoder.observed_names, *encoder.global_names]:
        raise ValueError(f"guide must have latent sites only, but it observes {observed}")
    expected, given = latent_model.latent_shapes, encoder.latent_shapes
    missing, extra = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or extra:
        raise ValueError(
            f"guide must have the latent sites of the model, {sorted(expected)}: missing {missing}, extra {extra}"
        )
    if encoder.plate != latent_model.plate:
        if latent_model.plate is None:
            where = f"outside of plate {encoder.plate!r}, as in the model"
        else:
            where = f"inside plate {latent_model.plate!r}, but {list(encoder.outside_sites)} are outside"
        raise ValueError(f"guide must have latent sites {where}")
    shapes = {name: (expected[name], given[name]) for name in expected if expected[name] != given[name]}
    if shapes:
        text = ", ".join(f"{name!r} has {theirs} instead of {ours}" for name, (ours, theirs) in shapes.items())
        raise ValueError(f"guide must have the shapes of the model for one datum, but {text}")
