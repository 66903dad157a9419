"""Effects: which coordinates explain how much of the variance of what a function makes of latents."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float, PRNGKeyArray

from numpyro_kaem.checks import check_count, check_key
from numpyro_kaem.reading.outputs import output_shape
from numpyro_kaem.reading.pick_freeze import MOST_COORDINATES, collect, points, ranges, swap_one, swap_two
from numpyro_kaem.reading.product import as_product

if TYPE_CHECKING:
    import pandas

# Rows of a table as text; `to_pandas` has all.
_MOST_ROWS = 20
# A pair is named where its effect is that many standard errors from zero, and more than a millionth of the variance.
_STANDARD_ERRORS, _SMALLEST = 3.0, 1e-6


class Pair(NamedTuple):
    """Two coordinates that interact.

    Attributes:
        names: of the two.
        coordinates: their numbers.
        index: their second-order index, the share of the variance of the whole output.
        standard_error: of the index.
    """

    names: tuple[str, str]
    coordinates: tuple[int, int]
    index: float
    standard_error: float


@dataclass(frozen=True, eq=False, repr=False)
class Effects:
    """Shares of the variance that coordinates explain. Returned by `effects`.

    Arrays are NumPy's, float64. D is the number of coordinates. Outputs that do not vary have indices of zero.

    Attributes:
        first_order: share of a coordinate alone, S_d, of shape (D, *output). It may be negative by its error.
        total: share of a coordinate with all its interactions, T_d, of shape (D, *output).
        first_order_se: standard errors of `first_order`.
        total_se: standard errors of `total`.
        mean: of the outputs, of shape (*output).
        variance: of the outputs, of shape (*output).
        whole_first_order: as `first_order`, for variances summed over all outputs, of shape (D,).
        whole_total: as `total`, likewise.
        whole_first_order_se: standard errors of `whole_first_order`.
        whole_total_se: standard errors of `whole_total`.
        ranking: numbers of the coordinates, from the largest `whole_total` to the smallest.
        names: of the coordinates.
        pairs: of coordinates that interact beyond the error, the strongest first.
        num_samples: rows of the design.
    """

    first_order: Float[np.ndarray, "D *output"]
    total: Float[np.ndarray, "D *output"]
    first_order_se: Float[np.ndarray, "D *output"]
    total_se: Float[np.ndarray, "D *output"]
    mean: Float[np.ndarray, "*output"]
    variance: Float[np.ndarray, "*output"]
    whole_first_order: Float[np.ndarray, " D"]
    whole_total: Float[np.ndarray, " D"]
    whole_first_order_se: Float[np.ndarray, " D"]
    whole_total_se: Float[np.ndarray, " D"]
    ranking: tuple[int, ...]
    names: tuple[str, ...]
    pairs: tuple[Pair, ...]
    num_samples: int

    def to_pandas(self) -> pandas.DataFrame:
        """The effects on the whole output: a row for each coordinate, in the order of the ranking."""
        import pandas as pd

        columns = {
            "first_order": self.whole_first_order,
            "first_order_se": self.whole_first_order_se,
            "total": self.whole_total,
            "total_se": self.whole_total_se,
        }
        return pd.DataFrame(columns, pd.Index(self.names, name="coordinate")).iloc[list(self.ranking)]

    def __str__(self) -> str:
        width = max(len("coordinate"), *map(len, self.names))
        lines = [f"{'coordinate':<{width}}  {'first-order':>16}  {'total':>16}"]
        for d in self.ranking[:_MOST_ROWS]:
            alone = f"{self.whole_first_order[d]:.3f} +- {self.whole_first_order_se[d]:.3f}"
            total = f"{self.whole_total[d]:.3f} +- {self.whole_total_se[d]:.3f}"
            lines.append(f"{self.names[d]:<{width}}  {alone:>16}  {total:>16}")
        if left := len(self.ranking) - _MOST_ROWS:
            lines += [f"and {left} more, together {self.whole_total[list(self.ranking[_MOST_ROWS:])].sum():.3f}"] * (
                left > 0
            )
        for pair in self.pairs:
            lines.append(f"{' with '.join(pair.names)}: {pair.index:.3f} +- {pair.standard_error:.3f}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Effects({len(self.names)} coordinates, {self.mean.shape} outputs, {self.num_samples} samples)\n{self}"


def effects(
    key: PRNGKeyArray,
    prior: dist.Distribution | Callable,
    function: Callable,
    num_samples: int = 4096,
    *,
    component: int | None = None,
    num_pairs: int = 10,
    chunk_size: int = 1024,
) -> Effects:
    r"""Functional analysis of variance of a function of latents under a prior: Sobol's indices.

    With independent coordinates the variance of $f(z)$ is a sum of what coordinates explain alone, in pairs, and so on:

    $$S_d = \frac{\mathrm{Var}\, E[f \mid z_d]}{\mathrm{Var} f}, \qquad
      T_d = \frac{E\, \mathrm{Var}[f \mid z_{-d}]}{\mathrm{Var} f}, \qquad
      S_{de} = \frac{\mathrm{Var}\, E[f \mid z_d, z_e]}{\mathrm{Var} f} - S_d - S_e,$$

    of which $T_d$ is the sum of all that $z_d$ has a part in. $\sum_d S_d = 1$, and $T_d = S_d$, for sums of functions
    of one coordinate each, such as a `KAN` without hidden layers.

    Points are Sobol's, scrambled, sent through the prior's quantile function. Every row has two points, $a$ and $b$,
    and for every coordinate those with its two values swapped, $a'$ and $b'$. From $f(a) - f(a')$ and $f(b') - f(b)$,
    whose product has the mean $2 S_d \mathrm{Var} f$ and whose squares $2 T_d \mathrm{Var} f$, small effects are told
    from small differences. So the function is evaluated at $2 (D + 1)$ points a row. Pairs are told from differences of
    such differences, two points more a row for each pair and for each coordinate in one.

    Standard errors are those that rows would have if they were independent. Even points make the errors smaller than
    that, the more so the smoother the function is and the fewer coordinates matter.

    Args:
        key: JAX random key, of the scrambling.
        prior: of the latents, a product of one-dimensional distributions, such as `kaem.prior`, or a mixture of those.
        function: from latents of shape (n, *latent) to outputs of shape (n, *output), such as `kaem.decode`. It is made
            of JAX operations, and treats rows alike and apart.
        num_samples: rows of the design, at least 32; rounded up to a power of two.
        component: of a mixture of whole latent vectors, the one whose effects are asked for.
        num_pairs: how many pairs are looked at, at most: all those of the coordinates with the most interaction,
            `whole_total - whole_first_order`.
        chunk_size: at how many latents the function is evaluated at a time, at most. It bounds the memory.

    Returns:
        Indices for every output and for the whole output, whose variance is the sum over all outputs.

    Raises:
        TypeError: if key is no random key, or function none.
        ValueError: for a prior whose coordinates are not independent, a mixture without `component`, a function whose
            output does not have one row for each latent or is not finite (the first such latent is named), numbers out
            of range, and more than 10,600 coordinates.

    References:
        I. M. Sobol', Global sensitivity indices for nonlinear mathematical models, Mathematics and Computers in
        Simulation 55 (2001).
        I. Azzini, T. A. Mara and R. Rosati, Comparison of two sets of Monte Carlo estimators of Sobol' indices,
        Environmental Modelling & Software 144 (2021).

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import effects

        result = effects(jax.random.key(0), dist.Normal(jnp.zeros(3), 1.0), lambda z: z[:, 0] + z[:, 1] * z[:, 2])
        print(result)
        assert abs(result.first_order[0] - 0.5) < 0.02 and abs(result.total[1] - 0.5) < 0.02
        assert [pair.names for pair in result.pairs] == [("z[1]", "z[2]")]
        ```
    """
    check_key(key)
    product = as_product(prior, component)
    shape = output_shape(function, product)
    num_samples = _power_of_two(check_count("num_samples", num_samples, 32))
    num_pairs = check_count("num_pairs", num_pairs, 0)
    rows = min(num_samples, 2 ** (check_count("chunk_size", chunk_size, 2).bit_length() - 2))
    if product.size > MOST_COORDINATES:
        raise ValueError(f"prior must have at most {MOST_COORDINATES} coordinates, got {product.size}")
    seed = int(jax.random.bits(key))

    def design():
        return points(seed, product.size, num_samples, rows)

    scale = ranges(function, product, jnp.asarray(next(design())))
    alone = collect(swap_one, function, product, design(), scale)
    (first_order, total), (first_order_se, total_se) = alone.shares, alone.errors
    interaction = total[:, -1] - first_order[:, -1]
    chosen = np.argsort(-interaction, kind="stable")[: (1 + math.isqrt(1 + 8 * num_pairs)) // 2]
    pairs = []
    if num_pairs and len(chosen) > 1:
        places = np.array(list(combinations(range(len(chosen)), 2)))
        both = collect(swap_two, function, product, design(), scale, jnp.asarray(chosen), jnp.asarray(places))
        for pair, index, error in zip(chosen[places], both.shares[0, :, -1], both.errors[0, :, -1], strict=True):
            if index > max(_STANDARD_ERRORS * error, _SMALLEST):
                i, j = sorted(map(int, pair))
                pairs.append(Pair((product.names[i], product.names[j]), (i, j), float(index), float(error)))
    each = (product.size, *shape)
    return Effects(
        first_order=first_order[:, :-1].reshape(each),
        total=total[:, :-1].reshape(each),
        first_order_se=first_order_se[:, :-1].reshape(each),
        total_se=total_se[:, :-1].reshape(each),
        mean=alone.mean.reshape(shape),
        variance=alone.variance[:, :-1].mean(axis=0).reshape(shape),
        whole_first_order=first_order[:, -1],
        whole_total=total[:, -1],
        whole_first_order_se=first_order_se[:, -1],
        whole_total_se=total_se[:, -1],
        ranking=tuple(map(int, np.argsort(-total[:, -1], kind="stable"))),
        names=product.names,
        pairs=tuple(sorted(pairs, key=lambda pair: -pair.index)),
        num_samples=num_samples,
    )


def _power_of_two(num_samples: int) -> int:
    """The next power of two, told where it is another number."""
    rounded = 2 ** (num_samples - 1).bit_length()
    if rounded != num_samples:
        warnings.warn(
            f"num_samples of Sobol points is a power of two: {rounded} are taken in place of {num_samples}",
            UserWarning,
            stacklevel=3,
        )
    return rounded
