"""The penalised likelihood of samples: how rough an energy is, how rough it may be, and the maximum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numpyro_kaem._fitting.exponential_family import (
    RIDGE,
    Families,
    Family,
    compress,
    design_matrix,
    maximise,
    normalised,
    panel_nodes,
)
from numpyro_kaem._fitting.ties import Sample
from numpyro_kaem.energies import Basis, BSpline

_BLOCK = 64  # coordinates that are fitted at a time, to bound the memory
_PATH = 10.0 ** np.arange(2.0, -10.5, -0.5)
_COARSE_ERROR = 1e-5  # nats in log Z, from which on the coarse quadrature is not trusted


def roughness(basis: Basis, breakpoints: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Matrices P with c' P c = scale^3 int_a^b f''(z)^2 dz, the roughness of f as a function of z / scale.

    Splines of degree 0 and 1 have no second derivative to integrate: there the second differences of the coefficients
    stand for it, as in P-splines (Eilers and Marx 1996).
    """
    if isinstance(basis, BSpline) and basis.degree < 2:
        places = 0.5 * (breakpoints[:, :-1] + breakpoints[:, 1:]) if basis.degree == 0 else breakpoints
        places = places / scale[:, None]
        slopes = np.diff(np.eye(places.shape[1]), axis=0) / np.diff(places, axis=1)[..., None]
        second = np.diff(slopes, axis=1) * np.sqrt(2.0 / (places[:, 2:] - places[:, :-2]))[..., None]
        return np.swapaxes(second, 1, 2) @ second
    # Central differences at four nodes of a cell, none of them closer to its ends than the step: there the functions
    # are smooth on the scale of the cell, and for cubics it is exact.
    nodes, weights = panel_nodes(breakpoints, 4)
    step = np.repeat(0.05 * np.diff(breakpoints, axis=1), 4, axis=1)
    below, middle, above = (design_matrix(basis, nodes + shift * step) for shift in (-1, 0, 1))
    factor = (scale[:, None] / step) ** 2 * np.sqrt(weights / scale[:, None])
    second = (below - 2.0 * middle + above) * factor[..., None]
    return np.swapaxes(second, 1, 2) @ second


def penalty_axes(basis: Basis, breakpoints: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the roughness, (num_coordinates, num_basis), and its eigenvectors.

    In them the penalty is diagonal, and equations stay well conditioned however large it is. Where the bases of the
    coordinates are one, moved and stretched, they share the eigenvectors: the first axis of these is 1.
    """
    if basis.stretched:
        size = (scale / (breakpoints[:, -1] - breakpoints[:, 0])) ** 3
        eigenvalues, rotation = np.linalg.eigh(roughness(basis, breakpoints[:1], scale[:1]))
        eigenvalues = eigenvalues * (size / size[0])[:, None]
    else:
        eigenvalues, rotation = np.linalg.eigh(roughness(basis, breakpoints, scale))
    return np.where(eigenvalues > 1e-12 * eigenvalues[:, -1:], eigenvalues, 0.0), rotation


def cross_validate(
    family: Family, fine: Family, fold_sums: np.ndarray, fold_weights: np.ndarray, eigenvalues: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the smoothness of each coordinate by the held-out log-likelihood.

    A path from smooth to rough, each fit starting from the one before. That of a coordinate ends where it has not
    gained for four steps, unless all of it has been as flat as it is at its smooth end, where every fit is the
    reference. Chosen is the smoothest fit that loses less than a quarter of a standard error against the best one;
    returned with it is its mean held-out log-likelihood relative to the reference's.

    The families are in the eigenvectors of the roughness, on a coarse quadrature and on that of the prior, which takes
    over where densities are too rough. Weighted sums of the basis functions over the folds have shape (D, K, G).
    """
    num_coordinates, num_folds = fold_weights.shape
    rest = 1.0 - fold_weights
    usable = (fold_weights > 1e-12) & (rest > 1e-12)
    train = (fold_sums.sum(1, keepdims=True) - fold_sums) / np.where(usable, rest, 1.0)[..., None]
    train = np.where(usable[..., None], train, fold_sums.sum(1, keepdims=True))
    coefficients = np.zeros_like(fold_sums)
    scores = np.full((len(_PATH), num_coordinates, num_folds), -np.inf)
    active, is_rough = np.arange(num_coordinates), np.zeros(num_coordinates, bool)
    for index, smoothness in enumerate(_PATH):
        for use in (False, True):
            of = active[is_rough[active] == use]
            if len(of) == 0:
                continue
            precision = smoothness * eigenvalues[of] + RIDGE
            # A gain of 1e-7 nats per sample decides nothing.
            c, converged = maximise(
                (fine if use else family)[of], train[of], precision, coefficients[of], tolerance=1e-7, most_steps=50
            )
            log_z = normalised(fine[of], c)[0]
            if not use:
                error = np.max(np.abs(log_z - normalised(family[of], c)[0]), axis=1)
                is_rough[of] = error > _COARSE_ERROR
            done = converged & (use | ~is_rough[of])
            coefficients[of[done]] = c[done]
            held_out = np.sum(fold_sums[of] * c, axis=-1) - fold_weights[of] * log_z
            scores[index, of[done]] = np.where(usable[of], held_out, 0.0)[done]
        total = scores[: index + 1].sum(axis=-1)
        best, highest = np.argmax(total, axis=0), np.max(total, axis=0)
        with np.errstate(invalid="ignore"):
            past_flat_end = (highest - total[0] > 1e-4) | (highest - total[-1] > 1e-3)
        active = active[~((index - best >= 4) & past_flat_end & np.isfinite(highest))[active]]
        if len(active) == 0:
            break
    best = np.argmax(scores.sum(axis=-1), axis=0)
    with np.errstate(invalid="ignore"):
        loss = np.take_along_axis(scores, best[None, :, None], axis=0) - scores  # (path, D, K)
        error = np.nan_to_num(np.std(loss, axis=-1, ddof=1) * np.sqrt(num_folds))
    # Where the curve is flat, chance decides which point is the best one: the smoothest that is hardly worse is taken.
    chosen = np.argmax(loss.sum(axis=-1) <= 0.25 * error, axis=0)
    gain = np.take_along_axis(scores.sum(axis=-1), chosen[None], axis=0)[0]
    # With n samples the best smoothness per sample falls as n^(-4/5), and the folds leave out one in num_folds.
    return _PATH[chosen] * (1.0 - 1.0 / num_folds) ** 0.8, gain


class PenalisedFit(NamedTuple):
    """Fits of all coordinates, the first axis of every array."""

    coefficients: np.ndarray
    smoothness: np.ndarray  # as it was given or chosen
    held_out_gain: np.ndarray  # over the reference's log-likelihood; NaN where the smoothness was given
    converged: np.ndarray  # whether the coefficients are the maximum's
    cdf_error: np.ndarray  # largest difference from the samples' distribution function at ends of panels
    log_reference: np.ndarray  # largest absolute log-density of the reference where the fit is not negligible
    steepness: np.ndarray  # nats by which the log-density changes on a quadrature panel that is not negligible


def fit_penalised(
    coarse: Families,
    fine: Families,
    samples: Sequence[Sample],
    num_folds: int,
    smoothness: np.ndarray | None,
    axes: tuple[np.ndarray, np.ndarray],
) -> PenalisedFit:
    """Fit the energies of a prior to samples, with the eigenvalues and eigenvectors of the roughness as axes.

    A fit to the families on few nodes will do where those of the prior's own quadrature see the same. Without a
    smoothness it is chosen by cross-validation.
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
        probability = normalised(families[1], fitted)[1][:, 0]
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
    error = np.abs(normalised(family, fitted)[0] - normalised(fine, fitted)[0])[:, 0]
    again = np.flatnonzero(~converged | ~(error < _COARSE_ERROR))
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
