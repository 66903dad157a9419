"""Distances between samples and data, as from infinitely many of both, with standard errors.

Each file imports from those above it and from earlier rooms only.

distance: A distance between two sets of samples, as it is shown
features: Samples and data as vectors of features, checked
frechet: The Frechet distance, extrapolated to infinitely many samples by a jackknife of second order
kernel: The kernel distance, a U-statistic without bias, with the standard error of all pairs
"""

from numpyro_kaem.metrics.distance import Distance
from numpyro_kaem.metrics.frechet import frechet_distance
from numpyro_kaem.metrics.kernel import kernel_distance

__all__ = ["Distance", "frechet_distance", "kernel_distance"]
