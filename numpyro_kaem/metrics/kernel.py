"""The kernel distance, a U-statistic without bias, with the standard error of all pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_kaem.checks import check_count
from numpyro_kaem.metrics.distance import Distance
from numpyro_kaem.metrics.features import both_features, name_of

# Rows and columns of a kernel matrix that are in memory at once.
_TILE = 1024


def kernel_distance(
    real: Any,
    generated: Any,
    *,
    features: Callable[[np.ndarray], Any] | None = None,
    batch_size: int = 256,
    subset_size: int | None = None,
    num_subsets: int = 100,
    seed: int = 0,
) -> Distance:
    r"""Kernel distance: the squared maximum mean discrepancy of features (KID), without bias at any n.

    With the kernel $k(a, b) = (a^\top b / d + 1)^3$ of features in d dimensions,

    $$M = \frac{1}{m (m - 1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n (n - 1)} \sum_{i \ne j} k(y_i, y_j)
    - \frac{2}{m n} \sum_{i, j} k(x_i, y_j).$$

    Its expectation is the distance between the distributions, so nothing is extrapolated, and `plain` is `value`. The
    standard error is that of this U-statistic, from all pairs: the variance of what each sample adds, and the variance
    of pairs, which is all there is between equal distributions. Both are estimated without bias; the first is not taken
    below zero, so that between equal distributions the error is a little large. Kernel matrices are evaluated tile by
    tile and never held. Two sets must be independent.

    With a `subset_size` the value is the mean over `num_subsets` random subsets of both sets, as in the literature. It
    estimates the same, costs less where samples are many, and its standard error counts both the samples' and the
    subsets' choice; it is not the spread of subsets that papers often state.

    Args:
        real: data, of shape (m, ...): at least 2, from NumPy, JAX or what `numpy.asarray` takes.
        generated: samples of a model, of shape (n, ...), at least 2.
        features: function from a batch of samples, as a NumPy array (N, ...), to their features (N, d), such as a
            network's last layer. None for the arrays themselves, flattened.
        batch_size: samples that `features` is given at once.
        subset_size: number of samples of a subset; None for all pairs.
        num_subsets: number of subsets, at least 2.
        seed: of NumPy's generator, which draws the subsets.

    Returns:
        A Distance.

    Raises:
        ValueError: for fewer than 2 samples, features that are not (N, d), not finite or not as wide for real as for
            generated samples, and a subset_size above the number of samples.
        TypeError: for values that are not real numbers.

    References:
        M. Binkowski et al., Demystifying MMD GANs, ICLR 2018. D. J. Sutherland and N. Deka, Unbiased estimators for the
        variance of MMD estimators, arXiv 1906.02104, 2019.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem import kernel_distance

        rng = np.random.default_rng(0)
        real, generated = rng.normal(size=(2, 500, 20))
        distance = kernel_distance(real, generated)
        assert abs(distance.value) < 3 * distance.std_error
        ```
    """
    num_subsets, seed = check_count("num_subsets", num_subsets, 2), check_count("seed", seed, 0)
    if subset_size is not None:
        subset_size = check_count("subset_size", subset_size, 2)
    x, y = both_features(real, generated, features, batch_size, minimum=2)
    num = len(x), len(y)
    if subset_size is None:
        estimates, of_subsets = [_mmd(x, y, *num)], 0.0
    else:
        if subset_size > min(num):
            raise ValueError(
                f"subset_size must be at most the number of samples, got {subset_size} with {num[0]} real and {num[1]} "
                f"generated samples: take {min(num)} or fewer, or subset_size=None, which uses all pairs"
            )
        rng = np.random.default_rng(seed)
        drawn = ([rng.choice(n, subset_size, replace=False) for n in num] for _ in range(num_subsets))
        estimates = [_mmd(x[rows], y[columns], *num) for rows, columns in drawn]
        # Given the samples, subsets are independent.
        of_subsets = np.var([estimate[0] for estimate in estimates], ddof=1) / num_subsets
    value, linear, pairs = np.mean(estimates, 0)
    error = float((max(linear, 0.0) + max(pairs, 0.0) + of_subsets) ** 0.5)
    return Distance(float(value), error, float(value), *num, features=name_of(features))


def _mmd(x: np.ndarray, y: np.ndarray, num_real: int, num_generated: int) -> tuple[float, float, float]:
    """Kernel distance, and its variance of so many samples in all: by what each adds, and by pairs; without bias."""
    xx, yy, xy = _Sums.of(x, x), _Sums.of(y, y), _Sums.of(x, y)
    m, n = len(x), len(y)
    value = xx.total / (m * (m - 1)) + yy.total / (n * (n - 1)) - 2 * xy.total / (m * n)
    # What each sample adds. Its own part in the mean of the others is made up for: of m - 1 terms m - 2 count.
    added = xx.rows / max(m - 2, 1) - xy.rows / n, yy.rows / max(n - 2, 1) - xy.columns / m
    within, across = (xx.centred_square_within(), yy.centred_square_within()), xy.centred_square_across()
    linear, pairs = 0.0, 4 * across / (num_real * num_generated)
    for a, square, other, total in zip(added, within, (n, m), (num_real, num_generated), strict=True):
        # It is known up to the noise of the samples with which one is compared.
        linear += 4 * (np.var(a, ddof=1) - square / max(len(a) - 2, 1) - across / other) / total
        pairs += 2 * square / (total * (total - 1))
    return float(value), float(linear), float(pairs)


class _Sums(NamedTuple):
    """Sums of a kernel matrix, without its diagonal where both sets are one."""

    rows: Float[np.ndarray, " m"]
    columns: Float[np.ndarray, " n"]
    squares: float

    @property
    def total(self) -> float:
        return self.rows.sum()

    @classmethod
    def of(cls, x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]) -> _Sums:
        rows, columns, squares = np.zeros(len(x)), np.zeros(len(y)), 0.0
        for i, j in itertools.product(range(0, len(x), _TILE), range(0, len(y), _TILE)):
            if x is y and j < i:
                continue
            kernel = x[i : i + _TILE] @ y[j : j + _TILE].T
            kernel /= x.shape[1]
            kernel += 1.0
            kernel *= kernel * kernel
            if x is y and i == j:
                np.fill_diagonal(kernel, 0.0)
            twice = 2 if x is y and i != j else 1
            rows[i : i + _TILE] += kernel.sum(1)
            columns[j : j + _TILE] += kernel.sum(0)
            if twice == 2:
                rows[j : j + _TILE] += kernel.sum(0)
            squares += twice * np.vdot(kernel, kernel)
        return cls(rows, columns, float(squares))

    def centred_square_within(self) -> float:
        """Unbiased estimate of E k~(x, x')^2, where k~ is the kernel less what is explained by x or x' alone.

        E k(1, 2)^2 - 2 E k(1, 2) k(1, 3) + E k(1, 2) k(3, 4), with sums over different samples. Of fewer than four
        there is none, and zero leaves the variance that of the jackknife, which is not too small.
        """
        m, square = len(self.rows), self.squares
        if m < 4:
            return 0.0
        rows = self.rows @ self.rows
        two, three = square / (m * (m - 1)), (rows - square) / (m * (m - 1) * (m - 2))
        four = (self.total**2 - 4 * rows + 2 * square) / (m * (m - 1) * (m - 2) * (m - 3))
        return two - 2 * three + four

    def centred_square_across(self) -> float:
        """The same of pairs of x and y."""
        m, n, square = len(self.rows), len(self.columns), self.squares
        rows, columns = self.rows @ self.rows, self.columns @ self.columns
        same_x, same_y = (rows - square) / (n - 1), (columns - square) / (m - 1)
        neither = (self.total**2 - rows - columns + square) / ((m - 1) * (n - 1))
        return (square - same_x - same_y + neither) / (m * n)
