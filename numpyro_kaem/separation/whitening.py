"""Data as sources take them: checked, centred, and whitened within their principal subspace."""

from __future__ import annotations

import numpy as np

# Of the correlation matrix: below this share of its mean an eigenvalue is rounding.
_LEAST_EIGENVALUE = 1e-12
_SMALLEST, _LARGEST = 1e-140, 1e140  # values whose squares and their sums are numbers


def check_finite_rows(x: np.ndarray) -> None:
    """Raise where data (n, num_features) have values that are no numbers."""
    wrong = ~np.isfinite(x)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        kind = "NaN" if np.isnan(x[row, column]) else "infinity"
        raise ValueError(
            f"X must be finite, but {int(wrong.sum())} of {x.size} values are NaN or infinite (inf), the first, {kind},"
            f" in row {row} and column {column}; remove these rows, or impute the values"
        )


def check_num_components(n_components: int | None, x: np.ndarray) -> int:
    """The number of sources that is asked of data, or what is wrong with it."""
    n, num_features = x.shape
    num_sources = num_features if n_components is None else n_components
    if num_sources > num_features:
        raise ValueError(
            f"n_components must be at most the number of features, got {num_sources} for {num_features} features; "
            "more sources than sensors take a model with noise"
        )
    if n <= num_sources:
        raise ValueError(
            f"X must have more rows than sources, got n_samples = {n} for {num_sources} sources; give more rows, or "
            "fewer n_components"
        )
    return num_sources


def check_columns_vary(x: np.ndarray, names: np.ndarray | None) -> None:
    """Raise where columns are constant, or vary by too little or too much for their variances, and name them."""
    names = np.arange(x.shape[1]) if names is None else names
    largest = np.max(np.abs(x), axis=0)
    deviation = np.std(x / np.where(largest > 0.0, largest, 1.0), axis=0)
    constant = deviation <= 4.0 * np.finfo(float).eps
    if constant.any():
        raise ValueError(
            f"X must have columns that vary, but those of {names[constant].tolist()} are constant; leave them out"
        )
    extreme = (deviation * largest < _SMALLEST) | (largest > _LARGEST)
    if extreme.any():
        raise ValueError(
            f"X must have columns whose variances are floats, but those of {names[extreme].tolist()} have absolute "
            f"values of up to {largest[extreme].tolist()}; give them in other units"
        )


def whitener(x: np.ndarray, num_sources: int) -> np.ndarray:
    """The matrix K, (num_sources, num_features), for which K x has the unit covariance; x is centred.

    For fewer sources than features its rows are the principal components of greatest variance.
    """
    n, num_features = x.shape
    scale = np.sqrt(np.mean(x**2, axis=0))
    eigenvalues, axes = np.linalg.eigh((x / scale).T @ (x / scale) / n)
    rank = int(np.sum(eigenvalues > _LEAST_EIGENVALUE))
    if rank < num_sources:
        raise ValueError(
            f"X must have at least as many independent columns as sources, but it has rank {rank} for {num_sources} "
            f"sources; give n_components={rank}, or leave out columns that others add up to"
        )
    if num_sources == num_features:  # in units of the features: what is their size is no matter of theirs
        return (axes / np.sqrt(eigenvalues)).T / scale
    eigenvalues, axes = np.linalg.eigh(x.T @ x / n)
    eigenvalues, axes = eigenvalues[: -num_sources - 1 : -1], axes[:, : -num_sources - 1 : -1]
    if eigenvalues[-1] <= _LEAST_EIGENVALUE * eigenvalues[0]:
        raise ValueError(
            f"X must have {num_sources} principal components that are more than rounding, but their variances go from "
            f"{eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}; bring the columns to one scale, or give fewer n_components"
        )
    return (axes / np.sqrt(eigenvalues)).T
