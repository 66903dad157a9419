"""Learned functions of one variable: bases on a domain, and the energies that are built of them.

Each file imports from those above it and from earlier rooms only.

basis: the abstract basis: values, cells, domain
splines: B-splines
bumps: radial functions and wavelets
series: Fourier and Chebyshev series
adaptation: knots that follow samples
energy: `UnivariateEnergy`
module: `energy_module` and grids that adapt inside a NumPyro model
"""

from numpyro_kaem.energies.basis import Basis
from numpyro_kaem.energies.bumps import RBF, RSWAF, Wavelet
from numpyro_kaem.energies.energy import UnivariateEnergy
from numpyro_kaem.energies.module import adapt_svi_grid, energy_module
from numpyro_kaem.energies.series import Chebyshev, Fourier
from numpyro_kaem.energies.splines import BSpline

__all__ = [
    "RBF",
    "RSWAF",
    "BSpline",
    "Basis",
    "Chebyshev",
    "Fourier",
    "UnivariateEnergy",
    "Wavelet",
    "adapt_svi_grid",
    "energy_module",
]
