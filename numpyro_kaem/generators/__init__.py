"""Equinox modules that map latents to the parameters of a likelihood, and data to parameters of latents.

Each file imports from those above it and from earlier rooms only.

precision: products in the dtype that the user chooses
mlp: `MLP`
kan: `KAN`
convolution: `ConvDecoder` and `ConvEncoder`, for images
attention: blocks of a transformer
autoregressive: `AutoregressiveCategorical`, the distribution of sequences that are drawn token by token
sequence: `SequenceDecoder` and `SequenceEncoder`, for sequences of tokens
"""

from numpyro_kaem.generators.autoregressive import AutoregressiveCategorical
from numpyro_kaem.generators.convolution import ConvDecoder, ConvEncoder
from numpyro_kaem.generators.kan import KAN
from numpyro_kaem.generators.mlp import MLP
from numpyro_kaem.generators.sequence import SequenceDecoder, SequenceEncoder

__all__ = [
    "KAN",
    "MLP",
    "AutoregressiveCategorical",
    "ConvDecoder",
    "ConvEncoder",
    "SequenceDecoder",
    "SequenceEncoder",
]
