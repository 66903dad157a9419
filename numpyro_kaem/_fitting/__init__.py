"""Samples or a log-density to an energy and a reference.

Each file imports from those above it and from earlier rooms only.

ties: Samples with ties: counts, scores, rounded values, atoms, repeated draws
exponential_family: Fitting the coefficients of a tilted reference: a concave problem of few dimensions per coordinate
smoothing: The penalised likelihood of samples: how rough an energy is, how rough it may be, and the maximum
sample_checks: What can be wrong with samples, their weights, and what is asked of a fit to them
default_shape: The reference and the basis of a prior from samples, where the user gives none
fit: A tilted reference, fitted to samples, to a log-density or to densities that are tabulated on a grid
posterior_draws: Draws of a posterior: reading them from what ArviZ or NumPyro holds them in, without ArviZ
"""
