"""`fit`: train a NumPyro model on minibatches."""

from __future__ import annotations

import contextlib
import numbers
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.svi import SVIState

from numpyro_kaem._checkpoints.store import CheckpointStore
from numpyro_kaem._compilation.fingerprint import SameProgram
from numpyro_kaem._compilation.options import LOOP, RUN_ONCE
from numpyro_kaem._compilation.programs import is_known_by_value, jit_by_program, jit_by_value
from numpyro_kaem._numerics.sharding import spreading
from numpyro_kaem.checks import check_count
from numpyro_kaem.models.data import as_arrays
from numpyro_kaem.models.fingerprint import model_fingerprint
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives.objective import STATE, Objective
from numpyro_kaem.posterior.description import describe_distributions, describe_settings
from numpyro_kaem.posterior.reading import NEEDS_VALUES, explained
from numpyro_kaem.posterior.weights import log_evidence
from numpyro_kaem.training.data import ArrayFeed, StreamFeed, check_data, check_is_data, is_stream
from numpyro_kaem.training.grids import GridAdaptation
from numpyro_kaem.training.optimizers import build_optimizer, optimizer_fingerprint
from numpyro_kaem.training.processes import check_same_in_all_processes
from numpyro_kaem.training.result import FitResult
from numpyro_kaem.training.run import Run, Settings
from numpyro_kaem.training.sharding import Layout, make_layout
from numpyro_kaem.training.step import Stepper, TrainState

# NumPyro's own losses: their latents are draws from the guide, and every density is taken for normalised.
_NEED_GUIDE = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, RenyiELBO)


def fit(
    key: PRNGKeyArray,
    model: Callable,
    data: Any,
    *,
    objective: ELBO,
    optimizer: Any,
    num_epochs: int,
    batch_size: int | None = None,
    guide: Callable | None = None,
    held_out: Any = None,
    held_out_num_samples: int = 1000,
    held_out_every: int = 1,
    patience: int | None = None,
    labels: Callable[[str], str] | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    grid_adaptation: GridAdaptation | None = None,
    callbacks: Sequence[Callable] | Callable = (),
    max_bad_steps: int = 10,
    checkpoint_dir: Any = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 3,
    mesh: Any = None,
    param_specs: Callable | None = None,
    steps_per_epoch: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    init_params: dict[str, Any] | None = None,
    plate: str | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a NumPyro model on minibatches.

    Arrays are shuffled on the device, and the steps of an epoch compiled into one program. Every epoch takes the first
    floor(N / batch_size) batches of a fresh permutation of the N rows: where batch_size does not divide N, a few rows,
    other ones every time, sit an epoch out. Data that do not fit into memory come as an iterable of batches.

    A step whose loss, or whose new parameters or optimiser state, are not finite is skipped: parameters, optimiser,
    averages, chains and grids stay as they were. Ctrl-C ends the run after the steps at hand, with a checkpoint where
    there is a directory for them, and returns what there is; a second one ends it at once. When the data or a callback
    raise an error, a checkpoint is written before it is passed on.

    Held-out data are scored by importance sampling from the prior: log 1/S sum_s p(x | z_s) per datum, a
    lower bound of log p(x) in expectation. The draws are the same at every epoch, so that scores can be
    compared.

    Args:
        key: JAX random key.
        model: NumPyro model with its latent sites inside one data plate, called with a minibatch.
        data: the model's positional argument, or a tuple of them: arrays (or pytrees of arrays) whose leading
            axis is the datum. Or an iterable of such minibatches, all of one size (a Grain dataset, a generator).
        objective: `ImportanceMLE(...)`, `LangevinMLE(...)`, `ThermodynamicMLE(...)`, or an ELBO of NumPyro together
            with a guide.
        optimizer: Optax gradient transformation, or optimiser of NumPyro; or a dict of the former by label.
        num_epochs: passes over the data, at least 1.
        batch_size: rows in a minibatch, at least 1 and at most N; None for an iterable, whose batches have their size.
        guide: NumPyro guide; None for objectives that need none.
        held_out: arrays like `data` to score; None for no score.
        held_out_num_samples: prior draws S per held-out score, at least 1.
        held_out_every: epochs between scores, at least 1; the last epoch is always scored.
        patience: number of scores in a row without a new best after which the run ends; None for never.
        labels: with a dict of optimisers, the key for the name of a parameter site; by default the name itself without
            `$params`, as `eqx_module` and `energy_module` are given it.
        accumulate: number of minibatches whose mean gradient makes one step of the optimiser, at least 1.
        ema_decay: in (0, 1): keep exponential moving averages of the parameters. They are what is scored, and what
            `best_params` holds.
        grid_adaptation: when to move the grid of an energy; see `GridAdaptation`.
        callbacks: one or several, called at the end of every epoch as `callback(epoch, metrics, params)`, with the
            epoch's row of the history and the parameters. One that returns True ends the run.
        max_bad_steps: number of steps in a row that are not finite after which the run ends, at least 1.
        checkpoint_dir: directory for checkpoints, one per run. If there is one of this run it is gone on with: the
            random keys are then those of the checkpoint, and an iterator has to begin where it began at first.
        checkpoint_every: steps between checkpoints; None for one at the end of every epoch.
        keep_checkpoints: number of checkpoints kept.
        mesh: `jax.sharding.Mesh` over whose first axis data and chains are divided; None for one device. Its length
            divides the batch size. Every process of several calls `fit` with the same arguments.
        param_specs: with a mesh, the `PartitionSpec` of an array, as a function of the name of its parameter site and
            the array; None for parameters that every device has a copy of.
        steps_per_epoch: of an iterable: batches that make an epoch; None for one pass.
        model_kwargs: keyword arguments of the model (and guide), the same at every step.
        init_params: initial values of parameter sites; others start from the model's own initial values.
        plate: name of the data plate, where the model has several; None for the objective's.
        progress: whether to show a progress bar.

    Returns:
        Parameters, history and optimiser state.

    Warns:
        RuntimeWarning: where steps are skipped, where the effective sample size of `ImportanceMLE` has collapsed, where
            `accumulate` asks for more steps than there are, for a damaged checkpoint that is passed over, and where one
            cannot be written.

    Raises:
        ValueError: for non-finite data (the argument and the first index are named), arrays of different
            lengths, numbers out of range, unknown initial parameters, a model with latent sites outside of the data
            plate (the site is named), an ELBO of NumPyro without a guide or for a prior that is not normalised, an
            iterable that ends early or changes the shape of its batches, checkpoints of another model, a batch that the
            mesh does not divide, or arguments that differ between processes.
        TypeError: for arguments of the wrong type.
        TrainingFailed: after `max_bad_steps` bad steps in a row, or a run without a good one; its `result` is what
            there was before them. Whatever data or callbacks raise while the run goes on has a `result` too.

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
    try:
        init_key, check_key, shuffle_key, score_key = jax.random.split(key, 4)
    except (TypeError, ValueError) as error:
        raise type(error)(f"key must be one JAX random key, such as jax.random.key(0), got {key!r}") from error
    if not isinstance(objective, ELBO):
        raise TypeError(f"objective must be ImportanceMLE(...) or another numpyro.infer.elbo.ELBO, got {objective!r}")
    if guide is None and isinstance(objective, _NEED_GUIDE):
        raise ValueError(
            f"guide must be given with {type(objective).__name__}, which without one trains on draws from the prior: "
            "pass guide=..., an encoder, or take ImportanceMLE(...), LangevinMLE(...) or ThermodynamicMLE(...)"
        )
    callbacks = (callbacks,) if callable(callbacks) else tuple(callbacks)
    for index, callback in enumerate(callbacks):
        if not callable(callback):
            raise TypeError(f"callbacks[{index}] must be a function (epoch, metrics, params), got {callback!r}")
    if grid_adaptation is not None and not isinstance(grid_adaptation, GridAdaptation):
        raise TypeError(f"grid_adaptation must be a GridAdaptation(...), got {grid_adaptation!r}")
    counts = {
        "num_epochs": num_epochs,
        "held_out_num_samples": held_out_num_samples,
        "held_out_every": held_out_every,
        "max_bad_steps": max_bad_steps,
        "keep_checkpoints": keep_checkpoints,
    }
    optional = {"patience": patience, "checkpoint_every": checkpoint_every, "steps_per_epoch": steps_per_epoch}
    for name, value in (counts | {k: v for k, v in optional.items() if v is not None}).items():
        check_count(name, value, 1)
    if ema_decay is not None and not (isinstance(ema_decay, numbers.Real) and 0 < ema_decay < 1):
        raise ValueError(f"ema_decay must lie in (0, 1), got {ema_decay!r}")
    if patience is not None and held_out is None:
        raise ValueError("patience needs held_out data, whose score it waits for")
    kwargs = as_arrays("model_kwargs", dict(model_kwargs or {}))
    plate = getattr(objective, "plate", None) if plate is None else plate
    guide = _no_guide if guide is None else guide
    svi = SVI(model, guide, build_optimizer(optimizer, labels, accumulate), objective)
    store = None if checkpoint_dir is None else CheckpointStore(checkpoint_dir, keep_checkpoints)

    layout = make_layout(mesh, param_specs)
    feed = _make_feed(data, batch_size, steps_per_epoch, layout)
    batch = feed.first_batch
    num_held_out = 0
    if held_out is not None:
        held_out, num_held_out = check_data("held_out", held_out, like=batch)
        held_out = jax.tree.map(jnp.asarray, held_out) if layout is None else layout.place_data(held_out)

    if feed.num_steps is not None and accumulate > num_epochs * feed.num_steps:
        warnings.warn(
            f"accumulate={accumulate} is more than the {num_epochs * feed.num_steps} steps of this run: the optimiser "
            "takes none, and nothing is learned",
            RuntimeWarning,
            stacklevel=2,
        )
    state = _initial_state(svi, init_key, batch, init_params, kwargs)
    (model_sites, distributions), (guide_sites, _) = (_read_sites(f, batch, kwargs) for f in (model, guide))
    if unknown := set(init_params or {}) - model_sites - guide_sites:
        raise ValueError(f"init_params names no parameter site: {sorted(unknown)}")

    def values(params: PyTree, mutable_state: Any, sites: set[str]) -> dict[str, Any]:
        constrained = svi.constrain_fn(params) | (mutable_state or {})
        return {name: constrained[name] for name in sites}

    initial = values(svi.optim.get_params(state.optim_state), state.mutable_state, model_sites)
    latent_model = LatentModel(model, initial, *batch, plate=plate, rng_key=check_key, **kwargs)
    latent_model.require_per_datum("fit")
    if isinstance(objective, _NEED_GUIDE) and latent_model.unnormalized_sites:
        raise ValueError(
            f"objective must be ImportanceMLE(...), LangevinMLE(...) or ThermodynamicMLE(...), because the density of "
            f"{list(latent_model.unnormalized_sites)} is known up to a constant only, got {type(objective).__name__}, "
            "which would take it for normalised and learn a wrong energy"
        )
    if held_out is not None:
        _check_held_out(lambda *data: LatentModel(model, initial, *data, plate=plate, check=False, **kwargs), held_out)
    if isinstance(objective, Objective):
        objective.check(latent_model)
        state = _with_objective_state(state, objective, latent_model, feed)

    if grid_adaptation is not None:
        grid_adaptation.check(latent_model)
    guide_params = values(svi.optim.get_params(state.optim_state), state.mutable_state, guide_sites)
    guide_computes = model_fingerprint(guide, guide_params, batch, kwargs, check_key, {})
    stepper = Stepper(
        model=latent_model.as_argument,
        guide=SameProgram(guide, guide_computes),
        optim=SameProgram(svi.optim, optimizer_fingerprint(svi.optim, svi.optim.get_params(state.optim_state))),
        objective=SameProgram.of_fields(objective) if is_known_by_value(objective) else objective,
        plate=plate,
        model_sites=tuple(sorted(model_sites)),
        data_per_step=latent_model.scale * latent_model.num_data,
        ema_decay=ema_decay,
        grid_adaptation=grid_adaptation,
        max_bad_steps=max_bad_steps,
    )
    by_datum = None if layout is None else layout.by_datum

    def score(params, key):
        settings = stepper.model, plate, held_out_num_samples, num_held_out, by_datum
        return _score(*settings, params, key, held_out, kwargs)

    average = None if ema_decay is None else svi.optim.get_params(state.optim_state)
    state = TrainState(state, average, jnp.zeros((), int), jnp.zeros((), int))
    # Steps take over the arrays of the state, which up to here may be the caller's, or one array in two places.
    state = jax.tree.map(jnp.copy, state)
    del average, initial, latent_model  # and with them what has been copied
    keys = {"shuffle": shuffle_key, "score": score_key}
    shardings = None
    if layout is not None:
        check_same_in_all_processes(key=keys, data=feed.of_all_processes, parameters=state)
        shardings = layout.state_shardings(state, set(svi.get_params(state.svi)))
        state, keys = layout.place(state, shardings), layout.place(keys)
        kwargs = jax.tree.map(lambda leaf: layout.place(leaf) if isinstance(leaf, jax.Array) else leaf, kwargs)
    run = Run(
        feed=feed,
        optim=svi.optim,
        stepper=stepper,
        model_values=lambda params, mutable: values(params, mutable, model_sites),
        guide_values=lambda params, mutable: values(params, mutable, guide_sites),
        score=None if held_out is None else score,
        store=store,
        description={
            "objective": type(objective).__name__,
            "objective_settings": describe_settings(objective),
            "distributions": distributions,
            "batch_size": feed.batch_size,
            "num_data": feed.num_data,
            "ema_decay": ema_decay,
        },
        settings=Settings(num_epochs, held_out_every, patience, checkpoint_every, callbacks, progress),
    )
    try:
        with contextlib.nullcontext() if store is None else store.held():
            return run(state, keys, shardings, kwargs)
    finally:
        feed.close()


def _make_feed(data: Any, batch_size: int | None, steps_per_epoch: int | None, layout: Layout | None):
    """Where batches come from."""
    check_is_data(data)
    if is_stream(data):
        if batch_size is not None:
            raise ValueError(f"batch_size is that of the iterable's batches: leave it out, got {batch_size}")
        return StreamFeed(data, steps_per_epoch, layout)
    if steps_per_epoch is not None:
        raise ValueError("steps_per_epoch is for an iterable of batches; an epoch of arrays is all their whole batches")
    if batch_size is None:
        raise ValueError("batch_size must be given for data that are arrays")
    check_count("batch_size", batch_size, 1)
    data, num_data = check_data("data", data)
    if batch_size > num_data:
        raise ValueError(f"batch_size must be at most the number of rows of data, {num_data}, got {batch_size}")
    if layout is not None:
        layout.check_batch("batch_size", batch_size)
    return ArrayFeed(data, num_data, batch_size, layout)


@partial(jit_by_value, compiler_options=LOOP)
def _score(
    model: Callable,
    plate: str | None,
    num_samples: int,
    num_held_out: int,
    by_datum: Any,
    params: dict[str, Any],
    key: PRNGKeyArray,
    data: tuple,
    kwargs: dict[str, Any],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean held-out log-likelihood, and its standard error."""
    model_key, draw_key = jax.random.split(key)
    at = LatentModel(model, params, *data, plate=plate, rng_key=model_key, check=False, **kwargs)
    with spreading(by_datum):
        log_probs, _ = log_evidence(at, draw_key, num_samples)
    log_probs = log_probs[:num_held_out]  # without the rows that fill up the last device
    return jnp.mean(log_probs), jnp.std(log_probs) / log_probs.size**0.5


def _check_held_out(read: Callable, held_out: tuple) -> None:
    """Whether the model can be called with the held-out data, without computing anything."""
    try:
        jax.eval_shape(lambda data: read(*data) and None, held_out)
    except ValueError as error:
        raise ValueError(
            f"held_out does not fit the model, whose plate must take any number of rows: {error}"
        ) from error


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """A guide without sites."""


def _initial_state(svi: SVI, key: PRNGKeyArray, args: tuple, init_params: Any, kwargs: dict) -> SVIState:
    """`svi.init`, compiled: of the model only the parameters' initial values are computed."""

    def init(key, args, init_params, kwargs):
        return svi.init(key, *args, init_params=init_params, **kwargs)

    try:
        state = jit_by_program(init, compiler_options=RUN_ONCE)(key, args, init_params, kwargs)
        svi.get_params(state)
    except jax.errors.UnexpectedTracerError:
        # A constraint whose bounds are arrays made inside of the model: SVI has kept a traced one.
        state = svi.init(key, *args, init_params=init_params, **kwargs)
    except NEEDS_VALUES as error:
        raise explained(error) from error
    return state


def _with_objective_state(
    state: SVIState, objective: Objective, latent_model: LatentModel, feed: ArrayFeed | StreamFeed
) -> SVIState:
    """The state with what the objective keeps between steps."""
    num_data, is_known = feed.num_rows, True
    if isinstance(feed, StreamFeed):
        is_known = feed.indices is not None
        num_data = latent_model.structure.plates[latent_model.plate][0] if is_known else num_data
    own = objective.initial_state(latent_model, num_data)
    if own["per_datum"] and not is_known:
        if getattr(objective, "persistent", True) is not None:
            raise ValueError(
                "persistent chains need data as arrays, or batches that are IndexedBatch(data, indices): an iterable "
                "does not tell which datum is which"
            )
        own["per_datum"] = {}
    return SVIState(state.optim_state, (state.mutable_state or {}) | {STATE: own}, state.rng_key)


def _read_sites(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[set[str], dict[str, str]]:
    """Names of the parameter and mutable sites of a model or guide, and the families of its sample sites."""
    recorder = handlers.trace(handlers.seed(function, 0))
    jax.eval_shape(lambda: recorder.get_trace(*args, **kwargs) and None)
    names = {name for name, site in recorder.trace.items() if site["type"] in ("param", "mutable")}
    return names, describe_distributions(recorder.trace)
