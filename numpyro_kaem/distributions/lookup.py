"""Inverse CDFs as tables of integers, for hardware that draws without floating-point arithmetic."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Num, Shaped

# Bits of a code, and of an address: a table of 2^20 entries of 32 bits is 4 MiB for each coordinate.
_BITS, _ADDRESS_BITS = (1, 32), (1, 20)


@dataclass(frozen=True, eq=False)
class LookupTable:
    r"""Inverse CDFs as tables of integers, which `prior.lookup_table(bits=16)` makes. With K = 2^`address_bits`,

        z = offset + scale * table[..., k],   k uniform on 0, ..., K - 1,

    is a draw: k are that many random bits, and what is left to do is a look-up, a product and a sum. Entry k stands for
    the probabilities u of [k / K, (k + 1) / K). It is the quantile at (k + 1/2) / K, rounded to a step of `scale`, so
    that all K values are equally likely. The codes of the first and of the last entry are 0 and 2^`bits` - 1.

    Nothing is drawn beyond the first and the last value, which are the quantiles at 1 / 2K and 1 - 1 / 2K.

    Attributes:
        table: codes, ascending along the last axis, of the smallest of the types uint8, uint16 and uint32 that holds
            them.
        bits: width of a code.
        offset: the value of code 0, by coordinate.
        scale: the step between codes, by coordinate.
        max_error: the largest abs(z - icdf(u)), z the entry for u, over all u; where the support has no end on a side,
            over those that the outermost entry there does not stand for, whose error has no bound.
        tail_probability: the probability of the entries that `max_error` leaves out: 0, 1 / K or 2 / K.
        kolmogorov_distance: the largest difference between the CDF of what is drawn and that of the prior. It is at
            least 1 / 2K, and more where the step is coarse.

    Example:
        ```python
        import jax
        import numpy as np
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), (40,), basis=BSpline(20, 3, (-3.0, 3.0)), scale=1.0)
        lookup = KAPrior(energy, dist.Normal(0.0, 1.0)).lookup_table(bits=16, address_bits=10)
        assert lookup.table.shape == (40, 1024) and lookup.table.dtype == np.uint16
        z = lookup(np.random.default_rng(0).integers(1024, size=(5, 40)))
        assert z.shape == (5, 40) and lookup.max_error.shape == (40,)
        ```
    """

    table: Shaped[np.ndarray, "*batch entries"]
    bits: int
    offset: Float[np.ndarray, "*batch"]
    scale: Float[np.ndarray, "*batch"]
    max_error: Float[np.ndarray, "*batch"]
    tail_probability: Float[np.ndarray, "*batch"]
    kolmogorov_distance: Float[np.ndarray, "*batch"]

    @property
    def address_bits(self) -> int:
        """The number of random bits of a draw."""
        return self.table.shape[-1].bit_length() - 1

    def __call__(self, address: Num[ArrayLike, "..."]) -> Float[np.ndarray, "..."]:
        """What the hardware draws at addresses, in float64.

        Args:
            address: whole numbers from 0 to K - 1, of shape sample_shape + batch_shape or one that broadcasts with it.

        Raises:
            TypeError: for addresses that are not whole numbers.
            ValueError: for addresses out of range, or of a shape that does not fit.
        """
        address = np.asarray(address)
        if address.dtype.kind not in "iu":
            raise TypeError(f"address must be whole numbers, got {address.dtype}")
        size = self.table.shape[-1]
        if np.any(outside := (address < 0) | (address >= size)):
            raise ValueError(f"address must be from 0 to {size - 1}, got {address[outside][0]}")
        batch_shape = self.table.shape[:-1]
        try:
            shape = np.broadcast_shapes(address.shape, batch_shape)
        except ValueError as error:
            raise ValueError(
                f"address must have a shape that broadcasts with the batch shape {batch_shape}, got {address.shape}"
            ) from error
        coordinates = np.arange(self.offset.size).reshape(batch_shape)
        codes = self.table.reshape(-1, size)[np.broadcast_to(coordinates, shape), address]
        return self.offset + self.scale * codes


def make_lookup_table(distribution: Any, bits: int, address_bits: int) -> LookupTable:
    """The table of a univariate distribution that has `cdf` and `icdf`."""
    bits, address_bits = _in_range("bits", bits, _BITS), _in_range("address_bits", address_bits, _ADDRESS_BITS)
    size, axes = 2**address_bits, (1,) * len(distribution.batch_shape)
    # Edges of the cells, and between them their middles; both are exact, and so are their complements.
    steps = np.arange(2 * size + 1).reshape(-1, *axes)
    quantiles = distribution.icdf(steps / (2 * size), complement=(2 * size - steps) / (2 * size))
    quantiles = np.moveaxis(np.asarray(quantiles, float), 0, -1)
    edges, middles = quantiles[..., ::2], quantiles[..., 1::2]
    most = 2**bits - 1
    offset, scale = middles[..., 0], (middles[..., -1] - middles[..., 0]) / most
    codes = np.rint((middles - offset[..., None]) / np.where(scale > 0, scale, 1.0)[..., None])
    values = offset[..., None] + scale[..., None] * codes
    error = np.maximum(np.abs(values - edges[..., :-1]), np.abs(values - edges[..., 1:]))
    is_open = ~np.isfinite(error)
    below = np.moveaxis(np.asarray(distribution.cdf(np.moveaxis(values, -1, 0)), float), 0, -1)
    shares = np.arange(size + 1) / size
    by_coordinate = {
        "offset": offset,
        "scale": scale,
        "max_error": np.where(is_open, 0.0, error).max(-1),
        "tail_probability": is_open.sum(-1) / size,
        "kolmogorov_distance": np.maximum(below - shares[:-1], shares[1:] - below).max(-1),
    }
    dtype = next(dtype for dtype in (np.uint8, np.uint16, np.uint32) if most <= np.iinfo(dtype).max)
    # NumPy makes a number of what has no axis.
    return LookupTable(codes.astype(dtype), bits, **{name: np.asarray(value) for name, value in by_coordinate.items()})


def _in_range(name: str, value: int, ends: tuple[int, int]) -> int:
    """A whole number between two ends, or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not ends[0] <= int(value) <= ends[1]:
        raise ValueError(f"{name} must be a whole number from {ends[0]} to {ends[1]}, got {value!r}")
    return int(value)
