"""Many measurements with known errors: the prior of what was measured, and what it makes of each.

Each file imports from those above it and from earlier rooms only.

input_checks: What can be wrong with what is asked of empirical Bayes
likelihood: The likelihood of effects: a function that gives NumPyro distributions, evaluated on rows of data
covariates: Covariates of effects, of their location and their scale
nodes: The prior of effects on quadrature nodes: an exponential family with tails and perhaps a point mass
rows: The likelihood of every datum on the nodes, as a matrix in blocks
marginal_likelihood: The penalised marginal likelihood of a prior's coefficients, and its maximum
start: Where the learned prior starts: a Normal or StudentT of greatest marginal likelihood
posteriors: The posterior of each effect: moments, distribution functions and their inverses
problem: The problem laid out on nodes, and its solution
regression: Coefficients of covariates by the marginal likelihood
result: What empirical Bayes learns, as users see it
empirical_bayes: Empirical Bayes in one call
"""

from numpyro_kaem.measurements.empirical_bayes import empirical_bayes
from numpyro_kaem.measurements.result import DensityBand, EmpiricalBayes

__all__ = ["DensityBand", "EmpiricalBayes", "empirical_bayes"]
