"""What samplers do about data whose likelihood is broken or zero."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from numpyro_kaem.checks import check_key, check_not_masked
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior.target import Flaws, Target

# Chains that disagree by more than this are not worth ten independent draws each.
_RHAT_LIMIT = 1.05
# Draws of a chain that tell how much it varies.
_DRAWS_TO_JUDGE = 50
# Shares of draws at the end of a support, of which less is lost in the errors of an evidence, and more is refused.
_END_SHARES = 0.02, 0.1
_CURES = {
    "chains": "Take more steps, more rungs, or a kernel that suits the posterior better; expectations and errors are "
    "not to be trusted yet",
    "runs": "Use more particles or more moves per rung; expectations and errors are not to be trusted yet",
}


def _warn(text: str, stacklevel: int = 4) -> None:
    """Warn whoever has called a sampler, of which some part calls a function here."""
    warnings.warn(text, RuntimeWarning, stacklevel=stacklevel + 1)


def check_call(key: Any, params: Any) -> dict[str, Any]:
    """The parameters, with arrays for numbers: these are arguments of compiled programs."""
    if isinstance(key, Tracer):
        raise TypeError(
            "key must be known: samplers compile what they run, and cannot be called inside of jax.jit, vmap or grad; "
            "inside of these, train with LangevinMLE or ThermodynamicMLE, or call a kernel's step"
        )
    check_key(key)
    if not isinstance(params, Mapping):
        raise TypeError(
            "params must be a dict of values by parameter site, {} where the model has none, got "
            f"{type(params).__name__}: call run(key, model, params, *data)"
        )
    for path, leaf in jax.tree.leaves_with_path(dict(params)):
        check_not_masked(f"params{jax.tree_util.keystr(path)}", leaf)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, numbers.Number) and not isinstance(leaf, bool) else leaf,
        dict(params),
    )


def check_observations(latent_model: LatentModel) -> None:
    """Refuse a model that sees some of its data only, and warn of one that observes nothing."""
    for name, (size, num_rows) in latent_model.structure.plates.items():
        if name != latent_model.plate and num_rows != size:
            raise ValueError(
                f"plate {name!r} has {num_rows} of its {size} rows at hand: a posterior of latents that all rows share "
                "needs all of them, leave subsample_size out (with a minibatch of the data, train by SVI instead)"
            )
    if not (latent_model.observed_names or latent_model.global_names):
        _warn("the model observes nothing, so that its posterior is its prior: were all data passed?", stacklevel=3)


def check_log_likelihood(bad: np.ndarray, indices: np.ndarray, num_draws: int, source: str = "prior") -> None:
    """Raise a ValueError where the log-likelihood is NaN or +inf at draws from the prior or guide, by datum."""
    # A chunk may be filled up with copies of its last datum.
    indices, first_copy = np.unique(indices, return_index=True)
    bad = bad[first_copy]
    if bad.any():
        raise ValueError(
            f"the log-likelihood is NaN or +inf, or the log-prior NaN, {_where(bad, indices, num_draws, source)}: a "
            "likelihood that is zero is -inf; NaN comes of parameters out of their range, such as a scale that is not "
            "positive"
        )


def check_log_ratio(bad: np.ndarray, num_draws: int) -> None:
    """Raise a ValueError where log p(z) - log q(z | x) is NaN or +inf at draws from the guide q, by datum."""
    if bad.any():
        raise ValueError(
            f"log p(z) - log q(z | x) is NaN or +inf {_where(bad, np.arange(len(bad)), num_draws, 'guide')}: the "
            "guide's parameters may be out of their range, such as a scale that is not positive, or not finite"
        )


def _where(bad: np.ndarray, indices: np.ndarray, num_draws: int, source: str) -> str:
    """At which draws and data something is wrong."""
    first, num_bad = int(np.argmax(bad > 0)), int(np.sum(bad > 0))
    return (
        f"at {int(bad[first])} of {num_draws} draws from the {source} of datum {indices[first]} (and of {num_bad - 1} "
        "other data)"
    )


def check_draws_are_inside(flaws: Flaws, target: Target) -> None:
    """Refuse priors with much of their mass on the very end of their support, where it underflows, or warn of some.

    Chains move where numbers are finite, and would take the share that is not there for another.
    """
    counts = np.asarray(flaws.at_end).reshape(-1, target.dim).sum(0)
    num_draws = int(np.sum(flaws.num_draws))
    worst = int(np.argmax(counts))
    share = counts[worst] / num_draws
    if counts[worst] < 2 or share < _END_SHARES[0]:
        return
    cure = (
        "Use a prior that has less of its mass there, such as dist.LogNormal, dist.HalfCauchy or dist.Gamma(1, ...) "
        "for a vague positive number; ImportanceSampling, which does not move; or float64, which reaches further"
    )
    u = target.unravel(jnp.zeros(target.dim, target.dtype))
    of_coordinates = [name for name in sorted(u) for _ in range(u[name].size)]
    text = (
        f"latent site {of_coordinates[worst]!r}: {counts[worst]} of {num_draws} draws from its prior lie at an end of "
        f"its support, closer than numbers of {target.dtype} tell, where chains and particles cannot move"
    )
    if share >= _END_SHARES[1]:
        raise ValueError(f"{text}. {cure}")
    _warn(f"{text}: the evidence may be off by {-np.log1p(-share):.2f}. {cure}", stacklevel=5)


def warn_if_impossible(impossible: np.ndarray, where: str, latent_model: LatentModel) -> None:
    """Warn of data whose likelihood is zero wherever it was evaluated."""
    if impossible.any():
        first = int(np.argmax(impossible))
        _warn(
            f"{impossible.sum()} of {len(impossible)} data have likelihood zero {where}, the first at index "
            f"{first}{_reason(latent_model, first)}: their ess is 0 and their log_evidence, where there is one, -inf"
        )


def _reason(latent_model: LatentModel, datum: int) -> str:
    """What is wrong with the observed values of a datum, if it is these: they are NaN or out of support."""
    rows = latent_model.rows
    row = rows if latent_model.plate is None else jax.tree.map(lambda leaf: leaf[datum], rows)
    sites, _ = latent_model.run({}, latent_model.lead(row))
    for name in latent_model.observed_names:
        value, fn = np.asarray(sites[name]["value"]), sites[name]["fn"]
        with warnings.catch_warnings(action="ignore"):
            # Elements that are masked out may be anything.
            outside = ~np.asarray(fn.support(value)) & ~np.isfinite(fn.log_prob(value))
        if outside.any():
            if np.issubdtype(value.dtype, np.inexact) and np.isnan(value).any():
                return f" (whose observed site {name!r} has NaN: mask what is missing)"
            return f" (whose observed site {name!r} is outside of its support, {fn.support})"
    return ""


def warn_if_runs_disagree(share: np.ndarray) -> None:
    """Warn of data for which few of the independent runs carry the evidence, of which these are the shares."""
    num_data, num_runs = share.shape
    few = share.sum(1) ** 2 / np.sum(share**2, 1) < num_runs / 2
    if few.any():
        _warn(
            f"the evidences of the {num_runs} runs of {few.sum()} of {num_data} data, the first at index "
            f"{np.argmax(few)}, are so different that fewer than half of the runs count: use more particles or more "
            "moves per rung"
        )


def warn_if_outside(outside: np.ndarray) -> None:
    """Warn of data with draws `(B, S)` at which the likelihood is zero, though not at all of them."""
    some = outside.any(1)
    if some.any():
        first = int(np.argmax(some))
        _warn(
            f"{some.sum()} of {len(outside)} data have draws of likelihood zero, the first at index {first} "
            f"{int(outside[first].sum())} of {outside.shape[1]}: its chains have not found where it is positive, and "
            "these draws have no weight; take more steps, or a temperature ladder"
        )


def warn_if_chains_disagree(posterior: Any, kind: str) -> None:
    """Warn of data whose chains or runs do not agree with one another."""
    if posterior.num_particles < _DRAWS_TO_JUDGE * posterior.num_chains or posterior.rhat is None:
        return
    rhat = posterior.rhat
    apart = (rhat > _RHAT_LIMIT) & (posterior.ess > 0)
    if apart.any():
        worst = int(np.argmax(np.where(apart, rhat, 0.0)))
        _warn(
            f"the {kind} of {apart.sum()} of {len(apart)} data disagree: R-hat is {rhat[worst]:.2f} at index {worst} "
            f"(`rhat` has all), above {_RHAT_LIMIT}. {_CURES[kind]}"
        )


def warn_if_in_lumps(lumps: np.ndarray, temperatures: np.ndarray) -> None:
    """Warn of data whose log-likelihoods gather in two lumps at some rung, `(num_data, num_rungs)`."""
    if lumps.any():
        datum, rung = (int(i) for i in np.argwhere(lumps)[0])
        _warn(
            f"the log-likelihoods of {lumps.any(1).sum()} of {len(lumps)} data gather in two lumps that draws seldom "
            f"pass between, the first at index {datum}, temperature {temperatures[datum, rung]:.3g}: the sign of a "
            "phase transition, across which tempering finds the share of either lump slowly or never, and errors that "
            "it reports are too small. Compare several runs from other keys, start with a guide that knows both, or "
            "reparameterise the model"
        )
