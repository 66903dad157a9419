"""NumPyro distributions built on learned univariate densities."""

# Imported for what they register with NumPyro.
from numpyro_kaem.distributions import batching as batching
from numpyro_kaem.distributions import divergence as divergence
from numpyro_kaem.distributions.censored import IntervalCensoredPrior, LeftCensoredPrior, RightCensoredPrior
from numpyro_kaem.distributions.deep_prior import DeepKAPrior
from numpyro_kaem.distributions.ka_mixture import KAMixture
from numpyro_kaem.distributions.ka_prior import KAPrior
from numpyro_kaem.distributions.reparam import ICDFReparam
from numpyro_kaem.distributions.truncated import TruncatedPrior

__all__ = [
    "DeepKAPrior",
    "ICDFReparam",
    "IntervalCensoredPrior",
    "KAMixture",
    "KAPrior",
    "LeftCensoredPrior",
    "RightCensoredPrior",
    "TruncatedPrior",
]
