"""Function bases on an interval: the building blocks of a univariate energy."""

from numpyro_kaem.bases.basis import Basis
from numpyro_kaem.bases.bumps import RBF, RSWAF, Wavelet
from numpyro_kaem.bases.series import Chebyshev, Fourier
from numpyro_kaem.bases.splines import BSpline

__all__ = ["RBF", "RSWAF", "BSpline", "Basis", "Chebyshev", "Fourier", "Wavelet"]
