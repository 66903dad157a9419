"""NumPyro distributions built on learned univariate densities.

Each file imports from those above it and from earlier rooms only.

lookup: Inverse CDFs as tables of integers, for hardware that draws without floating-point arithmetic
tabulated: NumPyro's contract over a density that is drawn by inverse transform from a table of its CDF
truncated: Learned densities cut off at bounds, such as the lifetimes of those who were alive when a study began
centered: Learned densities with mean zero, and variance one on request: the effects of groups
censored: Censored observations of learned densities: NumPyro's distributions, with the digits of the tails
copula: Gaussian copulas over learned marginals
rotation: Rotated coordinates in which samples are uncorrelated, or as independent as a linear map makes them
leaf_shapes: Distributions whose leaves have other shapes than when they were made
ka_prior: The tilted reference: a learned, normalised, invertible univariate density
ka_mixture: Mixtures of tilted references along a component axis, drawn without drawing a component
deep_prior: The deep prior: an energy of the whole latent vector, neither normalised nor invertible
reparam: Latent sites with learned densities, sampled in the coordinates of a standard normal
factors: The univariate distributions that a joint one is the product of
side_by_side: Univariate distributions of different families side by side, as one distribution with a batch shape
discretized: A logistic distribution rounded to integers, for 8-bit data
divergence: Kullback-Leibler divergences of learned densities, registered with NumPyro's `kl_divergence`
"""

# Imported for what it registers with NumPyro.
from numpyro_kaem.distributions import divergence as divergence
from numpyro_kaem.distributions.censored import IntervalCensoredPrior, LeftCensoredPrior, RightCensoredPrior
from numpyro_kaem.distributions.centered import centered_prior
from numpyro_kaem.distributions.deep_prior import DeepKAPrior
from numpyro_kaem.distributions.discretized import DiscretizedLogistic
from numpyro_kaem.distributions.ka_mixture import KAMixture
from numpyro_kaem.distributions.ka_prior import KAPrior
from numpyro_kaem.distributions.lookup import LookupTable
from numpyro_kaem.distributions.reparam import ICDFReparam
from numpyro_kaem.distributions.side_by_side import SideBySide
from numpyro_kaem.distributions.truncated import TruncatedPrior

__all__ = [
    "DeepKAPrior",
    "DiscretizedLogistic",
    "ICDFReparam",
    "IntervalCensoredPrior",
    "KAMixture",
    "KAPrior",
    "LeftCensoredPrior",
    "LookupTable",
    "RightCensoredPrior",
    "SideBySide",
    "TruncatedPrior",
    "centered_prior",
]
