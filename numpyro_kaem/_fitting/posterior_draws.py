"""Draws of a posterior: reading them from what ArviZ or NumPyro holds them in, without ArviZ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from numpyro_kaem._fitting.sample_checks import check_samples, check_weights


class PosteriorDraws(NamedTuple):
    """Draws of one variable or several, chains one after the other."""

    name: str | Sequence[str]
    flat: np.ndarray  # (num_draws, num_coordinates), variables one after the other
    event_shape: tuple[int, ...]  # that of the variable, or (num_coordinates,) for several
    weights: Any  # (num_draws,), or what was given instead

    def check_joint(self, cause: str) -> np.ndarray:
        """The weights of the draws, which sum to one, or an error where there is nothing to keep together."""
        if self.flat.shape[1] < 2:
            raise ValueError(f"{cause} needs at least two coordinates, but {self.name!r} is a scalar; leave it out")
        check_samples(self.flat)
        return check_weights(self.weights, self.flat.shape[:1])


def posterior_draws(idata: Any, var_name: str | Sequence[str], weights: ArrayLike | Sequence | None) -> PosteriorDraws:
    """Read the draws of one variable, or of a list of them, for `KAPrior.from_posterior`."""
    samples = posterior_samples(idata, [var_name] if isinstance(var_name, str) else list(var_name))
    flat = np.concatenate([values.reshape(len(values), -1) for values in samples.values()], axis=1)
    if weights is not None and np.size(weights) == len(flat):
        weights = np.reshape(weights, len(flat))  # (chain, draw) as well
    event_shape = samples[var_name].shape[1:] if isinstance(var_name, str) else flat.shape[1:]
    return PosteriorDraws(var_name, flat, event_shape, weights)


def posterior_samples(idata: Any, var_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays (num_chains * num_draws, *shape) of variables of a posterior by name, in their order.

    It is an `arviz.InferenceData` (ArviZ 0.x), an `xarray.DataTree` (1.x), the dataset of a posterior, or a dict of
    arrays with leading axes (chain, draw) such as `mcmc.get_samples(group_by_chain=True)`.
    """
    group = _posterior_group(idata)
    present = sorted(str(name) for name in group)
    if not 0 < len(var_names) == len(set(var_names) & set(present)):
        raise ValueError(f"var_name must be variables of the posterior, each once, got {var_names}; it has {present}")
    samples = {}
    for name in var_names:
        variable = group[name]
        values = np.asarray(variable.transpose("chain", "draw", ...) if hasattr(variable, "dims") else variable)
        if values.ndim < 2:
            raise ValueError(
                f"variable {name!r} must have leading axes (chain, draw), got shape {values.shape}; with NumPyro, "
                "mcmc.get_samples(group_by_chain=True)"
            )
        samples[name] = values.reshape(-1, *values.shape[2:])
    return samples


def _posterior_group(idata: Any) -> Mapping[str, Any]:
    """The posterior's variables by name."""
    if isinstance(idata, dict):
        return idata
    # The posterior itself: a dataset, or with ArviZ 1.x a leaf of the tree.
    if hasattr(idata, "data_vars") and not (
        hasattr(type(idata), "children") and (idata.children or not idata.data_vars)
    ):
        return idata.data_vars
    if not hasattr(idata, "groups"):
        raise TypeError(
            "idata must be an InferenceData or a DataTree with a group named posterior, or a dict of arrays with "
            f"leading axes (chain, draw), got {type(idata).__name__}; arviz.from_numpyro(mcmc) makes one"
        )
    return idata["posterior"].data_vars
