"""Generators: Equinox modules that map latents to the parameters of a likelihood."""

from numpyro_kaem.generators.kan import KAN
from numpyro_kaem.generators.mlp import MLP

__all__ = ["KAN", "MLP"]
