"""Equinox modules that map latents to the parameters of a likelihood.

Each file imports from those above it and from earlier rooms only.

precision: products in the dtype that the user chooses
mlp: `MLP`
kan: `KAN`
"""

from numpyro_kaem.generators.kan import KAN
from numpyro_kaem.generators.mlp import MLP

__all__ = ["KAN", "MLP"]
