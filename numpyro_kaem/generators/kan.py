"""Kolmogorov-Arnold network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.checks import check_count
from numpyro_kaem.energies import Basis, BSpline
from numpyro_kaem.energies.energy import ACTIVATIONS, UnivariateEnergy
from numpyro_kaem.generators.precision import check_compute_dtype, contract

_DEFAULT_BASIS = BSpline(num_intervals=8, degree=3, domain=(-3.0, 3.0))


class KAN(eqx.Module):
    """Kolmogorov-Arnold network on any leading batch dimensions: sums of learned univariate functions.

    Each layer computes

        x_o = sum_i f_io(z_i),   f_io(z) = w_base act(z) + w_spline sum_g c_g B_g(z),

    with the same functions as the energies of the prior (`UnivariateEnergy`), so they are read and plotted
    alike: `kan.layers[l]` is a batch of functions of shape (fan_in, fan_out). Like those they are constant
    outside the domain of the basis. The basis is evaluated once per input coordinate, not once per function,
    and contracted with the coefficients of all functions in one matrix product.

    Base weights start normal, scaled so that standard normal inputs give outputs of about unit variance; the
    splines start at a tenth of that, so the functions start smooth.

    Args:
        key: JAX random key.
        in_size: size of the last axis of the input, at least 1.
        out_size: size of the last axis of the output, at least 1.
        hidden_sizes: width of each hidden layer; empty for one layer of functions.
        basis: the functions B_g and the domain on which they live, used in every layer.
        base_activation: "silu", "tanh" or "identity".
        compute_dtype: dtype to which the factors of matrix products are rounded, such as `jnp.bfloat16`; sums,
            the basis, activations, the parameters and their gradients keep the parameters' dtype. None for that dtype.

    Raises:
        ValueError: for a size below 1, a compute_dtype that is not floating, and, when called, for an input whose last
            axis is not in_size.

    References:
        Z. Liu et al., KAN: Kolmogorov-Arnold Networks, arXiv 2404.19756.

    Example:
        ```python
        import equinox as eqx
        import jax
        from numpyro_kaem import KAN, BSpline

        basis = BSpline(num_intervals=8, degree=3, domain=(-3.0, 3.0))
        generator = KAN(jax.random.key(0), 5, 64, hidden_sizes=(11,), basis=basis)
        z = jax.random.normal(jax.random.key(1), (100, 5))
        assert eqx.filter_jit(generator)(z).shape == (100, 64)
        ```
    """

    layers: tuple[UnivariateEnergy, ...]
    compute_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        in_size: int,
        out_size: int,
        hidden_sizes: Sequence[int] = (),
        *,
        basis: Basis = _DEFAULT_BASIS,
        base_activation: str = "silu",
        compute_dtype: Any = None,
    ):
        sizes = [
            check_count("in_size", in_size, 1),
            *(check_count("hidden_sizes", size, 1) for size in hidden_sizes),
            check_count("out_size", out_size, 1),
        ]
        layers = []
        for layer_key, shape in zip(jax.random.split(key, len(sizes) - 1), pairwise(sizes), strict=True):
            # E silu(z)^2 = 0.36 for a standard normal z, hence 1 / (0.6 sqrt(fan_in)).
            scale = 1.0 / (0.6 * shape[0] ** 0.5)
            layer = UnivariateEnergy.init(layer_key, shape, basis=basis, base_activation=base_activation, scale=scale)
            layers.append(eqx.tree_at(lambda f: f.coefficients, layer, 0.1 * layer.coefficients))
        self.layers = tuple(layers)
        self.compute_dtype = check_compute_dtype(compute_dtype)

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "... out_size"]:
        """Map the last axis of z from in_size to out_size."""
        in_size = self.layers[0].batch_shape[0]
        if jnp.ndim(z) == 0 or z.shape[-1] != in_size:
            raise ValueError(f"z must have a last axis of size {in_size}, got shape {jnp.shape(z)}")
        for layer in self.layers:
            coefficients = layer.spline_weight[..., None] * layer.coefficients
            spline = contract("...ig,iog->...o", layer.basis(z), coefficients, self.compute_dtype)
            activation, _ = ACTIVATIONS[layer.base_activation]
            base = activation(layer.basis.clip(z))
            z = contract("...i,io->...o", base, layer.base_weight, self.compute_dtype) + spline
        return z
