"""How good a trained model is: scores with their errors, as a table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem.generators import SequenceDecoder
from numpyro_kaem.generators.sequence import real_positions
from numpyro_kaem.kaem.choice import importance_sampling
from numpyro_kaem.kaem.likelihoods import CategoricalLikelihood
from numpyro_kaem.kaem.model import Model, Parts, draw
from numpyro_kaem.metrics import frechet_distance, kernel_distance
from numpyro_kaem.posterior.sampler import Sampler

if TYPE_CHECKING:
    import pandas as pd

# Posterior draws of a datum that are decoded for its reconstruction.
_NUM_DRAWS = 32
# Features of distances between data of more numbers.
_NUM_COMPONENTS = 64


@dataclass(frozen=True, eq=False)
class Score:
    """A figure with its standard error, where it has one, and in words what it is of.

    Attributes:
        value: the figure.
        std_error: its standard error; None where it has none.
        what: its unit, and what it is of.

    Example:
        ```python
        from numpyro_kaem import Score

        assert str(Score(-85.512, 0.341, "nats a datum")) == "-85.51 +- 0.34"
        ```
    """

    value: float
    std_error: float | None = None
    what: str = ""

    def __str__(self) -> str:
        if self.std_error is None:
            return f"{self.value:,.0f}" if abs(self.value) >= 1_000 or self.value.is_integer() else f"{self.value:.3g}"
        digits = 2 if self.std_error == 0 else max(0, 1 - math.floor(math.log10(self.std_error)))
        return f"{self.value:,.{digits}f} +- {self.std_error:,.{digits}f}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `KAEM.evaluate` returns; printed it is a table.

    Attributes:
        log_likelihood: of held-out data, mean per datum, in nats; its error is that of the mean over data and of the
            sampler together.
        bits_per_dimension: its negative, by the numbers of a datum (without the padding of sequences), in bits.
        importance_gap: how far the cheap score, by importance sampling, is from it, paired by datum.
        effective_sample_size: of those importance draws, the median over data.
        reconstruction_error: mean squared difference of data and the means of their likelihoods at posterior draws.
        frechet_distance: of drawn and held-out data, extrapolated to infinitely many.
        kernel_distance: of the same, unbiased.
        draws_per_second: of whole data, once compiled, with what else the machine was doing.
        num_parameters: that are learned, without those of an encoder.
        num_data: that were scored.
        sampler: that scored them, in words.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro.distributions as dist
        from numpyro_kaem import KAEM, ImportanceSampling

        kaem = KAEM(dist.Normal(jnp.zeros(2), 1.0), lambda z: z @ jnp.ones((2, 3)), "normal", noise=1.0)
        x = kaem.sample(jax.random.key(0), 50)
        scores = kaem.evaluate(jax.random.key(1), x, ImportanceSampling(500, progress=False))
        print(scores.to_markdown())
        assert scores.log_likelihood.std_error < 1.0 and scores.num_data == 50
        ```
    """

    log_likelihood: Score
    bits_per_dimension: Score
    importance_gap: Score
    effective_sample_size: Score
    reconstruction_error: Score
    frechet_distance: Score
    kernel_distance: Score
    draws_per_second: Score
    num_parameters: Score
    num_data: int
    sampler: str

    def _rows(self) -> list[tuple[str, Score]]:
        scores = ((field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self))
        return [(name, score) for name, score in scores if isinstance(score, Score)]

    def __str__(self) -> str:
        rows = [(name, str(score), score.what) for name, score in self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{name:{widths[0]}}  {figure:>{widths[1]}}  {what}".rstrip() for name, figure, what in rows)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each score, with columns `value`, `std_error` and `what`."""
        import pandas as pd

        rows = {name: (score.value, score.std_error, score.what) for name, score in self._rows()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "std_error", "what"])

    def to_markdown(self) -> str:
        """The table in Markdown."""
        rows = "\n".join(f"| {name} | {score} | {score.what} |" for name, score in self._rows())
        return f"| score | value | of what |\n| --- | ---: | --- |\n{rows}"


def evaluate(
    parts: Parts, key: PRNGKeyArray, x: np.ndarray, sampler: Sampler, num_scored: int, features: Callable | None
) -> Evaluation:
    """Score held-out data: the first `num_scored` by the sampler, all of them against as many draws."""
    params, model = parts.params, Model(parts)
    scored = x[:num_scored]
    score_key, cheap_key, draw_key, resample_key = jax.random.split(key, 4)
    posterior = sampler.run(score_key, model, params, jnp.asarray(scored))
    log_evidence = posterior.log_evidence
    cheap = importance_sampling(parts).run(cheap_key, model, params, jnp.asarray(scored))
    shown = mean_of_draws(parts, posterior.resample(resample_key, _NUM_DRAWS).latents["z"])
    drawn = np.asarray(draw(parts, draw_key, len(x), False))
    own_error = np.sqrt(np.sum(posterior.log_evidence_std_error**2)) / len(scored)
    nats = _mean(
        log_evidence,
        f"nats a datum, {len(scored)} data by {type(sampler).__name__}, whose own error is {own_error:.2g}",
    )
    features = default_features(parts.likelihood, x) if features is None else features
    distances = {
        distance.__name__: distance(x, drawn, features=features) for distance in (frechet_distance, kernel_distance)
    }
    return Evaluation(
        log_likelihood=nats,
        bits_per_dimension=bits_per_number(log_evidence, num_numbers(parts.generator, scored)),
        importance_gap=_mean(
            cheap.log_evidence - log_evidence,
            f"nats, {cheap.num_particles:,} importance draws from the "
            f"{'prior' if parts.encoder is None else 'encoder'} minus the above",
        ),
        effective_sample_size=Score(float(np.median(cheap.ess)), None, "of these draws, median datum"),
        reconstruction_error=_mean(parts.likelihood.errors(scored, shown), parts.likelihood.error),
        **{
            name: Score(result.value, result.std_error, f"n = {len(drawn):,}, features: {result.features}")
            for name, result in distances.items()
        },
        draws_per_second=Score(_draws_per_second(parts, draw_key), None, "compiled, 1,000 at a time"),
        num_parameters=Score(float(sum(leaf.size for leaf in jax.tree.leaves(params) if eqx.is_inexact_array(leaf)))),
        num_data=len(scored),
        sampler=repr(sampler),
    )


def bits_per_number(log_likelihood: np.ndarray, counts: np.ndarray) -> Score:
    """Bits of all data by their numbers, of which each datum may have its own count, and the error of that ratio."""
    bits = -log_likelihood / math.log(2)
    ratio = bits.sum() / counts.sum()
    error = np.std(bits - ratio * counts, ddof=1) / math.sqrt(len(bits)) / counts.mean()
    mean = counts.mean()
    return Score(float(ratio), float(error), f"{mean:,.{0 if mean.is_integer() else 1}f} numbers a datum")


def num_numbers(generator: Any, x: np.ndarray) -> np.ndarray:
    """How many numbers of each datum the likelihood is of: all, but for the padding of sequences."""
    if isinstance(generator, SequenceDecoder) and generator.end_token is not None:
        return np.asarray(real_positions(jnp.asarray(x), generator.end_token)).sum(axis=1)
    return np.full(len(x), math.prod(x.shape[1:]))


def default_features(likelihood: Any, x: np.ndarray) -> Callable:
    """Of distances: how often each category is there, principal components of many numbers, or the few numbers."""
    if isinstance(likelihood, CategoricalLikelihood):
        return Named("category counts", lambda batch: np.asarray(likelihood.encoded(jnp.asarray(batch))).sum(axis=1))

    def flat(batch: np.ndarray) -> np.ndarray:
        return np.asarray(likelihood.encoded(jnp.asarray(batch)), float).reshape(len(batch), -1)

    values = flat(x)
    if values.shape[1] <= _NUM_COMPONENTS:
        return Named("values", flat)
    center = values.mean(axis=0)
    _, _, components = np.linalg.svd(values - center, full_matrices=False)
    axes = components[:_NUM_COMPONENTS].T
    return Named(f"{axes.shape[1]} principal components", lambda batch: (flat(batch) - center) @ axes)


class Named:
    """A function with a name, as scores call it."""

    def __init__(self, name: str, function: Callable):
        self.__name__, self.function = name, function

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """What the function gives."""
        return self.function(batch)


@jit_by_value
def _mean_of_draws(parts: Parts, draws: Float[Array, "num_data num_draws ..."]) -> Array:
    return jax.lax.map(parts.drawn.mean, draws)


def mean_of_draws(parts: Parts, draws: np.ndarray) -> np.ndarray:
    """What is shown of every datum, given draws of its latents."""
    return np.asarray(_mean_of_draws(parts, jnp.asarray(draws)))


def _draws_per_second(parts: Parts, key: PRNGKeyArray, at_once: int = 1_000) -> float:
    """Of whole data, the best of five rounds; the first one compiles."""
    seconds = []
    for number in range(6):
        start = time.perf_counter()
        jax.block_until_ready(draw(parts, jax.random.fold_in(key, number), at_once, False))
        seconds.append(time.perf_counter() - start)
    return at_once / min(seconds[1:])


def _mean(values: np.ndarray, what: str) -> Score:
    """The mean over data, and its error by the spread between them, which has that of each in it."""
    return Score(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), what)
