"""Schedules of a ladder's exponent over training."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_kaem.checks import check_count, check_positive


def cyclic_schedule(low: float, high: float, period: int) -> Callable[[ArrayLike], Float[Array, ""]]:
    r"""An exponent that goes to and fro between two values,

    $$r(i) = \text{low} + (\text{high} - \text{low}) \tfrac12 (1 - \cos(2 \pi i / \text{period})).$$

    It is a schedule for `ThermodynamicMLE`, as are those of Optax: `optax.constant_schedule`, and
    `optax.cosine_decay_schedule`, which falls once.

    Args:
        low: exponent at the start of a cycle, positive.
        high: exponent in its middle, positive.
        period: training steps of a cycle, at least 1.

    Returns:
        A function of the number of the training step.

    Example:
        ```python
        from numpyro_kaem import Ladder, ThermodynamicMLE, cyclic_schedule

        objective = ThermodynamicMLE(Ladder.power(5), schedule=cyclic_schedule(1.0, 8.0, period=500))
        ```
    """
    low, high, period = check_positive("low", low), check_positive("high", high), check_count("period", period, 1)
    return lambda step: low + (high - low) * 0.5 * (1.0 - jnp.cos(2.0 * jnp.pi * step / period))
