"""Kolmogorov-Arnold Energy Models in NumPyro: learned priors that are drawn exactly and can be read."""

from numpyro_kaem.bases import RBF, RSWAF, Basis, BSpline, Chebyshev, Fourier, Wavelet
from numpyro_kaem.distributions import ICDFReparam, KAMixture, KAPrior
from numpyro_kaem.energies import UnivariateEnergy
from numpyro_kaem.energy_module import adapt_svi_grid, energy_module
from numpyro_kaem.generators import KAN, MLP
from numpyro_kaem.latent_model import LatentModel
from numpyro_kaem.objectives import ImportanceMLE
from numpyro_kaem.pairwise import pairwise_log_likelihood
from numpyro_kaem.posterior import ImportanceSampling, Posterior
from numpyro_kaem.quadrature import GaussLegendre, Trapezoid
from numpyro_kaem.training import FitResult, fit

__version__ = "0.1.0"
__all__ = [
    "KAN",
    "MLP",
    "RBF",
    "RSWAF",
    "BSpline",
    "Basis",
    "Chebyshev",
    "FitResult",
    "Fourier",
    "GaussLegendre",
    "ICDFReparam",
    "ImportanceMLE",
    "ImportanceSampling",
    "KAMixture",
    "KAPrior",
    "LatentModel",
    "Posterior",
    "Trapezoid",
    "UnivariateEnergy",
    "Wavelet",
    "adapt_svi_grid",
    "energy_module",
    "fit",
    "pairwise_log_likelihood",
]
