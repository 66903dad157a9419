"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.checks import check_count
from numpyro_kaem.generators.precision import check_compute_dtype, contract


class MLP(eqx.Module):
    """Multilayer perceptron on any leading batch dimensions.

    With h_0 = z, hidden layers h_l = activation(h_{l-1} W_l + b_l), and a last layer without activation.

    Weights start normal with variance 2 / fan_in in the hidden layers (He et al. 2015: rectifier-like
    activations keep their scale from layer to layer) and 1 / fan_in in the last; biases start at zero.

    Args:
        key: JAX random key.
        in_size: size of the last axis of the input, at least 1.
        out_size: size of the last axis of the output, at least 1.
        hidden_sizes: width of each hidden layer; empty for an affine map.
        activation: elementwise function of the hidden layers.
        compute_dtype: dtype to which the factors of matrix products are rounded, such as `jnp.bfloat16`; sums,
            biases, activations, the parameters and their gradients keep the parameters' dtype. None for that dtype.

    Raises:
        ValueError: for a size below 1, a compute_dtype that is not floating, and, when called, for an input whose last
            axis is not in_size.

    Example:
        ```python
        import equinox as eqx
        import jax
        from numpyro_kaem import MLP

        decoder = MLP(jax.random.key(0), 10, 784, hidden_sizes=(64, 64), activation=jax.nn.silu)
        z = jax.random.normal(jax.random.key(1), (3, 5, 10))
        assert eqx.filter_jit(decoder)(z).shape == (3, 5, 784)
        ```
    """

    weights: tuple[Float[Array, "fan_in fan_out"], ...]
    biases: tuple[Float[Array, " fan_out"], ...]
    activation: Callable = eqx.field(static=True)
    compute_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        in_size: int,
        out_size: int,
        hidden_sizes: Sequence[int] = (256, 256),
        activation: Callable = jax.nn.gelu,
        *,
        compute_dtype: Any = None,
    ):
        sizes = [
            check_count("in_size", in_size, 1),
            *(check_count("hidden_sizes", size, 1) for size in hidden_sizes),
            check_count("out_size", out_size, 1),
        ]
        gains = [2.0] * len(hidden_sizes) + [1.0]
        self.weights = tuple(
            (gain / shape[0]) ** 0.5 * jax.random.normal(layer_key, shape)
            for layer_key, gain, shape in zip(jax.random.split(key, len(gains)), gains, pairwise(sizes), strict=True)
        )
        self.biases = tuple(jnp.zeros(fan_out) for fan_out in sizes[1:])
        self.activation = activation
        self.compute_dtype = check_compute_dtype(compute_dtype)

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "... out_size"]:
        """Map the last axis of z from in_size to out_size."""
        in_size = self.weights[0].shape[0]
        if jnp.ndim(z) == 0 or z.shape[-1] != in_size:
            raise ValueError(f"z must have a last axis of size {in_size}, got shape {jnp.shape(z)}")
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            z = self.activation(self._product(z, weight) + bias)
        weight, bias = last
        return self._product(z, weight) + bias

    def _product(self, z: Array, weight: Array) -> Array:
        return contract("...i,io->...o", z, weight, self.compute_dtype)
