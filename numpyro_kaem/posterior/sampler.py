"""What posterior samplers share: how they are called, and how a run takes its data in chunks and survives Ctrl-C."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from tqdm.auto import tqdm

from numpyro_kaem._compilation.fingerprint import ByValue
from numpyro_kaem._compilation.interrupts import interrupts
from numpyro_kaem._numerics.sharding import take_rows
from numpyro_kaem.checks import check_count
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior.chains import Problem
from numpyro_kaem.posterior.diagnostics import check_call, check_observations
from numpyro_kaem.posterior.kernel import Kernel, check_kernel
from numpyro_kaem.posterior.langevin_kernels import MALA
from numpyro_kaem.posterior.predictive import rows_by_datum
from numpyro_kaem.posterior.reading import first_data, read_model
from numpyro_kaem.posterior.result import Posterior
from numpyro_kaem.posterior.run_checkpoints import RunCheckpoints
from numpyro_kaem.posterior.target import Target
from numpyro_kaem.posterior.weights import observed_values


class Sampler(ByValue):
    """A posterior sampler: settings, and `run`. Abstract; the samplers themselves are frozen dataclasses.

    Attributes:
        chunk_size: how much is computed at once, in the sampler's own terms; None for all.
        plate: name of the data plate, where the model has several.
        progress: whether to show a progress bar.
    """

    chunk_size: int | None
    plate: str | None
    progress: bool

    def __post_init__(self):
        self._set_counts(chunk_size=1)

    def _set_counts(self, **minima: int) -> None:
        """Set fields that are not None to whole numbers, of at least so much."""
        for name, minimum in minima.items():
            if getattr(self, name) is not None:
                self._set(**{name: check_count(name, getattr(self, name), minimum)})

    @property
    def has_evidence(self) -> bool:
        """Whether its runs estimate `log_evidence`."""
        return True

    def run(
        self, key: PRNGKeyArray, model: Callable, params: dict[str, Any], *data: Any, **model_kwargs: Any
    ) -> Posterior:
        """Sample the posterior of every datum.

        Args:
            key: JAX random key.
            model: NumPyro model.
            params: constrained values of its parameter sites, `{}` where it has none.
            *data: positional arguments of the model.
            **model_kwargs: keyword arguments of the model.

        Returns:
            Draws, their weights, the evidence and diagnostics of every datum. After Ctrl-C what there is so far,
            `unfinished` saying how much.

        Warns:
            RuntimeWarning: if a datum has likelihood zero at every draw; its `log_evidence` is -inf. If draws, chains
                or runs are not to be trusted: too few, not in agreement, or in parts that nothing connects.

        Raises:
            KeyboardInterrupt: by Ctrl-C before there are draws.
            ValueError: where `LatentModel` cannot read the model, or a parameter is unknown or missing; for a latent
                without icdf where a kernel whitens; for a guide that has not the model's latent sites; for a
                log-likelihood that is NaN or +inf at draws from the prior or guide; where checkpoint_dir holds the
                checkpoint of another run, or another run writes to it.
            RuntimeError: if an adaptive ladder has not arrived at t = 1 after `max_rungs` rungs.
        """
        params = check_call(key, params)
        latent_model = read_model(model, params, data, model_kwargs, self.plate)
        check_observations(latent_model)
        latent_model, unfinished, results = self._draw(key, latent_model)
        return self._posterior(
            latent_model,
            results,
            observed=jax.device_get(observed_values(latent_model)),
            plate=latent_model.plate,
            unfinished=unfinished,
        )

    def _draw(self, key: PRNGKeyArray, latent_model: LatentModel) -> tuple[LatentModel, str | None, Any]:
        """The model of the data that are done, what is not done in words, and arrays on the host."""
        raise NotImplementedError

    def _posterior(self, latent_model: LatentModel, results: Any, **common: Any) -> Posterior:
        """The results as a Posterior, of which the fields `common` are known."""
        raise NotImplementedError


class Chunk(NamedTuple):
    """Some of the data, on their way through a run."""

    problem: Problem
    target: Target
    settings: Any
    indices: np.ndarray  # those of the last chunk filled up with its last, so that it has the shape of the others
    rows: tuple
    keys: Array
    at: Callable  # this one and the next of `RunCheckpoints`
    keep: Callable
    bar: tqdm
    interrupted: list[bool]  # not empty after Ctrl-C


class ChunkedSampler(Sampler):
    """A sampler that moves chains or particles of some of the data at once, and then of others. Abstract."""

    kernel: Kernel | None
    checkpoint_dir: str | os.PathLike | None

    def __post_init__(self):
        super().__post_init__()
        self._set(kernel=MALA() if self.kernel is None else self.kernel)
        check_kernel(self.kernel)

    @property
    def _keys_shape(self) -> tuple[int, ...]:
        """Of the random keys of a datum."""
        return ()

    @property
    def _states_at_once(self) -> int:
        """States of a datum, or of one of its runs, that would move at once."""
        raise NotImplementedError

    def _settings(self, target: Target, batch_size: int) -> Any:
        """What the programs are given besides the problem."""
        raise NotImplementedError

    def _order(self, problem: Problem, settings: Any, rows: tuple, keys: Array, size: int) -> np.ndarray:
        """In which order data are divided into chunks of a size."""
        return np.arange(len(keys))

    def _bar(self, num_chunks: int) -> tqdm:
        raise NotImplementedError

    def _run_chunk(self, chunk: Chunk) -> tuple[Any | None, bool]:
        """A chunk's arrays on the host, with the data axis first, if there are any; and whether it is at its end."""
        raise NotImplementedError

    def _unfinished(self, results: Any, indices: np.ndarray, num_data: int) -> str:
        """What Ctrl-C has left undone, in words, of results for the data of these indices."""
        raise NotImplementedError

    def _join(self, results: list[Any]) -> Any:
        """The results of chunks one after the other."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)

    def _draw(self, key: PRNGKeyArray, latent_model: LatentModel) -> tuple[LatentModel, str | None, Any]:
        # Where one datum's states are too many, they move in batches.
        few = self.chunk_size is not None and self.chunk_size < self._states_at_once
        batch_size = self.chunk_size if few else 0
        problem = Problem(latent_model, batch_size)
        target = problem.target(self.kernel)
        settings = self._settings(target, batch_size)
        num_data, rows = target.latent_model.num_data, rows_by_datum(target.latent_model)
        keys = jax.random.split(key, (num_data, *self._keys_shape))
        size = num_data
        if self.chunk_size is not None:
            per_datum = self._states_at_once * math.prod(self._keys_shape)
            size = min(num_data, max(1, self.chunk_size // per_datum))
        starts = range(0, num_data, size)
        order = self._order(problem, settings, rows, keys, size)
        kept = RunCheckpoints(self.checkpoint_dir)
        kept.describe(self, target, rows, key=key, order=order)
        results, is_whole = [], False
        with kept.held(), interrupts() as interrupted, self._bar(len(starts)) as bar:
            for number, start in enumerate(starts):
                indices = order[np.minimum(np.arange(start, start + size), num_data - 1)]
                rows_at, keys_at = take_rows(rows, keys, indices)
                at, keep = partial(kept.at, number), partial(kept.keep, number)
                chunk = Chunk(problem, target, settings, indices, rows_at, keys_at, at, keep, bar, interrupted)
                result, is_whole = self._run_chunk(chunk)
                if is_whole or (result is not None and not results):
                    results.append(result)
                if interrupted or not is_whole:
                    break
        if not results:
            # Particles are on their way from the first rung on.
            raise KeyboardInterrupt(
                f"no draws to return yet: chains were in warm-up, or at their first steps after it ({kept.way_on})"
            )
        done = order[: size * len(results)]
        back = np.argsort(done)
        joined = jax.tree.map(lambda leaf: leaf[: len(done)][back], self._join(results))
        unfinished, model = None, target.model
        if len(done) < num_data or not is_whole:
            unfinished = self._unfinished(joined, done[back], num_data)
            told = f"interrupted: {unfinished} (`unfinished` of the result says so; {kept.way_on})"
            warnings.warn(told, RuntimeWarning, stacklevel=3)
            if len(done) < num_data:
                model = first_data(target.model, done[back])
        return model, unfinished, joined
