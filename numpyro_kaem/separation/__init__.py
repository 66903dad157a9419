"""Blind source separation: independent sources with learned densities. It needs scikit-learn.

Each file imports from those above it and from earlier rooms only.

source_densities: Densities of unit-variance sources on the host: fitted to binned samples, and their scores
unmixing: The unmixing matrix of greatest profile likelihood, and a start for it
alternation: The search for independent sources: a start, then rounds of steps with domains that move between them
whitening: Data as sources take them: checked, centred, and whitened within their principal subspace
ica: `ICA`, with scikit-learn's interface
"""

from numpyro_kaem.separation.ica import ICA

__all__ = ["ICA"]
