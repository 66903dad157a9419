"""Empirical Bayes: the prior of many effects, learned from one measurement of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._fitting.fit import tilted, unexpanded
from numpyro_kaem.checks import check_count
from numpyro_kaem.distributions import KAPrior
from numpyro_kaem.energies import Basis
from numpyro_kaem.measurements.covariates import Covariates
from numpyro_kaem.measurements.input_checks import check_point_mass, check_smoothness, check_weights
from numpyro_kaem.measurements.likelihood import Measurements, check_likelihood
from numpyro_kaem.measurements.problem import Problem, support_of
from numpyro_kaem.measurements.regression import learn_covariates
from numpyro_kaem.measurements.result import EmpiricalBayes, posteriors_of
from numpyro_kaem.measurements.rows import Intervals

_FEWEST_OF_A_FOLD = 10  # data, below which the evidence chooses


def empirical_bayes(
    likelihood: Callable[..., dist.Distribution],
    *data: Any,
    weights: ArrayLike | Sequence | None = None,
    covariates: ArrayLike | Sequence | None = None,
    scale_covariates: ArrayLike | Sequence | None = None,
    point_mass: float | None = None,
    reference: dist.Distribution | None = None,
    basis: Basis | None = None,
    smoothness: float | str | None = None,
    num_folds: int = 10,
    chunk_size: int = 4096,
) -> EmpiricalBayes:
    """Learn the distribution of effects from noisy measurements, and correct every measurement by it:

        maximise  sum_i w_i log int p(data_i | theta) p(theta) d theta - 1/2 (sum_i w_i) smoothness R(f),
        p(theta) = pi0(theta) exp(f(theta)) / Z,

    with f a spline and R(f) its roughness as in `KAPrior.from_samples`. The integrals are by quadrature, without Monte
    Carlo, and the maximum is found by Newton's method with the exact Hessian, from smooth to rough energies, each
    starting from the one before.

    Args:
        likelihood: a function from effects to a NumPyro distribution of the first data array, with the other data
            arrays as further arguments: `lambda effect, error: dist.Normal(effect, error)`. Effects have shape
            (1, num_effects) or (num_rows, num_effects) and data arrays (num_rows, 1, ...), in float64: broadcasting
            does the rest. Several measurements of one effect are one event of the distribution. It is traced by JAX,
            with some of the data at a time: what differs from datum to datum has to be a data array. The likelihood
            of a datum as a function of the effect should have one maximum.
        *data: arrays with one entry for each effect first: shape (n,), or (n, ...) for events.
        weights: how often each datum counts, not negative, shape (n,); doubling a weight is the same as repeating
            the datum.
        covariates: x, shape (n, num_covariates) or (n,): theta_i = x_i . beta + e_i with e_i from the prior; beta is
            learned by the same marginal likelihood. Without a column of ones: the prior has a location.
        scale_covariates: s: theta_i = x_i . beta + exp(s_i . gamma) e_i.
        point_mass: an effect with a probability of its own, such as 0.0: a spike and a slab. The share of effects there
            is learned. With covariates it is one of e.
        reference: pi0, with the support of the effects; None for a Normal, or where they have heavy tails a StudentT,
            of greatest marginal likelihood.
        basis: the functions that f is made of; None for cubic B-splines on 40 intervals where the posteriors lie.
        smoothness: weight of the penalty; "cross-validation" to choose it by the held-out log-likelihood of num_folds
            folds, which are one Newton step away from the fit to all; "evidence" by Laplace's method. None for
            cross-validation, and the evidence where a fold has less than 10 data. With more than 5,000 data it is
            chosen by as many of them, and scaled to all as n^(-4/5).
        num_folds: folds of the cross-validation.
        chunk_size: data whose likelihood is computed at a time. More than half a gigabyte of likelihoods is not kept
            but computed again at every step.

    Returns:
        An `EmpiricalBayes`: the prior, and of each datum evidence, posterior mean, standard deviation, quantiles.

    Raises:
        TypeError: for a likelihood that is no function or gives no distribution, and data that are no numbers.
        ValueError: for data that are masked, not finite or outside of the likelihood's support, a likelihood of another
            batch shape, with invalid parameters or zero at every effect (of which datum), weights that are negative or
            all zero, covariates that are constant or depend on each other, a point mass outside of the support, and a
            smoothness that is negative.

    A maximum that was not reached is warned of.

    References:
        B. Efron, Empirical Bayes deconvolution estimates, Biometrika 103(1), 2016. M. Stephens, False discovery rates:
        a new deal, Biostatistics 18(2), 2017. S. N. Wood, Generalized Additive Models, 2017 (the choice of smoothness).

    Example:
        ```python
        import numpy as np
        import numpyro.distributions as dist
        from numpyro_kaem import empirical_bayes

        rng = np.random.default_rng(0)
        at_bats = rng.integers(20, 200, 300)
        hits = rng.binomial(at_bats, rng.beta(30.0, 80.0, 300))
        result = empirical_bayes(lambda logit, n: dist.Binomial(n, logits=logit), hits, at_bats)
        assert result.mean.shape == (300,)
        assert result.std.max() < 0.3
        ```
    """
    chunk_size = check_count("chunk_size", chunk_size, 1)
    num_folds = check_count("num_folds", num_folds, 2)
    given = Measurements(likelihood, data, chunk_size)
    num_data = len(given)
    weights = check_weights(weights, num_data)
    if reference is not None:
        reference = unexpanded(reference)
        if reference.batch_shape:
            raise ValueError(
                f"reference must have batch shape (), one prior for all effects, got {reference.batch_shape}"
            )
    support = support_of(reference)
    point_mass = check_point_mass(point_mass, support)
    criterion, smoothness = check_smoothness(smoothness, num_folds, weights, _FEWEST_OF_A_FOLD)
    rows_of = Covariates.of(covariates, scale_covariates, num_data)
    check_likelihood(given, _inside(support))

    # With covariates the support is that of e, not of the effects.
    intervals = Intervals.of(given, (-np.inf, np.inf) if rows_of.is_used else support)
    order = np.random.default_rng(0).permutation(num_data)
    problem = Problem(
        given.take(order), intervals[order], weights[order], rows_of.take(order), reference, basis, point_mass
    )
    errors = np.zeros(0)
    if rows_of.is_used:
        coefficients, errors = learn_covariates(problem, criterion, smoothness, num_folds)
        rows_of = rows_of.with_coefficients(coefficients)
    laid_out = problem.laid_out(rows_of.coefficients)
    fit = laid_out.fit(criterion, smoothness, num_folds)
    if not fit.converged:
        warnings.warn(
            "the maximum of the marginal likelihood was not reached; give a larger smoothness, or a basis of fewer "
            "functions",
            stacklevel=2,
        )
    learned = laid_out.learned(fit)
    num_location = rows_of.location.shape[1]
    energy, reference = tilted(laid_out.density, learned.coefficients[: laid_out.density.energy.basis.num_basis])
    empty = np.empty(0)
    result = EmpiricalBayes(
        prior=KAPrior(energy, reference),
        log_evidence=empty,
        mean=empty,
        std=empty,
        point_mass=point_mass,
        point_mass_weight=1.0 - learned.slab_weight,
        smoothness=fit.smoothness,
        location_coefficients=rows_of.coefficients[:num_location],
        location_errors=errors[:num_location],
        scale_coefficients=rows_of.coefficients[num_location:],
        scale_errors=errors[num_location:],
        log_likelihood=0.0,
        _learned=learned,
        _measurements=given,
        _intervals=intervals,
        _covariates=rows_of,
        _point=empty,
    )
    return posteriors_of(result, rows_of.applied(given), intervals, rows_of, weights)


def _inside(support: tuple[float, float]) -> float:
    """An effect at which to look at the likelihood."""
    low, high = support
    if np.isfinite(low) and np.isfinite(high):
        return 0.5 * (low + high)
    return low + 1.0 if np.isfinite(low) else high - 1.0 if np.isfinite(high) else 0.0
