"""What a report says: all that is computed of a model, its training, its data and what it draws, in one object."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import platform
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num, PRNGKeyArray, Shaped

from numpyro_kaem.posterior import TemperedSMC
from numpyro_kaem.reading.coordinates import Component, read_components
from numpyro_kaem.reading.memorisation import Nearest, nearest
from numpyro_kaem.reading.product import Product, as_product

_logger = logging.getLogger("numpyro_kaem")
_SMC: dict[str, Any] = {
    "num_particles": 100,
    "num_mcmc_steps": 10,
    "num_runs": 2,
    "chunk_size": 20_000,
    "progress": False,
}
_PACKAGES = ("numpyro_kaem", "jax", "jaxlib", "numpyro", "blackjax", "equinox", "optax", "numpy", "scipy")
# Draws that are compared with training data, data whose posteriors are looked at, and draws from each.
_NUM_DRAWS, _MOST_POSTERIORS, _NUM_POSTERIOR_DRAWS = 500, 64, 128
# Draws of the prior that give ranks to posterior ones, and posterior draws behind a reconstruction.
_NUM_RANKS, _NUM_SHOWN = 4_000, 32


@dataclass(frozen=True, eq=False)
class Posteriors:
    """Posteriors of some data, held-out ones where there are any, and what they make of the data.

    Attributes:
        data: the data.
        reconstructions: means of the likelihood, averaged over posterior draws; at one draw for categories.
        ess: effective sample size of each.
        num_particles: of which it is.
        sampler: that made them, in words.
        spread: of each coordinate, how much of the prior's spread the posteriors have: the mean over data of the
            variance of its ranks among prior draws, over the 1/12 of the prior. 1 where data say nothing about it.
    """

    data: Num[np.ndarray, "n ..."]
    reconstructions: Num[np.ndarray, "n ..."]
    ess: Float[np.ndarray, " n"]
    num_particles: int
    sampler: str
    spread: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """What there is to say of a model. What needs data that were not given is None.

    Attributes:
        about: prior, generator, likelihood, shapes and the number of parameters, in words.
        summary: the model's own table.
        is_trained: whether it was.
        history: of its training, as in `FitResult.history`.
        num_train: how many training data were given.
        num_held_out: how many held-out data.
        scores: of held-out data, by name, as `KAEM.evaluate` has them, without times.
        train_log_likelihood: mean and standard error over training data, by the same sampler.
        num_scored: data of either that were scored.
        draws: data that were drawn.
        means: what is shown of them: means of the likelihood, or the most probable categories.
        nearest: of the draws among the training data.
        train_nearest: those of `nearest.closest`.
        posteriors: of held-out data, or of training data without any.
        components: of the prior, read; empty where it cannot be.
        unreadable: why not.
        origin: versions, data and key that the numbers come from.
    """

    about: dict[str, str]
    summary: str
    is_trained: bool
    history: dict[str, np.ndarray] | None
    num_train: int | None
    num_held_out: int | None
    scores: dict[str, Any] | None
    train_log_likelihood: tuple[float, float] | None
    num_scored: int
    draws: Num[np.ndarray, "n ..."]
    means: Num[np.ndarray, "n ..."]
    nearest: Nearest | None
    train_nearest: Shaped[np.ndarray, "k ..."] | None
    posteriors: Posteriors | None
    components: tuple[Component, ...]
    unreadable: str | None
    origin: dict[str, str]


def find(
    kaem: Any,
    key: PRNGKeyArray,
    x: np.ndarray | None,
    held_out: np.ndarray | None,
    sampler: Any,
    num_scored: int,
    num_paths: int,
) -> Findings:
    """Compute it all.

    Args:
        kaem: the model.
        key: JAX random key.
        x: training data, checked; None for none.
        held_out: others; None for none.
        sampler: of scores and posteriors; None for tempered SMC, by which `KAEM.evaluate` scores.
        num_scored: data whose log-likelihood is taken.
        num_paths: coordinates of all components together that have a path.
    """
    # As scores are taken where nothing is said.
    sampler = TemperedSMC(**_SMC) if sampler is None else sampler
    draw_key, score_key, train_key, posterior_key, effect_key = jax.random.split(key, 5)
    with warnings.catch_warnings():
        # That it is not trained is said in the report.
        warnings.filterwarnings("ignore", "(evaluate|sample) before fit", UserWarning)
        _logger.info("report: drawing")
        draws = np.asarray(kaem.sample(draw_key, _NUM_DRAWS))
        means = np.asarray(kaem.sample(draw_key, _NUM_DRAWS, mean=True))
        _check_finite(means)
        scores = None
        if held_out is not None:
            _logger.info("report: scoring %d of %d held-out data", min(num_scored, len(held_out)), len(held_out))
            scores = _scores(kaem.evaluate(score_key, _some(held_out, len(held_out)), sampler, num_scored=num_scored))
    train_score = None
    if x is not None:
        _logger.info("report: scoring %d of %d training data", min(num_scored, len(x)), len(x))
        rows = _some(x, num_scored)
        train_score = _mean(kaem.log_likelihood(train_key, rows, sampler))
    near = None if x is None else nearest(*(_encoded(kaem, data) for data in (draws, x, held_out)))
    components, unreadable = _components(kaem, effect_key, num_paths)
    return Findings(
        about=_about(kaem),
        summary=kaem.summary(),
        is_trained=kaem.is_trained,
        history=kaem.history,
        num_train=None if x is None else len(x),
        num_held_out=None if held_out is None else len(held_out),
        scores=scores,
        train_log_likelihood=train_score,
        num_scored=num_scored,
        draws=draws,
        means=means,
        nearest=near,
        train_nearest=None if near is None else np.asarray(x)[near.index[near.closest]],
        posteriors=_posteriors(kaem, posterior_key, x if held_out is None else held_out, sampler, num_scored),
        components=components,
        unreadable=unreadable,
        origin=_origin(kaem, key, x, held_out),
    )


def _check_finite(means: np.ndarray) -> None:
    if bad := int(np.sum(~np.isfinite(means.reshape(len(means), -1)).all(axis=1))):
        raise ValueError(
            f"kaem must draw finite data to be reported, but {bad} of {len(means)} draws are infinite or NaN: see "
            "kaem.history['non_finite_steps'], and train again with a smaller step"
        )


def _encoded(kaem: Any, data: np.ndarray | None) -> np.ndarray | None:
    """Data as numbers of about unit size, between which distances mean something."""
    return None if data is None else np.asarray(kaem.parts.likelihood.encoded(jnp.asarray(data)))


def _some(data: np.ndarray, number: int) -> np.ndarray:
    """Some data, in no order."""
    return np.asarray(data)[np.random.default_rng(0).permutation(len(data))[:number]]


def _scores(evaluation: Any) -> dict[str, Any]:
    """The figures of an evaluation that are the same in every run."""
    names = [field.name for field in dataclasses.fields(evaluation)]
    return {name: getattr(evaluation, name) for name in names if name != "draws_per_second"}


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def _posteriors(
    kaem: Any, key: PRNGKeyArray, data: np.ndarray | None, sampler: Any, num_scored: int
) -> Posteriors | None:
    if data is None:
        return None
    sample_key, draw_key, prior_key = jax.random.split(key, 3)
    # As many as were scored, if they are few: then nothing is compiled again.
    rows = _some(data, min(num_scored, _MOST_POSTERIORS))
    _logger.info("report: posteriors of %d data", len(rows))
    posterior = kaem.posterior(sample_key, rows, sampler)
    draws = posterior.resample(draw_key, _NUM_POSTERIOR_DRAWS).latents["z"]
    ranked = np.sort(np.asarray(kaem.prior.sample(prior_key, (_NUM_RANKS,))).reshape(_NUM_RANKS, -1), axis=0)
    flat = draws.reshape(len(rows) * _NUM_POSTERIOR_DRAWS, -1)
    ranks = np.stack([np.searchsorted(*pair) for pair in zip(ranked.T, flat.T, strict=True)], axis=-1) / _NUM_RANKS
    spread = 12.0 * ranks.reshape(len(rows), _NUM_POSTERIOR_DRAWS, -1).var(axis=1, ddof=1).mean(axis=0)
    shown = kaem.decode(draws[:, :: _NUM_POSTERIOR_DRAWS // _NUM_SHOWN])
    is_number = jnp.issubdtype(shown.dtype, jnp.floating)
    return Posteriors(
        data=rows,
        reconstructions=np.asarray(jnp.mean(shown, axis=1) if is_number else shown[:, 0]),
        ess=np.asarray(posterior.ess),
        num_particles=posterior.num_particles,
        sampler=type(sampler).__name__,
        spread=dict(zip(Product(kaem.prior, draws.shape[2:]).names, spread.tolist(), strict=True)),
    )


def _components(kaem: Any, key: PRNGKeyArray, num_paths: int) -> tuple[tuple[Component, ...], str | None]:
    """The prior's components, or why it has none that can be read."""
    likelihood = kaem.parts.likelihood

    def function(z: Array) -> Array:
        shown = kaem.decode(z)
        return shown if jnp.issubdtype(shown.dtype, jnp.floating) else likelihood.encoded(shown)

    try:
        as_product(kaem.prior, 0 if isinstance(kaem.prior, dist.MixtureSameFamily) else None)
    except ValueError as error:
        return (), str(error)
    return read_components(key, kaem.prior, kaem.decode, function, num_paths, _logger.info), None


def _about(kaem: Any) -> dict[str, str]:
    parts, prior = kaem.parts, kaem.prior
    learned = [leaf for leaf in jax.tree.leaves((kaem.params, kaem.guide_params)) if eqx.is_inexact_array(leaf)]
    return {
        "prior": _family(prior),
        "latents": "x".join(map(str, prior.event_shape)) or "1",
        "generator": _name(parts.generator),
        "likelihood": _name(parts.likelihood),
        "encoder": "none" if parts.encoder is None else _name(parts.encoder),
        "datum": "x".join(map(str, kaem.shape)) or "1",
        "parameters": f"{sum(leaf.size for leaf in learned):,}",
    }


def _family(prior: dist.Distribution) -> str:
    """What a distribution is made of, in words."""
    while isinstance(prior, dist.Independent):
        prior = prior.base_dist
    if isinstance(prior, dist.MixtureSameFamily):
        return f"mixture of {prior.mixture_size} x {_family(prior.component_distribution)}"
    return type(prior).__name__


def _name(part: Any) -> str:
    return part.__name__ if hasattr(part, "__name__") else type(part).__name__


def _origin(kaem: Any, key: PRNGKeyArray, x: np.ndarray | None, held_out: np.ndarray | None) -> dict[str, str]:
    """What the same report can be made of again; nothing of whose machine it is."""
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    found = {"key": f"{jax.random.key_impl(key)} {np.ravel(jax.random.key_data(key)).tolist()}"}
    params = jax.tree.leaves((kaem.params, kaem.guide_params))
    for name, arrays in (("model", params), ("x", [x]), ("held_out", [held_out])):
        arrays = [np.asarray(array) for array in arrays if array is not None]
        if arrays:
            digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]
            shape = f" {arrays[0].dtype}{list(arrays[0].shape)}," if name != "model" else " parameters,"
            found[name] = f"{shape[1:]} SHA-256 {digest}"
    found["platform"] = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}"
    found["platform"] += f" {platform.machine()}, {jax.default_backend()}, {jnp.result_type(float)}"
    return found | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    if package == "numpyro_kaem":  # whose __init__ imports this file
        return sys.modules[package].__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
