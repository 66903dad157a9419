"""The univariate distributions that a joint one is the product of."""

from __future__ import annotations

import numpyro.distributions as dist


def univariate_factors(prior: dist.Distribution) -> dist.Distribution:
    """The distribution, with batch axes only, of the coordinates of a joint one.

    Raises:
        ValueError: for one that is not made of univariate distributions with `icdf`.
    """
    factors = prior
    while isinstance(factors, dist.Independent):
        factors = factors.base_dist
    if factors.event_shape or not hasattr(factors, "icdf"):
        raise ValueError(
            f"prior must be a product of univariate distributions with icdf, such as a KAPrior or dist.Normal, or a "
            f"mixture of these, got {type(factors).__name__} of event shape {factors.event_shape}"
        )
    return factors
