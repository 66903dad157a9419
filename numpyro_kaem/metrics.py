"""Distances between samples and data, extrapolated to infinitely many of both, with standard errors."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_kaem.checks import check_count, check_not_masked

# Samples are dealt into so many groups, of which one and two are left out: the bias loses its terms in 1/n and 1/n^2.
_NUM_GROUPS, _ORDER = 4, 2
# Random pairs of samples by which the variance of pairs is estimated.
_NUM_PAIRS = 2000
# Rows and columns of a kernel matrix that are in memory at once.
_TILE = 1024


@dataclass(frozen=True, repr=False)
class Distance:
    """A distance between two sets of samples; `float(distance)` is its value.

    Attributes:
        value: estimate of the distance between the distributions, as from infinitely many samples of both. It may be
            negative where the distance is less than its error.
        std_error: standard error of the value, over real and generated samples.
        plain: the textbook value of these samples.
        num_real: number of real samples.
        num_generated: number of generated samples.
        features: name of the function that made the features; "values" where there was none.
    """

    value: float
    std_error: float
    plain: float
    num_real: int
    num_generated: int
    features: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        # Two digits of the error, and the value to the same place.
        places = "#.4g"
        if math.isfinite(self.std_error) and self.std_error > 0:
            places = f".{max(1 - math.floor(math.log10(self.std_error)), 0)}f"
        n = f"{self.num_real}" + (f" and {self.num_generated}" if self.num_generated != self.num_real else "")
        return f"{self.value:{places}} +- {self.std_error:{places}} (n = {n}, features: {self.features})"

    def __repr__(self) -> str:
        return f"Distance({self})"


def frechet_distance(
    real: Any,
    generated: Any,
    *,
    features: Callable[[np.ndarray], Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> Distance:
    r"""Frechet distance between normal laws fitted to features (FID), extrapolated to infinitely many samples.

    With means $m$ and covariances $S$ of the features of real and generated samples, the textbook value `plain` is

    $$F = \lVert m_1 - m_2 \rVert^2 + \operatorname{tr} S_1 + \operatorname{tr} S_2 - 2\, T, \qquad
    T = \operatorname{tr}\,(S_1 S_2)^{1/2}.$$

    It is too large, by an amount that falls with 1/n and depends on the distributions, so that values at different n,
    or of different models at one n, do not compare. Here `value` estimates F of the distributions themselves.

    Traces have no bias, and that of the squared difference of means is known: $\operatorname{tr} S_1 / n_1 +
    \operatorname{tr} S_2 / n_2$ is subtracted. Only T is extrapolated. Samples are dealt into G = 4 groups at random;
    $T_k$ is the mean of T over all choices of k groups of both sets that are left out. As a function of 1/n, the
    parabola through $T_0, T_1, T_2$ (at n, 3n/4 and n/2) has at 1/n = 0 the value

    $$\hat T = \tfrac{G^2}{2} T_0 - (G - 1)^2\, T_1 + \tfrac{(G - 2)^2}{2} T_2 = 8\, T_0 - 9\, T_1 + 2\, T_2,$$

    which is the jackknife of second order. Its bias is of order 1/n^3. Since all choices are there, every sample has
    the same weight, and effects of first order cancel as if T had not been extrapolated: the value has about the
    spread of the plain one, where a regression on 1/n over random subsets adds to it.

    The standard error is that of the infinitesimal jackknife: the variance of the value's derivatives with respect to
    the samples' weights. That counts twice the variance of pairs of samples, which is all there is between equal
    distributions; it is estimated by random pairs, and subtracted once. The last correction, $2 \hat T$ against the
    line through $T_0$ and $T_1$, is added in quadrature: where samples are too few for so many features it is the
    larger part, and a warning says so.

    Two sets must be independent. The cost is that of eleven plain distances.

    Args:
        real: data, of shape (n1, ...): at least 4, from NumPy, JAX or what `numpy.asarray` takes.
        generated: samples of a model, of shape (n2, ...), at least 4.
        features: function from a batch of samples, as a NumPy array (N, ...), to their features (N, d), such as a
            network's last layer. None for the arrays themselves, flattened.
        batch_size: samples that `features` is given at once.
        seed: of NumPy's generator, which deals samples into groups.

    Returns:
        A Distance.

    Raises:
        ValueError: for fewer than 4 samples, features that are not (N, d), not finite or not as wide for real as for
            generated samples.
        TypeError: for values that are not real numbers.

    References:
        M. Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, NeurIPS
        2017. M. J. Chong and D. Forsyth, Effectively unbiased FID and Inception Score and where to find them, CVPR
        2020. W. R. Schucany, H. L. Gray and D. B. Owen, On bias reduction in estimation, JASA 66, 1971.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem import frechet_distance

        rng = np.random.default_rng(0)
        real = rng.normal(size=(500, 20))
        generated = rng.normal(0.2, 1.0, size=(500, 20))
        distance = frechet_distance(real, generated)  # 20 times 0.2 squared is 0.8
        assert abs(distance.value - 0.8) < 3 * distance.std_error < distance.plain - 0.8
        ```
    """
    seed = check_count("seed", seed, 0)
    x, y = _features(real, generated, features, batch_size, minimum=_NUM_GROUPS)
    rng = np.random.default_rng(seed)
    num = len(x), len(y)
    groups = [rng.permutation(np.arange(n) % _NUM_GROUPS) for n in num]
    influences = [np.zeros(n) for n in num]
    traces: list[float] = []
    for num_out in range(_ORDER + 1):
        choices = list(itertools.combinations(range(_NUM_GROUPS), num_out))
        weight = _weight(num_out, _ORDER) / len(choices)
        traces.append(0.0)
        for out in choices:
            kept = [np.flatnonzero(~np.isin(group, out)) for group in groups]
            singular, *whitened = _cross_trace(x[kept[0]], y[kept[1]])
            traces[-1] += singular.sum() / len(choices)
            for influence, rows, u in zip(influences, kept, whitened, strict=True):
                influence[rows] -= weight * (u**2 @ singular) / len(rows)
            if num_out == 0:
                pairs = _variance_of_pairs(rng, singular, whitened, (x - x.mean(0), y - y.mean(0)))
    order_1, order_2 = (sum(_weight(k, order) * traces[k] for k in range(order + 1)) for order in (1, 2))

    difference = x.mean(0) - y.mean(0)
    centred = x - x.mean(0), y - y.mean(0)
    variances = [np.sum(c**2) / (n - 1) for c, n in zip(centred, num, strict=True)]
    terms = difference @ difference + sum(variances)
    value = terms - sum(v / n for v, n in zip(variances, num, strict=True)) - 2 * order_2
    for influence, c, n, sign in zip(influences, centred, num, (1, -1), strict=True):
        influence += (2 * sign * c @ difference + np.sum(c**2, 1)) / n
        influence -= influence.mean()
    jackknife = sum(np.sum(influence**2) for influence in influences)
    noise = (max(jackknife - 2 * pairs, 0.0) + pairs) ** 0.5
    correction = 2 * abs(order_2 - order_1)
    if correction > noise:
        warnings.warn(
            f"the last step of the extrapolation changes the distance by {correction:.3g}, more than its statistical "
            f"error of {noise:.3g}: {min(num)} samples are few for {x.shape[1]} features. Both are in std_error; take "
            "more samples, or kernel_distance, which needs no extrapolation",
            stacklevel=2,
        )
    error = float(np.hypot(noise, correction))
    return Distance(float(value), error, float(terms - 2 * traces[0]), *num, features=_name_of(features))


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
    x, y = _features(real, generated, features, batch_size, minimum=2)
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
    return Distance(float(value), error, float(value), *num, features=_name_of(features))


def _name_of(features: Callable | None) -> str:
    return "values" if features is None else getattr(features, "__name__", type(features).__name__)


def _features(
    real: Any, generated: Any, features: Callable | None, batch_size: int, minimum: int
) -> tuple[Float[np.ndarray, "n1 d"], Float[np.ndarray, "n2 d"]]:
    """Features of both sets, in float64, checked."""
    batch_size = check_count("batch_size", batch_size, 1)
    if features is not None and not callable(features):
        raise TypeError(
            f"features must be a function from a batch of samples to vectors, or None, got {type(features).__name__}"
        )
    # Both are checked before features are computed, which may take long.
    sets = {name: _samples(name, samples, minimum) for name, samples in (("real", real), ("generated", generated))}
    x, y = (_features_of(name, samples, features, batch_size) for name, samples in sets.items())
    if x.shape[1] != y.shape[1]:
        what = "shapes {} and {}".format(*(samples.shape for samples in sets.values()))
        raise ValueError(
            f"real and generated must have features of one width, got {x.shape[1]} for real and {y.shape[1]} for "
            f"generated, from arrays of {what}: give both the same shape after the first axis, or a features function "
            "whose width does not depend on it"
        )
    return x, y


def _samples(name: str, samples: Any, minimum: int) -> np.ndarray:
    check_not_masked(name, samples)
    try:
        samples = np.asarray(samples)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of samples of one shape, got {type(samples).__name__}") from error
    if samples.ndim == 0 or len(samples) < minimum:
        raise ValueError(
            f"{name} must have at least {minimum} samples along its first axis, got shape {samples.shape}: draw more"
        )
    return samples


def _features_of(
    name: str, samples: np.ndarray, features: Callable | None, batch_size: int
) -> Float[np.ndarray, "n d"]:
    if features is None:
        vectors = _as_float64(name, samples.reshape(len(samples), -1))
    else:
        batches = []
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            made = np.asarray(features(batch))
            if made.ndim != 2 or len(made) != len(batch) or (batches and made.shape[1] != batches[0].shape[1]):
                width = batches[0].shape[1] if batches else "d"
                raise ValueError(
                    f"features must return shape ({len(batch)}, {width}) for {name}[{start}:{start + len(batch)}] of "
                    f"shape {batch.shape}, got {made.shape}: return one vector for each sample, as by "
                    ".reshape(len(batch), -1)"
                )
            batches.append(_as_float64(f"features of {name}", made))
        vectors = np.concatenate(batches)
    if vectors.shape[1] == 0:
        raise ValueError(f"{name} must have at least one feature for each sample, got {samples.shape} samples")
    finite = np.isfinite(vectors)
    if not finite.all():
        row = int(np.argmin(finite.all(1)))
        column = int(np.argmin(finite[row]))
        raise ValueError(
            f"features of {name} must be finite, got {vectors[row, column]} for {name}[{row}] (feature {column}), the "
            f"first of {np.sum(~finite.all(1))} such samples: see what {name}[{row}] is, and how it is scaled"
        )
    return vectors


def _as_float64(name: str, values: np.ndarray) -> Float[np.ndarray, "n d"]:
    # Kind V: floating-point types of JAX that NumPy does not know, such as bfloat16.
    if values.dtype.kind not in "biufV":
        raise TypeError(f"{name} must be real numbers, got dtype {values.dtype}")
    return values.astype(np.float64)


def _weight(num_out: int, order: int) -> float:
    """Weight of T with so many groups left out: their sum is 1, and cancels 1/n, ..., 1/n^order."""
    sign = (-1) ** num_out
    return sign * (_NUM_GROUPS - num_out) ** order / (math.factorial(num_out) * math.factorial(order - num_out))


def _factor(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "k d"]]:
    """Q and R of centred samples: their covariance is R^T R, and Q has orthonormal columns."""
    n, size = x.shape
    centred = (x - x.mean(0)) / (n - 1) ** 0.5
    return np.linalg.qr(centred) if n > size else (np.eye(n), centred)


def _cross_trace(
    x: Float[np.ndarray, "n1 d"], y: Float[np.ndarray, "n2 d"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "n1 k"], Float[np.ndarray, "n2 k"]]:
    """Singular values s, whose sum is T = tr (S1 S2)^(1/2), and whitened samples u, v in their bases.

    They are those of R1 R2^T = U diag(s) V^T, which needs no inverse, and no square root of a rounding error. u has the
    unit covariance, and the derivative of T with respect to a sample's weight is sum_k s_k (u_ik^2 - 1) / 2.
    """
    (q1, r1), (q2, r2) = _factor(x), _factor(y)
    u, singular, v = np.linalg.svd(r1 @ r2.T, full_matrices=False)
    return singular, (len(x) - 1) ** 0.5 * (q1 @ u), (len(y) - 1) ** 0.5 * (q2 @ v.T)


def _variance_of_pairs(
    rng: np.random.Generator,
    singular: Float[np.ndarray, " k"],
    whitened: list[np.ndarray],
    centred: tuple[np.ndarray, np.ndarray],
) -> float:
    """Variance of the distance's quadratic part.

    With covariances I + K1 and I + K2 of the whitened samples, the distance has to second order the parts
    sum_jk w_jk (K1 - K2)_jk^2 / 2, where w_jk = s_j s_k / (s_j + s_k), and the squared difference of means. Both are
    sums over pairs of samples, whose mean square is taken over random pairs.
    """
    sums = singular[:, None] + singular
    weights = np.divide(singular[:, None] * singular, sums, out=np.zeros_like(sums), where=sums > 0)

    def mean_square(a: int, b: int) -> float:
        i = rng.integers(len(centred[a]), size=_NUM_PAIRS)
        j = rng.integers(len(centred[b]), size=_NUM_PAIRS)
        i, j = (i[i != j], j[i != j]) if a == b else (i, j)
        u, v = whitened[a][i], whitened[b][j]
        of_covariances = np.sum((u * v) @ weights * (u * v), 1) - (u**2 + v**2 - 1) @ np.diag(weights)
        return float(np.mean((of_covariances + 2 * np.sum(centred[a][i] * centred[b][j], 1)) ** 2))

    n1, n2 = map(len, centred)
    variance = mean_square(0, 0) / (2 * n1**2) + mean_square(1, 1) / (2 * n2**2) + mean_square(0, 1) / (n1 * n2)
    # Pairs within a group have no weight in the extrapolation, and the others more.
    return variance * _NUM_GROUPS / (_NUM_GROUPS - 1)


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
