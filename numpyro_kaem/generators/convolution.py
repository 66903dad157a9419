"""Convolutional decoder and encoder of images."""

from __future__ import annotations

import math
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

# The default width of the kernels.
_KERNEL_SIZES = {"transposed": 4, "resize": 3}


class ConvDecoder(eqx.Module):
    r"""Convolutional decoder of images of any size, channels last, on any leading batch dimensions.

    A dense layer makes a small grid, and every later layer doubles it:

        h_0 = z W + b,   h_l = up_l(activation(h_{l-1})) + b_l,

    once for each entry of `channels`. The grids are found from the last one by halving, rounded up: 28 x 28 comes from
    14 x 14 and 7 x 7, 33 x 47 from 17 x 24 and 9 x 12. A layer ends at the size of its grid, and nothing is cut off at
    one side only. Outside of a grid is zero.

    With `upsampling="transposed"` a layer is the adjoint of a convolution of stride 2 from the larger grid to the
    smaller, along each axis

        up(h)_j = sum_i h_i K_{j - 2 i + p},

    whose padding p is the same at both ends: for that the kernel is even along axes of even size and odd along odd
    ones. Odd ones reach every other pixel by one tap more, which may show as a checkerboard (Odena et al.). With
    `upsampling="resize"` a layer interpolates linearly, then convolves with an odd kernel: no checkerboard, more work.

    Weights start normal with variance 2 / fan_in, where fan_in is the mean number of terms of a sum, and 1 / fan_in in
    the last layer; biases start at zero. Convolutions are written as matrix products, whose gradients are faster on
    processors than those of XLA's convolutions (`python -m benchmarks.generators`).

    Args:
        key: JAX random key.
        in_size: size of the last axis of the input, at least 1.
        out_shape: height, width and channels of the output, each at least 1.
        channels: channels of the grids from the smallest on, without the output's: one doubling for each. Empty for an
            affine map.
        upsampling: "transposed" or "resize".
        kernel_size: width of the kernels. For "transposed" they have one tap more along axes of the other parity, for
            "resize" it must be odd. Taps that would always lie outside of the grid are left out. By default 4 for
            "transposed" and 3 for "resize".
        activation: elementwise function of the hidden layers.
        compute_dtype: dtype to which the factors of products are rounded, such as `jnp.bfloat16`; sums, biases,
            activations, the parameters and their gradients keep the parameters' dtype. None for that dtype.

    Raises:
        ValueError: for a size below 1, an out_shape that is not of three sizes, an unknown upsampling, an even
            kernel_size for "resize", a compute_dtype that is not floating, and, when called, for an input whose last
            axis is not in_size.

    References:
        A. Odena, V. Dumoulin and C. Olah, Deconvolution and Checkerboard Artifacts, Distill 2016.

    Example:
        ```python
        import equinox as eqx
        import jax
        from numpyro_kaem import ConvDecoder

        decoder = ConvDecoder(jax.random.key(0), 10, (33, 47, 3), channels=(32, 16))
        z = jax.random.normal(jax.random.key(1), (2, 5, 10))
        assert eqx.filter_jit(decoder)(z).shape == (2, 5, 33, 47, 3)
        ```
    """

    dense_weight: Float[Array, "in_size first_grid"]
    dense_bias: Float[Array, " first_grid"]
    kernels: tuple[Float[Array, "height width fan_in fan_out"], ...]
    biases: tuple[Float[Array, " fan_out"], ...]
    grids: tuple[tuple[int, int, int], ...] = eqx.field(static=True)
    upsampling: str = eqx.field(static=True)
    activation: Callable = eqx.field(static=True)
    compute_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        in_size: int,
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        upsampling: str = "transposed",
        kernel_size: int | None = None,
        activation: Callable = jax.nn.gelu,
        compute_dtype: Any = None,
    ):
        in_size = check_count("in_size", in_size, 1)
        if upsampling not in _KERNEL_SIZES:
            raise ValueError(f'upsampling must be "transposed" or "resize", got {upsampling!r}')
        kernel_size = check_count("kernel_size", _KERNEL_SIZES[upsampling] if kernel_size is None else kernel_size, 1)
        if upsampling == "resize" and kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd for upsampling="resize", got {kernel_size}')
        self.grids = _halvings("out_shape", out_shape, channels[::-1])[::-1]
        self.upsampling = upsampling
        self.activation = activation
        self.compute_dtype = check_compute_dtype(compute_dtype)

        dense_key, *keys = jax.random.split(key, len(self.grids))
        gains = [2.0] * len(channels) + [1.0]
        size = math.prod(self.grids[0])
        self.dense_weight = (gains[0] / in_size) ** 0.5 * jax.random.normal(dense_key, (in_size, size))
        self.dense_bias = jnp.zeros(size)
        kernels = []
        for layer_key, gain, (before, after) in zip(keys, gains[1:], pairwise(self.grids), strict=True):
            shape = (*(_num_taps(kernel_size, n, self._stride) for n in after[:2]), before[2], after[2])
            # Of a transposed convolution every number meets every tap, and the products are divided among the sums.
            fan_in = math.prod(shape[:3]) * (math.prod(before[:2]) / math.prod(after[:2]) if self._stride == 2 else 1)
            kernels.append((gain / fan_in) ** 0.5 * jax.random.normal(layer_key, shape))
        self.kernels = tuple(kernels)
        self.biases = tuple(jnp.zeros(grid[2]) for grid in self.grids[1:])

    @property
    def _stride(self) -> int:
        return 2 if self.upsampling == "transposed" else 1

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "... height width channels"]:
        """Map the last axis of z, of in_size, to an image."""
        in_size = self.dense_weight.shape[0]
        if jnp.ndim(z) == 0 or z.shape[-1] != in_size:
            raise ValueError(f"z must have a last axis of size {in_size}, got shape {jnp.shape(z)}")
        h = contract("...i,io->...o", z, self.dense_weight, self.compute_dtype) + self.dense_bias
        h = h.reshape(*z.shape[:-1], *self.grids[0])
        for kernel, bias, (height, width, _) in zip(self.kernels, self.biases, self.grids[1:], strict=True):
            h = self.activation(h)
            if self.upsampling == "resize":
                h = jax.image.resize(h, (*h.shape[:-3], height, width, h.shape[-1]), "linear")
            h = _spread(h, kernel, (height, width), self._stride, self.compute_dtype) + bias
        return h


class ConvEncoder(eqx.Module):
    """Convolutional encoder of images of any size, channels last, on any leading batch dimensions.

    The counterpart of `ConvDecoder`: every layer halves the grid by a convolution of stride 2, and a dense layer maps
    the last grid to the output:

        h_0 = x,   h_l = activation(down_l(h_{l-1}) + b_l),   out = h_L W + b,

    where down_l is the adjoint of a transposed convolution of the decoder, through the same grids, padded by zeros of
    the same number at both ends.

    Weights start normal with variance 2 / fan_in, and 1 / fan_in in the last layer; biases start at zero.

    Args:
        key: JAX random key.
        in_shape: height, width and channels of the input, each at least 1.
        out_size: size of the last axis of the output, at least 1.
        channels: channels of the grids from the largest on, without the input's: one halving for each; a decoder's in
            reverse. Empty for an affine map.
        kernel_size: width of the kernels; one tap more along axes of the other parity. Taps that would always lie
            outside of the grid are left out.
        activation: elementwise function of the hidden layers.
        compute_dtype: as of `ConvDecoder`.

    Raises:
        ValueError: for a size below 1, an in_shape that is not of three sizes, a compute_dtype that is not floating,
            and, when called, for an input whose last three axes are not in_shape.

    Example:
        ```python
        import equinox as eqx
        import jax
        from numpyro_kaem import ConvEncoder

        encoder = ConvEncoder(jax.random.key(0), (28, 28, 1), 2 * 10)
        x = jax.random.normal(jax.random.key(1), (100, 28, 28, 1))
        loc, log_scale = jax.numpy.split(eqx.filter_jit(encoder)(x), 2, axis=-1)
        assert loc.shape == (100, 10)
        ```
    """

    kernels: tuple[Float[Array, "height width fan_in fan_out"], ...]
    biases: tuple[Float[Array, " fan_out"], ...]
    dense_weight: Float[Array, "last_grid out_size"]
    dense_bias: Float[Array, " out_size"]
    grids: tuple[tuple[int, int, int], ...] = eqx.field(static=True)
    activation: Callable = eqx.field(static=True)
    compute_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        in_shape: Sequence[int],
        out_size: int,
        channels: Sequence[int] = (32, 64),
        *,
        kernel_size: int = 4,
        activation: Callable = jax.nn.gelu,
        compute_dtype: Any = None,
    ):
        kernel_size = check_count("kernel_size", kernel_size, 1)
        out_size = check_count("out_size", out_size, 1)
        self.grids = _halvings("in_shape", in_shape, channels)
        self.activation = activation
        self.compute_dtype = check_compute_dtype(compute_dtype)

        dense_key, *keys = jax.random.split(key, len(self.grids))
        kernels = []
        for layer_key, (before, after) in zip(keys, pairwise(self.grids), strict=True):
            shape = (*(_num_taps(kernel_size, n, 2) for n in before[:2]), before[2], after[2])
            kernels.append((2.0 / math.prod(shape[:3])) ** 0.5 * jax.random.normal(layer_key, shape))
        self.kernels = tuple(kernels)
        self.biases = tuple(jnp.zeros(grid[2]) for grid in self.grids[1:])
        size = math.prod(self.grids[-1])
        self.dense_weight = (1.0 / size) ** 0.5 * jax.random.normal(dense_key, (size, out_size))
        self.dense_bias = jnp.zeros(out_size)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "... out_size"]:
        """Map the last three axes of x, an image of in_shape, to one of out_size."""
        if jnp.shape(x)[-3:] != self.grids[0]:
            raise ValueError(f"x must have last axes of sizes {self.grids[0]}, got shape {jnp.shape(x)}")
        h = x
        for kernel, bias, (height, width, _) in zip(self.kernels, self.biases, self.grids[1:], strict=True):
            h = self.activation(_gather(h, kernel, (height, width), 2, self.compute_dtype) + bias)
        h = h.reshape(*x.shape[:-3], self.dense_weight.shape[0])
        return contract("...i,io->...o", h, self.dense_weight, self.compute_dtype) + self.dense_bias


def _halvings(name: str, shape: Sequence[int], channels: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """The shape of an image, and those of half its size, rounded up, for each of the numbers of channels."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"{name} must be (height, width, channels), got {shape!r}")
    height, width, last = (check_count(name, size, 1) for size in shape)
    grids = [(height, width, last)]
    for count in channels:
        height, width = -(-height // 2), -(-width // 2)
        grids.append((height, width, check_count("channels", count, 1)))
    return tuple(grids)


def _num_taps(kernel_size: int, size: int, stride: int) -> int:
    """Taps of a kernel along an axis whose size is that of the larger grid.

    The two ends are padded alike where taps and size have one parity (stride 2), or for an odd number (stride 1).
    """
    parity = size % 2 if stride == 2 else 1
    # From the first number of the smaller grid to the last one of the larger, and back.
    return min(kernel_size + (kernel_size + parity) % 2, 2 * size - 2 + parity)


def _padding(smaller: int, larger: int, taps: int, stride: int) -> int:
    """By how much the taps of the smaller grid's first number precede the larger grid, and its last one's exceed it."""
    return ((smaller - 1) * stride + taps - larger) // 2


def _spread(
    h: Float[Array, "... h w i"], kernel: Float[Array, "s t i o"], size: tuple[int, int], stride: int, dtype: Any
) -> Float[Array, "... H W o"]:
    """Every number of the smaller grid times the kernel, summed where these overlap on the larger grid."""
    taps_of_height, taps_of_width = kernel.shape[:2]
    products = contract("...i,stio->...sto", h, kernel, dtype)
    sums = _overlap_add(products, -5, -3, size[0], _padding(h.shape[-3], size[0], taps_of_height, stride), stride)
    return _overlap_add(sums, -3, -2, size[1], _padding(h.shape[-2], size[1], taps_of_width, stride), stride)


def _gather(
    x: Float[Array, "... H W i"], kernel: Float[Array, "s t i o"], size: tuple[int, int], stride: int, dtype: Any
) -> Float[Array, "... h w o"]:
    """The adjoint of `_spread` but for the kernel's channels: sums over the larger grid under the kernel."""
    taps_of_height, taps_of_width = kernel.shape[:2]
    x = _windows(x, -2, size[1], taps_of_width, _padding(size[1], x.shape[-2], taps_of_width, stride), stride)
    x = _windows(x, -4, size[0], taps_of_height, _padding(size[0], x.shape[-4], taps_of_height, stride), stride)
    return contract("...hswti,stio->...hwo", x, kernel, dtype)


def _overlap_add(products: Array, axis: int, taps: int, size: int, padding: int, stride: int) -> Array:
    """Sums over i and t of products[i, t] at stride * i + t - padding, below size; without the axis of taps."""
    axis, taps = axis % products.ndim, taps % products.ndim
    num_blocks = -(-products.shape[taps] // stride)
    products = _pad(products, taps, 0, num_blocks * stride - products.shape[taps])
    # Blocks of as many taps as the stride do not overlap, and shifted by their number they are added.
    blocks = (
        _pad(jax.lax.slice_in_dim(products, b * stride, (b + 1) * stride, axis=taps), axis, b, num_blocks - 1 - b)
        for b in range(num_blocks)
    )
    sums = jnp.moveaxis(sum(blocks), taps, axis + 1)
    sums = sums.reshape(*sums.shape[:axis], sums.shape[axis] * stride, *sums.shape[axis + 2 :])
    return jax.lax.slice_in_dim(sums, padding, padding + size, axis=axis)


def _windows(x: Array, axis: int, size: int, taps: int, padding: int, stride: int) -> Array:
    """The adjoint: x[stride * i + t - padding] at [i, t], where t is a new axis behind the axis."""
    axis = axis % x.ndim
    num_blocks = -(-taps // stride)
    length = (size + num_blocks - 1) * stride
    x = _pad(x, axis, padding, length - padding - x.shape[axis])
    x = x.reshape(*x.shape[:axis], length // stride, stride, *x.shape[axis + 1 :])
    blocks = [jax.lax.slice_in_dim(x, b, b + size, axis=axis) for b in range(num_blocks)]
    return jax.lax.slice_in_dim(jnp.concatenate(blocks, axis + 1), 0, taps, axis=axis + 1)


def _pad(x: Array, axis: int, low: int, high: int) -> Array:
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (low, high, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)
