"""Training of NumPyro models on minibatches."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO
from numpyro.infer.svi import SVIState
from tqdm.auto import tqdm

from numpyro_kaem.checks import check_count
from numpyro_kaem.latent_model import LatentModel
from numpyro_kaem.posterior.importance import log_evidence


@dataclass(frozen=True, eq=False)
class FitResult:
    """What `fit` returns.

    Attributes:
        params: constrained values of the model's parameter and mutable sites, as `LatentModel`, the samplers
            and `numpyro.infer.Predictive` take them.
        history: NumPy arrays. By step: `loss`, divided by the number of data. By epoch: `epoch_loss` (mean
            over its steps), `steps` (steps taken since the start), `seconds` (without compilation) and
            `non_finite_steps` (how many of its losses were infinite or NaN). By held-out score:
            `held_out_epoch` (1 is the first), `held_out_log_likelihood` (mean over data) and
            `held_out_std_error` (of that mean, from the spread between data). And `compile_seconds`.
        state: NumPyro's SVIState, with the optimiser's state.
        guide_params: constrained values of the guide's parameters.
    """

    params: dict[str, Any]
    history: dict[str, np.ndarray]
    state: SVIState
    guide_params: dict[str, Any]


def fit(
    key: PRNGKeyArray,
    model: Callable,
    data: Any,
    *,
    objective: ELBO,
    optimizer: Any,
    num_epochs: int,
    batch_size: int,
    guide: Callable | None = None,
    held_out: Any = None,
    held_out_num_samples: int = 1000,
    held_out_every: int = 1,
    model_kwargs: dict[str, Any] | None = None,
    init_params: dict[str, Any] | None = None,
    plate: str | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a NumPyro model on minibatches, shuffled on the device; an epoch is one compiled call.

    Every epoch takes the first floor(N / batch_size) batches of a fresh permutation of the N rows: where
    batch_size does not divide N, a few rows, other ones every time, sit an epoch out.

    Held-out data are scored by importance sampling from the prior: log 1/S sum_s p(x | z_s) per datum, a
    lower bound of log p(x) in expectation. The draws are the same at every epoch, so that scores can be
    compared.

    Args:
        key: JAX random key.
        model: NumPyro model with its latent sites inside one data plate, called with a minibatch.
        data: the model's positional argument, or a tuple of them: arrays (or pytrees of arrays) whose leading
            axis is the datum.
        objective: `ImportanceMLE(...)`, or an ELBO of NumPyro together with a guide.
        optimizer: Optax gradient transformation, or optimiser of NumPyro.
        num_epochs: passes over the data, at least 1.
        batch_size: rows in a minibatch, at least 1 and at most N.
        guide: NumPyro guide; None for objectives that need none.
        held_out: data like `data` to score; None for no score.
        held_out_num_samples: prior draws S per held-out score, at least 1.
        held_out_every: epochs between scores, at least 1; the last epoch is always scored.
        model_kwargs: keyword arguments of the model (and guide), the same at every step.
        init_params: initial values of parameter sites; others start from the model's own initial values.
        plate: name of the data plate, where the model has several; None for the objective's.
        progress: whether to show a progress bar.

    Returns:
        Parameters, history and optimiser state.

    Warns:
        RuntimeWarning: if a loss or a parameter is not finite.

    Raises:
        ValueError: for non-finite data (the argument and the first index are named), arrays of different
            lengths, numbers out of range, unknown initial parameters, or a model with latent sites outside of
            the data plate (the site is named).
        TypeError: for an objective or optimiser of the wrong type.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        import optax
        from numpyro_kaem import ImportanceMLE, fit


        def model(x):
            location = numpyro.param("location", jnp.zeros(2))
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([1.0, -2.0]) + jax.random.normal(jax.random.key(0), (500, 2))
        result = fit(
            jax.random.key(1),
            model,
            x[:400],
            objective=ImportanceMLE(100),
            optimizer=optax.adam(0.05),
            num_epochs=20,
            batch_size=50,
            held_out=x[400:],
            progress=False,
        )
        assert jnp.allclose(result.params["location"], jnp.array([1.0, -2.0]), atol=0.3)
        assert result.history["held_out_log_likelihood"][-1] > result.history["held_out_log_likelihood"][0]
        ```
    """
    if not isinstance(objective, ELBO):
        raise TypeError(f"objective must be ImportanceMLE(...) or another numpyro.infer.elbo.ELBO, got {objective!r}")
    for name, value in {
        "num_epochs": num_epochs,
        "batch_size": batch_size,
        "held_out_num_samples": held_out_num_samples,
        "held_out_every": held_out_every,
    }.items():
        check_count(name, value, 1)
    data, num_data = _check_data("data", data)
    if batch_size > num_data:
        raise ValueError(f"batch_size must be at most the number of rows of data, {num_data}, got {batch_size}")
    if held_out is not None:
        held_out, _ = _check_data("held_out", held_out, like=data)
    kwargs = dict(model_kwargs or {})
    plate = getattr(objective, "plate", None) if plate is None else plate
    guide = _no_guide if guide is None else guide
    try:
        svi = SVI(model, guide, optimizer, objective)
    except TypeError as error:
        raise TypeError(
            f"optimizer must be an Optax gradient transformation or NumPyro optimiser, got {optimizer!r}"
        ) from error

    init_key, check_key, shuffle_key, score_key = jax.random.split(key, 4)
    batch = jax.tree.map(lambda array: array[:batch_size], data)
    state = _initial_state(svi, init_key, batch, init_params, kwargs)
    model_sites, guide_sites = (_parameter_sites(f, batch, kwargs) for f in (model, guide))
    if unknown := set(init_params or {}) - model_sites - guide_sites:
        raise ValueError(f"init_params names no parameter site: {sorted(unknown)}")

    def values(state, sites):
        params = svi.get_params(state) | (state.mutable_state or {})
        return {name: params[name] for name in sites}

    latent_model = LatentModel(model, values(state, model_sites), *batch, plate=plate, rng_key=check_key, **kwargs)
    latent_model.require_per_datum("fit")
    data_per_step = latent_model.scale * latent_model.num_data
    num_steps = num_data // batch_size

    def run_epoch(state, key, data, kwargs):
        order = jax.random.permutation(key, num_data)[: num_steps * batch_size]

        def step(state, rows):
            return svi.update(state, *jax.tree.map(lambda array: array[rows], data), **kwargs)

        state, losses = jax.lax.scan(step, state, order.reshape(num_steps, batch_size))
        return state, losses / data_per_step

    def score(params, key, data, kwargs):
        model_key, draw_key = jax.random.split(key)
        latent_model = LatentModel(model, params, *data, plate=plate, rng_key=model_key, check=False, **kwargs)
        log_probs, _ = log_evidence(latent_model, draw_key, held_out_num_samples)
        return jnp.mean(log_probs), jnp.std(log_probs) / log_probs.size**0.5

    start = time.perf_counter()
    run_epoch = eqx.filter_jit(run_epoch).lower(state, shuffle_key, data, kwargs).compile()
    compile_seconds = time.perf_counter() - start
    score = eqx.filter_jit(score)
    losses, seconds, scores = [], [], []
    with tqdm(total=num_epochs, unit="epoch", disable=not progress) as bar:
        for epoch, epoch_key in enumerate(jax.random.split(shuffle_key, num_epochs), start=1):
            start = time.perf_counter()
            state, epoch_losses = run_epoch(state, epoch_key, data, kwargs)
            losses.append(np.asarray(epoch_losses))
            seconds.append(time.perf_counter() - start)
            if np.all(np.isfinite(losses[:-1])) and not np.all(np.isfinite(losses[-1])):
                step = int(np.argmin(np.isfinite(losses[-1])))
                warnings.warn(
                    f"the loss is {losses[-1][step]} at step {step + 1} of epoch {epoch} (history counts "
                    "such steps): try a smaller learning rate, clipped gradients or a likelihood that "
                    "is nowhere zero",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if held_out is not None and (epoch % held_out_every == 0 or epoch == num_epochs):
                mean, std_error = score(values(state, model_sites), score_key, held_out, kwargs)
                scores.append((epoch, float(mean), float(std_error)))
            bar.set_postfix_str(
                f"loss {losses[-1].mean():.5g}"
                + (f", held-out {scores[-1][1]:.5g} ± {scores[-1][2]:.2g}" if scores else ""),
                refresh=False,
            )
            bar.update()

    params = values(state, model_sites | guide_sites)
    if spoiled := sorted(name for name in params if not _is_finite(params[name])):
        warnings.warn(f"after training {spoiled} are not finite", RuntimeWarning, stacklevel=2)
    losses = np.stack(losses)
    scores = np.array(scores).reshape(-1, 3)
    history = {
        "loss": losses.ravel(),
        "epoch_loss": losses.mean(1),
        "steps": num_steps * np.arange(1, num_epochs + 1),
        "seconds": np.array(seconds),
        "compile_seconds": np.array(compile_seconds),
        "non_finite_steps": np.sum(~np.isfinite(losses), axis=1),
        "held_out_epoch": scores[:, 0].astype(int),
        "held_out_log_likelihood": scores[:, 1],
        "held_out_std_error": scores[:, 2],
    }
    return FitResult(values(state, model_sites), history, state, values(state, guide_sites))


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """A guide without sites."""


def _initial_state(svi: SVI, key: PRNGKeyArray, args: tuple, init_params: Any, kwargs: dict) -> SVIState:
    """`svi.init`, compiled: of the model only the parameters' initial values are computed."""
    try:
        state = jax.jit(lambda key: svi.init(key, *args, init_params=init_params, **kwargs))(key)
        svi.get_params(state)
    except jax.errors.UnexpectedTracerError:
        # A constraint whose bounds are arrays made inside of the model: SVI has kept a traced one.
        state = svi.init(key, *args, init_params=init_params, **kwargs)
    return state


def _is_finite(tree: PyTree) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf))


def _parameter_sites(function: Callable, args: tuple, kwargs: dict[str, Any]) -> set[str]:
    """Names of the parameter and mutable sites of a model or guide."""
    recorder = handlers.trace(handlers.seed(function, 0))
    jax.eval_shape(lambda: recorder.get_trace(*args, **kwargs) and None)
    return {name for name, site in recorder.trace.items() if site["type"] in ("param", "mutable")}


def _check_data(name: str, data: Any, like: tuple | None = None) -> tuple[tuple, int]:
    """The positional arguments as device arrays, and their number of rows.

    Args:
        name: how the caller calls the argument.
        data: array, or tuple of arrays or pytrees of arrays.
        like: arguments whose rows these must resemble.
    """
    data = tuple(data) if isinstance(data, tuple | list) else (data,)
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(data):
        label = name + jax.tree_util.keystr(path)
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufc" and not jnp.issubdtype(array.dtype, jnp.inexact):
            raise TypeError(f"{label} must be an array of numbers, got {leaf!r}")
        if array.ndim == 0:
            raise ValueError(f"{label} must lead with the data axis, got a scalar; pass scalars as model_kwargs")
        if len(bad := np.argwhere(~np.isfinite(array))):
            index = tuple(bad[0].tolist())
            raise ValueError(f"{label} must be finite, got {array[index]} at index {index}")
        lengths[label] = len(array)
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{name} must hold arrays of the same number of rows, at least 1, got {lengths}")
    data = jax.tree.map(jnp.asarray, data)
    if like is not None:
        rows, like_rows = (jax.tree.map(lambda array: array.shape[1:], tree) for tree in (data, like))
        if rows != like_rows:
            raise ValueError(f"{name} must have rows of the same shapes as data, {like_rows}, got {rows}")
    return data, next(iter(lengths.values()))
