"""`fit`: train a NumPyro model on minibatches."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO

from numpyro_kaem._checkpoints.store import CheckpointStore
from numpyro_kaem._compilation.fingerprint import SameProgram
from numpyro_kaem._compilation.programs import is_known_by_value
from numpyro_kaem.checks import check_count
from numpyro_kaem.models.data import as_arrays
from numpyro_kaem.models.fingerprint import model_fingerprint
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.posterior.run_checkpoints import describe_settings
from numpyro_kaem.training import initial
from numpyro_kaem.training.data import check_data, is_stream
from numpyro_kaem.training.feeds import ArrayFeed, StreamFeed
from numpyro_kaem.training.grids import GridAdaptation
from numpyro_kaem.training.held_out import SamplerScore, check_held_out, score_by_prior
from numpyro_kaem.training.result import FitResult
from numpyro_kaem.training.run import Run
from numpyro_kaem.training.settings import Checkpointing, HeldOut, read_settings
from numpyro_kaem.training.sharding import Layout, check_same_in_all_processes, make_layout
from numpyro_kaem.training.step import Stepper, TrainState


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
    held_out: HeldOut | Any = None,
    held_out_sampler: Any = None,
    checkpoints: Checkpointing | str | os.PathLike | None = None,
    labels: Callable[[str], str] | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    grid_adaptation: GridAdaptation | None = None,
    callbacks: Sequence[Callable] | Callable = (),
    max_bad_steps: int = 10,
    mesh: Any = None,
    param_specs: Callable | None = None,
    steps_per_epoch: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    init_params: dict[str, Any] | None = None,
    init_optimizer_state: Any = None,
    plate: str | None = None,
    progress: bool = True,
    **moved: Any,
) -> FitResult:
    """Train a NumPyro model on minibatches.

    Arrays are shuffled on the device, and the steps of an epoch compiled into one program. Every epoch takes the first
    floor(N / batch_size) batches of a fresh permutation of the N rows: where batch_size does not divide N, a few rows,
    other ones every time, sit an epoch out. Data that do not fit into memory come as an iterable of batches.

    A step whose loss, or whose new parameters or optimiser state, are not finite is skipped: parameters, optimiser,
    averages, chains and grids stay as they were. Ctrl-C ends the run after the steps at hand, with a checkpoint where
    there is a folder for them, and returns what there is; a second one ends it at once. When the data or a callback
    raise an error, a checkpoint is written before it is passed on.

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
        guide: NumPyro guide, an encoder, for NumPyro's ELBOs and `LangevinMLE(start="guide")`; None for objectives that
            need none.
        held_out: arrays like `data` to score after every epoch, or `HeldOut(data, every=..., patience=...)`; None for
            no score. The score is importance sampling from the prior, unless there is a sampler.
        held_out_sampler: posterior sampler with an evidence, such as `TemperedSMC(...)`, to score held-out data by; the
            same as `HeldOut(data, sampler=...)`.
        labels: with a dict of optimisers, the key for the name of a parameter site; by default the name itself without
            `$params`, as `eqx_module` and `energy_module` are given it.
        accumulate: number of minibatches whose mean gradient makes one step of the optimiser, at least 1.
        ema_decay: in (0, 1): keep exponential moving averages of the parameters. They are what is scored, and what
            `best_params` holds.
        grid_adaptation: when to move the grid of an energy; see `GridAdaptation`.
        callbacks: one or several, called at the end of every epoch as `callback(epoch, metrics, params)`, with the
            epoch's row of the history and the parameters. One that returns True ends the run.
        max_bad_steps: number of steps in a row that are not finite after which the run ends, at least 1.
        checkpoints: folder for checkpoints of this run, which goes on from the newest one that is there, or
            `Checkpointing(path, every=..., keep=...)`; None for none.
        mesh: `jax.sharding.Mesh` over whose first axis data and chains are divided; None for one device. Its length
            divides the batch size. Every process of several calls `fit` with the same arguments.
        param_specs: with a mesh, the `PartitionSpec` of an array, as a function of the name of its parameter site and
            the array; None for parameters that every device has a copy of.
        steps_per_epoch: of an iterable: batches that make an epoch; None for one pass.
        model_kwargs: keyword arguments of the model (and guide), the same at every step.
        init_params: initial values of parameter sites; others start from the model's own initial values.
        init_optimizer_state: what `result.optimizer_state` of an earlier run was, of the same optimiser and model; None
            for the optimiser's own beginning.
        plate: name of the data plate, where the model has several; None for the objective's.
        progress: whether to show a progress bar.
        **moved: keywords of the last version, now in `HeldOut` and `Checkpointing`; they work with a warning that says
            where.

    Returns:
        Parameters, history and optimiser state.

    Warns:
        RuntimeWarning: where steps are skipped, where the effective sample size of `ImportanceMLE` has collapsed, where
            `accumulate` asks for more steps than there are, for a damaged checkpoint that is passed over, and where one
            cannot be written.
        DeprecationWarning: for `moved` keywords.

    Raises:
        ValueError: for non-finite data (the argument and the first index are named), arrays of different
            lengths, numbers out of range, unknown initial parameters, a model with latent sites outside of the data
            plate (the site is named), an ELBO of NumPyro without a guide or for a prior that is not normalised, a
            sampler of held-out data that has no evidence or no such data, an iterable that ends early or changes the
            shape of its batches, checkpoints of another model, a batch that the mesh does not divide, or arguments that
            differ between processes.
        TypeError: for what is no data, no objective or no optimiser.
        OSError: for a folder of checkpoints that cannot be made or written to.
        TrainingFailed: after `max_bad_steps` bad steps in a row, or a run without a good one; its `result` is what
            there was before them. Whatever data or callbacks raise while the run goes on has a `result` too.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import ImportanceMLE, fit


        def model(x):
            location = numpyro.param("location", jnp.zeros(2))
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([1.0, -2.0]) + jax.random.normal(jax.random.key(0), (500, 2))
        options = {"objective": ImportanceMLE(100), "optimizer": optax.adam(0.05), "progress": False}
        result = fit(jax.random.key(1), model, x[:400], num_epochs=20, batch_size=50, held_out=x[400:], **options)
        assert jnp.allclose(result.params["location"], jnp.array([1.0, -2.0]), atol=0.3)
        assert result.history["held_out_log_likelihood"][-1] > result.history["held_out_log_likelihood"][0]
        ```
    """
    init_key, check_key, shuffle_key, score_key = jax.random.split(key, 4)
    held_out, checkpoints = read_settings(held_out, held_out_sampler, checkpoints, moved)
    for name, count in {"num_epochs": num_epochs, "max_bad_steps": max_bad_steps, "accumulate": accumulate}.items():
        check_count(name, count, 1)
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay must lie in (0, 1), got {ema_decay!r}")
    guide = initial.guide_for(objective, guide)
    svi = SVI(model, guide, initial.build_optimizer(optimizer, labels, accumulate), objective)
    store = None if checkpoints is None else CheckpointStore(checkpoints.path, checkpoints.keep, "checkpoints")

    # Where data are, and their batches come from.
    layout = make_layout(mesh, param_specs)
    feed = _make_feed(data, batch_size, steps_per_epoch, layout)
    batch, kwargs = feed.first_batch, as_arrays("model_kwargs", dict(model_kwargs or {}))
    if held_out is not None:
        scored, num_scored = check_data("held_out", held_out.data, like=batch)
        scored = layout.place_data(scored)
    if feed.num_steps is not None and accumulate > num_epochs * feed.num_steps:
        warnings.warn(
            f"accumulate={accumulate} is more than the {num_epochs * feed.num_steps} steps of this run: the optimiser "
            "takes none, and nothing is learned",
            RuntimeWarning,
            stacklevel=2,
        )

    # What the model is, at its initial parameters.
    state = initial.initial_state(svi, init_key, batch, init_params, kwargs)
    sites = initial.read_sites(svi, batch, kwargs)
    if unknown := set(init_params or {}) - {*sites.of_model, *sites.of_guide}:
        raise ValueError(f"init_params names no parameter site: {sorted(unknown)}")
    if init_optimizer_state is not None:
        state = initial.with_optimizer_state(state, init_optimizer_state)
    plate = getattr(objective, "plate", None) if plate is None else plate
    at_initial = partial(LatentModel, model, sites.values(sites.of_model, state), plate=plate, **kwargs)
    latent_model = at_initial(*batch, rng_key=check_key)
    latent_model.require_per_datum("fit")
    initial.check_suits(objective, latent_model, guide, sites.values(sites.of_guide, state))
    scorer: Any = None
    if held_out is not None:
        check_held_out(partial(at_initial, check=False), scored)
        if held_out.sampler is not None:
            scorer = SamplerScore(held_out.sampler, model, guide, plate, num_scored)
            scorer.check(latent_model, sites.values(sites.of_guide, state), layout.mesh)
    if grid_adaptation is not None:
        grid_adaptation.check(latent_model)
    if isinstance(objective, Objective):
        state = initial.with_objective_state(state, objective, latent_model, feed.num_chains(latent_model))

    # What a step does, told by what it computes: another call of the same finds it compiled.
    params = svi.optim.get_params(state.optim_state)
    guide_computes = model_fingerprint(guide, sites.values(sites.of_guide, state), batch, kwargs, check_key, {})
    stepper = Stepper(
        model=latent_model.as_argument,
        guide=SameProgram(guide, guide_computes),
        optim=SameProgram(svi.optim, initial.optimizer_fingerprint(svi.optim, params)),
        objective=SameProgram.of_fields(objective) if is_known_by_value(objective) else objective,
        plate=plate,
        model_sites=sites.of_model,
        data_per_step=latent_model.scale * latent_model.num_data,
        ema_decay=ema_decay,
        grid_adaptation=grid_adaptation,
        max_bad_steps=max_bad_steps,
    )

    # Where the state is. Steps take over its arrays, which up to here may be the caller's, or one array in two places.
    state = TrainState(state, None if ema_decay is None else params, jnp.zeros((), int), jnp.zeros((), int))
    state, keys = jax.tree.map(jnp.copy, state), {"shuffle": shuffle_key, "score": score_key}
    del params, at_initial, latent_model  # and with them what has been copied
    if layout.mesh is not None:
        check_same_in_all_processes(key=keys, data=feed.of_all_processes, parameters=state)
    shardings = layout.state_shardings(state, {*sites.of_model, *sites.of_guide})
    state, keys = layout.place(state, shardings), layout.place(keys)
    kwargs = jax.tree.map(lambda leaf: layout.place(leaf) if isinstance(leaf, jax.Array) else leaf, kwargs)

    if held_out is not None:
        if held_out.sampler is None:
            static = stepper.model, plate, layout.by_datum, num_scored, held_out.num_samples
            scorer = partial(score_by_prior, static)
        scorer = partial(scorer, scored, kwargs)
    run = Run(
        num_epochs=num_epochs,
        feed=feed,
        stepper=stepper,
        sites=sites,
        held_out=held_out,
        scorer=scorer,
        store=store,
        checkpoint_every=None if checkpoints is None else checkpoints.every,
        description={
            "objective": type(objective).__name__,
            "objective_settings": describe_settings(objective),
            "distributions": sites.distributions,
            "batch_size": feed.batch_size,
            "num_data": feed.num_data,
            "ema_decay": ema_decay,
        },
        callbacks=(callbacks,) if callable(callbacks) else tuple(callbacks),
        progress=progress,
    )
    with contextlib.closing(feed), contextlib.nullcontext() if store is None else store.held():
        return run(state, keys, shardings, kwargs)


def _make_feed(
    data: Any, batch_size: int | None, steps_per_epoch: int | None, layout: Layout
) -> ArrayFeed | StreamFeed:
    """Where batches come from."""
    if is_stream(data):
        if batch_size is not None:
            raise ValueError(f"batch_size is that of the iterable's batches: leave it out, got {batch_size}")
        return StreamFeed(data, steps_per_epoch, layout)
    data, num_data = check_data("data", data)
    if steps_per_epoch is not None:
        raise ValueError("steps_per_epoch is for an iterable of batches; an epoch of arrays is all their whole batches")
    if check_count("batch_size", batch_size, 1) > num_data:
        raise ValueError(f"batch_size must be at most the number of rows of data, {num_data}, got {batch_size}")
    layout.check_batch("batch_size", batch_size)
    return ArrayFeed(data, num_data, batch_size, layout)
