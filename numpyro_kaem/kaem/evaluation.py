"""How good a trained model is: scores with their errors, as a table."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_kaem.kaem.choice import importance_sampling
from numpyro_kaem.kaem.model import Model, Parts, draw
from numpyro_kaem.posterior.sampler import Sampler

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Score:
    """A figure with its standard error, where it has one, and in words what it is of."""

    value: float
    std_error: float | None = None
    what: str = ""

    def __str__(self) -> str:
        if self.std_error is None:
            return f"{self.value:,.4g}"
        digits = 2 if self.std_error == 0 else max(0, 1 - math.floor(math.log10(self.std_error)))
        return f"{self.value:,.{digits}f} +- {self.std_error:,.{digits}f}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `KAEM.evaluate` returns; printed it is a table.

    Attributes:
        log_likelihood: of held-out data, mean per datum, in nats; its error is that of the mean over data and of the
            sampler together.
        bits_per_dimension: its negative, by the numbers of a datum, in bits.
        importance_gap: how far the cheap score, by importance sampling, is from it, paired by datum.
        effective_sample_size: of those importance draws, the median over data.
        reconstruction_error: mean squared difference of data and the means of their likelihoods at posterior draws.
        frechet_distance: of drawn and held-out data, extrapolated to infinitely many.
        kernel_distance: of the same, unbiased.
        draws_per_second: of whole data, once compiled.
        num_parameters: that are learned, without those of an encoder.
        num_data: that were scored.
        sampler: that scored them, in words.
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


def mean_score(values: np.ndarray, what: str, errors: np.ndarray | None = None) -> Score:
    """The mean over data; its error is that of the spread between them, in which errors of each are contained."""
    del errors
    return Score(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), what)
