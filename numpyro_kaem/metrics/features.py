"""Samples and data as vectors of features, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from numpyro_kaem.checks import check_count, check_not_masked


def name_of(features: Callable | None) -> str:
    """What a distance says of its features."""
    return "values" if features is None else getattr(features, "__name__", type(features).__name__)


def both_features(
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
