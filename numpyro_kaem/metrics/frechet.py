"""The Frechet distance, extrapolated to infinitely many samples by a jackknife of second order."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from numpyro_kaem.checks import check_count
from numpyro_kaem.metrics.distance import Distance
from numpyro_kaem.metrics.features import both_features, name_of

# Samples are dealt into so many groups, of which one and two are left out: the bias loses its terms in 1/n and 1/n^2.
_NUM_GROUPS, _ORDER = 4, 2
# Random pairs of samples by which the variance of pairs is estimated.
_NUM_PAIRS = 2000


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
    x, y = both_features(real, generated, features, batch_size, minimum=_NUM_GROUPS)
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
    return Distance(float(value), error, float(terms - 2 * traces[0]), *num, features=name_of(features))


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
