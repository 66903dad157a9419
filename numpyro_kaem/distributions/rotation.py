"""Rotated coordinates in which samples are uncorrelated, or as independent as a linear map makes them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from numpyro_kaem.distributions.copula import check_correlation
from numpyro_kaem.distributions.tabulated import TabulatedDistribution

_ICA_SAMPLES = 20_000


class Rotation(Transform):
    """The invertible affine map z = loc + A s of vectors, with any invertible matrix A."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, loc: Float[ArrayLike, " num_coordinates"], matrix: Float[ArrayLike, "rows columns"]):
        self.loc, self.matrix = loc, matrix

    def __call__(self, x: Float[Array, "*batch num_coordinates"]) -> Float[Array, "*batch num_coordinates"]:
        """Loc + A x."""
        return self.loc + jnp.einsum("ij,...j->...i", self.matrix, x, precision="highest")

    def _inverse(self, y):
        return jnp.linalg.solve(self.matrix, (y - self.loc)[..., None])[..., 0]

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        """Log |det A|, of the batch shape of x."""
        return jnp.broadcast_to(jnp.linalg.slogdet(self.matrix)[1], jnp.shape(x)[:-1])

    def tree_flatten(self) -> tuple[Any, Any]:
        """Loc and matrix are leaves."""
        return (self.loc, self.matrix), (("loc", "matrix"), {})

    def __eq__(self, other: Any) -> ArrayLike:
        if not isinstance(other, Rotation):
            return False
        return jnp.array_equal(self.loc, other.loc) & jnp.array_equal(self.matrix, other.matrix)


def rotated(
    sources: TabulatedDistribution, loc: np.ndarray, matrix: np.ndarray, event_shape: tuple[int, ...]
) -> dist.TransformedDistribution:
    """The distribution of z = loc + A s, as an array of a shape, for independent coordinates s."""
    transforms = [Rotation(jnp.asarray(loc, float), jnp.asarray(matrix, float))]
    if len(event_shape) > 1:
        transforms.append(dist.transforms.ReshapeTransform(event_shape, loc.shape))
    return dist.TransformedDistribution(sources.to_event(1), transforms)


def estimate_rotation(samples: np.ndarray, weights: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean of samples and a matrix A such that s in z = mean + A s have unit variance and no correlation.

    "pca": the principal axes of the correlation matrix. "ica": these, rotated so that the coordinates of s are as
    independent as FastICA makes them, which matters where they are not normal. Each column of A is signed so that its
    largest entry is positive.
    """
    if method not in {"pca", "ica"}:
        raise ValueError(f"rotation must be 'pca', 'ica' or None, got {method!r}")
    correlation = check_correlation(samples, weights)
    mean = weights @ samples
    scale = np.sqrt(weights @ (samples - mean) ** 2)
    variances, axes = np.linalg.eigh(correlation)
    order = np.argsort(variances)[::-1]
    variances, axes = variances[order], axes[:, order]
    matrix = scale[:, None] * axes * np.sqrt(variances)
    if method == "ica":
        white = (samples - mean) / scale @ axes / np.sqrt(variances)
        # Equally weighted: evenly spaced in the cumulative weights, at most as many as an estimate of a rotation needs.
        size = min(len(white), _ICA_SAMPLES)
        places = np.searchsorted(np.cumsum(weights), (np.arange(size) + 0.5) / size)
        matrix = matrix @ _independent_axes(white[np.minimum(places, len(white) - 1)])
    largest = np.argmax(np.abs(matrix / scale[:, None]), axis=0)
    return mean, matrix * np.sign(matrix[largest, np.arange(matrix.shape[1])])


def _independent_axes(white: np.ndarray) -> np.ndarray:
    """The orthogonal matrix R for which R' w are as independent as FastICA makes them."""
    try:
        from sklearn.decomposition import FastICA
    except ImportError as error:
        raise ImportError(
            "rotation='ica' needs scikit-learn (pip install scikit-learn); rotation='pca' does without"
        ) from error
    ica = FastICA(whiten=False, fun="logcosh", max_iter=1000, random_state=0).fit(white)
    left, _, right = np.linalg.svd(ica.components_)  # the nearest orthogonal matrix: whitening stays exact
    return (left @ right).T
