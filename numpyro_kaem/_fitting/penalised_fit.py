"""The maximum of the penalised likelihood of samples, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numpyro_kaem._fitting.exponential_family import (
    RIDGE,
    Families,
    compress,
    log_normalizer,
    maximise,
    node_probabilities,
)
from numpyro_kaem._fitting.smoothing import COARSE_ERROR, cross_validate
from numpyro_kaem._fitting.ties import Sample

_BLOCK = 64  # coordinates that are fitted at a time, to bound the memory


class PenalisedFit(NamedTuple):
    """Fits of all coordinates, the first axis of every array.

    Attributes:
        coefficients: of the basis functions.
        smoothness: as it was given or chosen.
        held_out_gain: mean held-out log-likelihood over that of the reference; NaN where the smoothness was given.
        converged: whether the coefficients are the maximum's.
        cdf_error: the largest difference from the samples' distribution function at ends of panels.
        log_reference: the largest absolute log-density of the reference where the fitted density is not negligible.
        steepness: the most nats by which the log-density changes on a quadrature panel that is not negligible.
    """

    coefficients: np.ndarray
    smoothness: np.ndarray
    held_out_gain: np.ndarray
    converged: np.ndarray
    cdf_error: np.ndarray
    log_reference: np.ndarray
    steepness: np.ndarray


def fit_penalised(
    coarse: Families,
    fine: Families,
    samples: Sequence[Sample],
    num_folds: int,
    smoothness: np.ndarray | None,
    axes: tuple[np.ndarray, np.ndarray],
) -> PenalisedFit:
    """Fit the energies of a prior to samples.

    Args:
        coarse: the families of its coordinates, on few nodes: a fit to them is done with where `fine` sees the same.
        fine: the same by the prior's own quadrature.
        samples: of each coordinate.
        num_folds: number of folds of the samples.
        smoothness: of each coordinate, or None to choose it by cross-validation.
        axes: eigenvalues and eigenvectors of the roughness.
    """
    fits = []
    for start in range(0, len(samples), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(samples)))
        eigenvalues, rotation = axes[0][block], axes[1] if len(axes[1]) == 1 else axes[1][block]
        families = coarse[block].rotated(rotation), fine[block].rotated(rotation)
        masses = np.stack(
            [
                compress(*sample[:3], num_folds, edges)
                for sample, edges in zip(samples[block], coarse.edges[block], strict=True)
            ]
        )
        sums = masses @ families[0].design[:, :-2]
        if smoothness is None:
            of_block, gain = cross_validate(*families, sums, masses.sum(axis=-1), eigenvalues)
        else:
            of_block, gain = smoothness[block], np.full(len(sums), np.nan)
        precision = of_block[:, None] * eigenvalues + RIDGE
        fitted, converged = _fit_to_means(*families, sums.sum(axis=1, keepdims=True), precision)
        probability = node_probabilities(families[1], fitted)[:, 0]
        cdf_error = [
            _cdf_error(*of)
            for of in zip(samples[block], fine.edges[block], fine.nodes[block], probability, strict=True)
        ]
        log_reference = np.abs(families[1].log_measure[:, :-2] - np.log(fine.widths[block]))
        log_reference = np.max(np.where(probability[:, :-2] > 1e-9, log_reference, 0.0), axis=1)
        steepness = _steepness(probability[:, :-2], fine.widths[block], fine.edges.shape[1] - 1)
        coefficients = (rotation @ fitted[:, 0, :, None])[..., 0]
        fits.append(
            PenalisedFit(coefficients, of_block, gain, converged, np.array(cdf_error), log_reference, steepness)
        )
    return PenalisedFit(*(np.concatenate(parts) for parts in zip(*fits, strict=True)))


def _fit_to_means(family, fine, statistics, precision) -> tuple[np.ndarray, np.ndarray]:
    """The maximum, on the nodes of the prior where the fewer ones do not see the same density."""
    fitted, converged = maximise(family, statistics, precision, np.zeros_like(statistics))
    error = np.abs(log_normalizer(family, fitted) - log_normalizer(fine, fitted))[:, 0]
    again = np.flatnonzero(~converged | ~(error < COARSE_ERROR))
    if len(again):
        start = np.where((converged & (error < 0.1))[again, None, None], fitted[again], 0.0)
        fitted[again], converged[again] = maximise(fine[again], statistics[again], precision[again], start)
    return fitted, converged


def _cdf_error(sample: Sample, edges: np.ndarray, nodes: np.ndarray, probability: np.ndarray) -> float:
    """The largest difference of two distribution functions where panels meet."""
    fitted = probability[-2] + np.append(0.0, np.cumsum(probability[:-2]))[np.searchsorted(nodes, edges[1:-1])]
    at_least, at_most = sample.cdf_bounds(edges[1:-1])
    return float(np.max(np.maximum(at_least - fitted, fitted - at_most), initial=0.0))


def _steepness(probability: np.ndarray, widths: np.ndarray, num_panels: int) -> np.ndarray:
    """The most by which a log-density changes from node to node of a panel with a hundredth of the mass."""
    log_density = np.log(np.maximum(probability, 1e-300)) - np.log(widths)
    log_density = log_density.reshape(len(widths), num_panels, -1)
    mass = probability.reshape(log_density.shape).sum(axis=-1)
    return np.max(np.where(mass > 0.01, np.ptp(log_density, axis=-1), 0.0), axis=1)
