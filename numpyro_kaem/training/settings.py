"""Settings of `fit` that are several: what is held out, and where checkpoints go. And what they were called before."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from numpyro_kaem.checks import check_count
from numpyro_kaem.posterior import Sampler


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Data that `fit` scores but does not train on: `fit(..., held_out=HeldOut(x_test, every=10))`.

    The score is importance sampling from the prior: log 1/S sum_s p(x | z_s) per datum, a lower bound of log p(x) in
    expectation, and nats too low where the effective sample size is a handful. With a `sampler` it is that sampler's
    `log_evidence`, which costs what a run of it costs. Random keys are the same at every epoch, so that scores can be
    compared.

    A sampler that has the `guide` of `fit`, and no `guide_params`, takes the parameters that the guide has by then (or
    their averages, with `ema_decay`).

    Args:
        data: arrays like the `data` of `fit`.
        every: epochs between scores, at least 1; the last epoch is always scored.
        num_samples: prior draws S of a score, at least 1; of no use with a sampler.
        patience: number of scores in a row without a new best after which the run ends; None for never.
        sampler: posterior sampler with an evidence: `TemperedSMC(...)`, `ImportanceSampling(...)`, or
            `ParallelTempering(...)` with the rung t = 0; None for draws from the prior. It shows no progress bar.

    Raises:
        ValueError: for numbers out of range, a sampler that has no evidence or has a `checkpoint_dir`.
        TypeError: for what is no sampler.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import HeldOut, ImportanceMLE, TemperedSMC, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        x = 2.0 + jax.random.normal(jax.random.key(0), (250,))
        held_out = HeldOut(x[200:], every=5, num_samples=2000, patience=3)
        options = {"objective": ImportanceMLE(100), "optimizer": optax.adam(0.05), "progress": False}
        result = fit(jax.random.key(1), model, x[:200], num_epochs=20, batch_size=50, held_out=held_out, **options)
        assert set(result.history["held_out_epoch"]) <= {5, 10, 15, 20}

        held_out = HeldOut(x[200:], every=20, sampler=TemperedSMC(num_particles=100, num_mcmc_steps=2))
        result = fit(jax.random.key(1), model, x[:200], num_epochs=20, batch_size=50, held_out=held_out, **options)
        exact = dist.Normal(result.params["location"], 1.25**0.5).log_prob(x[200:]).mean()
        assert abs(result.history["held_out_log_likelihood"][-1] - exact) < 0.1
        ```
    """

    data: Any
    _: KW_ONLY
    every: int = 1
    num_samples: int = 1000
    patience: int | None = None
    sampler: Any = None

    def __post_init__(self):
        _check_counts(self, "every", "num_samples", "patience")
        if self.sampler is not None:
            _check_sampler(self.sampler)


@dataclass(frozen=True)
class Checkpointing:
    """Where `fit` keeps checkpoints, and how often: `fit(..., checkpoints=Checkpointing("runs/first", every=500))`.

    If there is a checkpoint of this run it is gone on with: the random keys are then those of the checkpoint, and an
    iterator has to begin where it began at first.

    Args:
        path: of a folder on a file system, one for each run; it is created where it does not exist.
        every: steps between checkpoints, at least 1; None for one at the end of every epoch.
        keep: number of checkpoints kept, at least 1.

    Raises:
        ValueError: for numbers out of range.

    Example:
        ```python
        import tempfile

        import jax, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import Checkpointing, ImportanceMLE, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        x = jax.random.normal(jax.random.key(0), (200,))
        options = {"objective": ImportanceMLE(100), "optimizer": optax.adam(0.05), "progress": False}
        checkpoints = Checkpointing(tempfile.mkdtemp(), every=10)
        half = fit(jax.random.key(1), model, x, num_epochs=5, batch_size=50, checkpoints=checkpoints, **options)
        whole = fit(jax.random.key(1), model, x, num_epochs=10, batch_size=50, checkpoints=checkpoints, **options)
        assert (whole.history["loss"][:20] == half.history["loss"]).all()
        ```
    """

    path: str | os.PathLike
    _: KW_ONLY
    every: int | None = None
    keep: int = 3

    def __post_init__(self):
        _check_counts(self, "every", "keep")


def _check_sampler(sampler: Any) -> None:
    """Raise an error unless held-out data can be scored by this."""
    name = "sampler of held_out data"
    if not isinstance(sampler, Sampler):
        raise TypeError(f"{name} must be a posterior sampler, such as TemperedSMC(...), got {sampler!r}")
    if not sampler.has_evidence:
        raise ValueError(
            f"{name} must have an evidence, got {sampler!r}: take TemperedSMC(...), ImportanceSampling(...), or "
            "ParallelTempering(...) with a ladder that begins at t = 0"
        )
    if (folder := getattr(sampler, "checkpoint_dir", None)) is not None:
        raise ValueError(f"{name} must have no checkpoint_dir, got {folder!r}: give checkpoints to `fit`")


def _check_counts(settings: HeldOut | Checkpointing, *names: str) -> None:
    """Raise a ValueError unless these fields are None or whole numbers of at least 1."""
    for name in names:
        if (value := getattr(settings, name)) is not None:
            check_count(f"{type(settings).__name__}.{name}", value, 1)


# The keyword that each has moved to, the field there, and how that is written.
_MOVED = {
    "held_out_num_samples": ("held_out", "num_samples", "held_out=HeldOut(data, num_samples=...)"),
    "held_out_every": ("held_out", "every", "held_out=HeldOut(data, every=...)"),
    "patience": ("held_out", "patience", "held_out=HeldOut(data, patience=...)"),
    "checkpoint_dir": ("checkpoints", "path", "checkpoints=path"),
    "checkpoint_every": ("checkpoints", "every", "checkpoints=Checkpointing(path, every=...)"),
    "keep_checkpoints": ("checkpoints", "keep", "checkpoints=Checkpointing(path, keep=...)"),
}


def read_settings(
    held_out: Any, held_out_sampler: Any, checkpoints: Any, moved: dict[str, Any]
) -> tuple[HeldOut | None, Checkpointing | None]:
    """The settings of `fit`, from plain data and paths, and from keywords that belong or have moved into them."""
    fields: dict[str, dict[str, Any]] = {"held_out": {}, "checkpoints": {}}
    for name, value in moved.items():
        if name not in _MOVED:
            raise TypeError(f"fit() got an unexpected keyword argument {name!r}")
        keyword, field, new = _MOVED[name]
        message = f"{name} of fit is deprecated and works in this version only: write {new}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        fields[keyword][field] = value
    if held_out is None and fields["held_out"].get("patience") is not None:
        raise ValueError("patience needs held_out data, whose score it waits for")
    if held_out_sampler is not None:
        if held_out is None:
            raise ValueError(
                f"held_out_sampler needs held_out data to score, got {held_out_sampler!r} and none of these"
            )
        if getattr(held_out, "sampler", None) is not None:
            raise ValueError(
                f"give held_out_sampler or HeldOut(sampler=...), not both, got {held_out_sampler!r} and "
                f"{held_out.sampler!r}"
            )
        fields["held_out"]["sampler"] = held_out_sampler
    checkpoints = fields["checkpoints"].pop("path", checkpoints)
    return (
        _settings(HeldOut, held_out, fields["held_out"]),
        _settings(Checkpointing, checkpoints, fields["checkpoints"]),
    )


def _settings(kind: Callable, given: Any, fields: dict[str, Any]) -> Any:
    """Settings with fields changed; None where there is nothing that they are for."""
    if given is None:
        return None
    return replace(given, **fields) if isinstance(given, HeldOut | Checkpointing) else kind(given, **fields)
