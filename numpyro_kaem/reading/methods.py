"""What a model says of itself: the methods of a `KAEM` that read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import PRNGKeyArray

from numpyro_kaem.reading.effects import Effects, effects
from numpyro_kaem.reading.explorer_server import explore
from numpyro_kaem.reading.formula import Formula, formula
from numpyro_kaem.reading.paths import Interpolation, Traversal, interpolate, traverse
from numpyro_kaem.reading.report import report

if TYPE_CHECKING:
    from numpyro_kaem.posterior.sampler import Sampler


class Readable:
    """Methods that read a model by its prior and by what it makes of latents.

    For a mixture of whole latent vectors, such as a `ClusterPrior`, they take `component=`, the one to read.
    """

    prior: Any
    decode: Callable[..., Any]
    posterior: Callable[..., Any]

    def effects(self, key: PRNGKeyArray, num_samples: int = 4096, **options: Any) -> Effects:
        """Which coordinates explain how much of what the model draws: `numpyro_kaem.effects` of `decode`."""
        return effects(key, self.prior, self.decode, num_samples, **options)

    def traverse(self, coordinates: Any = None, **options: Any) -> Traversal:
        """Coordinates slid through their quantiles, and what is drawn on the way: `numpyro_kaem.traverse`."""
        return traverse(self.prior, self.decode, coordinates, **options)

    def interpolate(
        self,
        key: PRNGKeyArray,
        x_a: Any,
        x_b: Any,
        along: str = "cdf",
        *,
        sampler: Sampler | None = None,
        **options: Any,
    ) -> Interpolation:
        """Paths from data to data: `numpyro_kaem.interpolate` between one draw from the posterior of each.

        Args:
            key: JAX random key.
            x_a: data, one datum a row, at which paths begin.
            x_b: as many, at which they end.
            along: as in `numpyro_kaem.interpolate`; "linear" for a mixture of whole latent vectors.
            sampler: of the posteriors, as in `posterior`.
            **options: arguments of `numpyro_kaem.interpolate`.
        """
        ends = []
        for end_key, x in zip(jax.random.split(key), (x_a, x_b), strict=True):
            sample_key, draw_key = jax.random.split(end_key)
            draws = self.posterior(sample_key, x, sampler).resample(draw_key, 1)
            ends.append(draws.latents["z"][:, 0])
        prior = None if along == "linear" else self.prior
        return interpolate(ends[0], ends[1], along, prior=prior, function=self.decode, **options)

    def formula(self, **options: Any) -> Formula:
        """The learned densities as formulas: `numpyro_kaem.formula` of the prior."""
        found: Formula = formula(self.prior, **options)
        return found

    def report(self, path: str | os.PathLike, **options: Any) -> Any:
        """What the model has learned, and what to distrust, in one file: `numpyro_kaem.report`."""
        return report(self, path, **options)

    def explore(self, **options: Any) -> Any:
        """A page to play with, shown in a notebook or served to this machine: `numpyro_kaem.explore`."""
        return explore(self, **options)
