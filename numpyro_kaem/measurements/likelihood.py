"""The likelihood of effects: a function that gives NumPyro distributions, evaluated on rows of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from numpyro_kaem._compilation.programs import jit_by_program
from numpyro_kaem._fitting.exponential_family import in_float64
from numpyro_kaem.checks import check_not_masked

_DROP = 2.0  # nats below the maximum at which the interval of one datum ends: two standard errors of a normal mean
_FIRST, _ZOOM, _ROUNDS, _BISECTIONS = 81, 17, 14, 40


class Measurements:
    """Data of n effects, and their likelihood.

    The likelihood is called with effects of shape (1, num_points) or (num_rows, num_points), and with the data arrays
    after the first, each as (num_rows, 1, ...). Its distribution is of the first array, with the batch shape
    (num_rows, num_points) or one that broadcasts to it. All in float64.
    """

    def __init__(self, likelihood: Callable[..., dist.Distribution], data: tuple[Any, ...], chunk_size: int):
        if not callable(likelihood):
            raise TypeError(f"likelihood must be a function from effects to a distribution, got {likelihood!r}")
        self.given, self.likelihood, self.chunk_size = likelihood, likelihood, chunk_size
        self.data = _checked(data)
        self.index = np.arange(len(self.data[0]))  # of the data as they were given
        self._programs: dict[Any, Callable] = {}

    def __len__(self) -> int:
        return len(self.data[0])

    def take(self, rows: np.ndarray | slice) -> Measurements:
        """Some of the data."""
        few = object.__new__(Measurements)
        few.given, few.likelihood, few.chunk_size = self.given, self.likelihood, self.chunk_size
        few._programs, few.index = self._programs, self.index[rows]
        few.data = tuple(array[rows] for array in self.data)
        return few

    def moved(self, shift: np.ndarray, scale: np.ndarray) -> Measurements:
        """The same data as measurements of e, where the effects are shift + scale * e."""
        given, data = self.given, self.data
        if self.likelihood is not given:  # moved before
            data = data[:-2]
            moved = self.take(slice(None))
        else:
            moved = self.take(slice(None))
            moved._programs = {}

            def of_residual(e, *rest):
                return given(rest[-2] + rest[-1] * e, *rest[:-2])

            moved.likelihood = of_residual
        moved.data = (*data, shift, scale)
        return moved

    def chunks(self) -> Iterator[slice]:
        """Slices of the data."""
        for start in range(0, len(self), self.chunk_size):
            yield slice(start, min(start + self.chunk_size, len(self)))

    def log_likelihood(self, effects: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Log-likelihoods (num_rows, num_points) of effects of shape (1 or num_rows, num_points)."""
        return self._run(_log_likelihood, rows, effects)[0]

    def with_slopes(self, effects: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihoods, and their derivatives by the effects."""
        log_likelihood, slopes = self._run(_with_slopes, rows, effects)
        return log_likelihood, slopes

    def intervals(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each datum the effect of greatest likelihood in a support, its log-likelihood, and where that ends.

        Ends are where the log-likelihood is two nats less, on either side; infinite where it never is. Likelihoods are
        taken to have one maximum.
        """
        parts = [self._run(_intervals, rows, np.array([[low, high]])) for rows in self.chunks()]
        center, log_likelihood, below, above = (np.concatenate(of) for of in zip(*parts, strict=True))
        return center, log_likelihood, below, above

    def _run(self, function: Callable, rows: slice, effects: np.ndarray) -> tuple[np.ndarray, ...]:
        data = [array[rows] for array in self.data]
        count, effects = len(data[0]), np.asarray(effects, np.float64)
        # Filled up to a power of two, so that few programs serve all numbers of data.
        size = max(min(1 << (count - 1).bit_length(), self.chunk_size), count)
        fill = size - count
        if fill:
            data = [np.concatenate([array, np.repeat(array[-1:], fill, axis=0)]) for array in data]
            if len(effects) > 1:
                effects = np.concatenate([effects, np.repeat(effects[-1:], fill, axis=0)])
        data = [array[:, None] for array in data]
        key = function, effects.shape, size
        with in_float64():
            if key not in self._programs:
                likelihood = self.likelihood

                def run(effects, *data):
                    return function(likelihood, effects, *data)

                self._programs[key] = jit_by_program(run).compiled(effects, *data)
            return tuple(np.asarray(value)[:count] for value in self._programs[key](effects, *data))


def _log_prob(likelihood, effects, *data):
    distribution = likelihood(effects, *data[1:])
    shape = np.broadcast_shapes(effects.shape, (len(data[0]), 1))
    value = distribution.log_prob(jnp.asarray(data[0]))
    return jnp.broadcast_to(value, shape)


def _log_likelihood(likelihood, effects, *data):
    return (_log_prob(likelihood, effects, *data),)


def _with_slopes(likelihood, effects, *data):
    return jax.jvp(lambda at: _log_prob(likelihood, at, *data), (effects,), (jnp.ones_like(effects),))


def _intervals(likelihood, bounds, *data):
    low, high = bounds[0]
    size = len(data[0])

    def effect(t):
        # From the real line into the support, over all scales that float64 has digits for.
        real, above = jnp.sinh(t), low + jnp.exp(t)
        below, between = high - jnp.exp(-t), low + (high - low) * jax.nn.sigmoid(t)
        bounded_below, bounded_above = jnp.isfinite(low), jnp.isfinite(high)
        return jnp.where(bounded_below, jnp.where(bounded_above, between, above), jnp.where(bounded_above, below, real))

    @jax.jit  # traced once for each of three shapes
    def value(t):
        log_prob = _log_prob(likelihood, effect(t), *data)
        return jnp.where(jnp.isnan(log_prob) | jnp.isposinf(log_prob), -jnp.inf, log_prob)

    def narrowed(_, state):
        center, width = state
        t = center + width * jnp.linspace(-1.0, 1.0, _ZOOM)
        best = jnp.argmax(value(t), axis=1)
        return jnp.take_along_axis(t, best[:, None], axis=1), width * (2.0 / (_ZOOM - 1))

    ends = jnp.where(jnp.isfinite(low) | jnp.isfinite(high), 36.0, 30.0)
    t = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, _FIRST) * ends, (size, _FIRST))
    first = value(t)
    center = jnp.take_along_axis(t, jnp.argmax(first, axis=1)[:, None], axis=1)
    step = 2.0 * ends / (_FIRST - 1)
    center, _ = jax.lax.fori_loop(0, _ROUNDS, narrowed, (center, step))
    center = jnp.clip(center, -ends, ends)
    highest = value(center)

    def end(sign):
        def halved(_, state):
            inside, outside = state
            middle = 0.5 * (inside + outside)
            is_inside = value(middle) > highest - _DROP
            return jnp.where(is_inside, middle, inside), jnp.where(is_inside, outside, middle)

        outside = jnp.full_like(center, sign * ends)
        _, found = jax.lax.fori_loop(0, _BISECTIONS, halved, (center, outside))
        reached = value(outside) > highest - _DROP
        limit = jnp.where(sign > 0, high, low)
        return jnp.where(reached, limit, effect(found))

    return effect(center)[:, 0], highest[:, 0], end(-1.0)[:, 0], end(1.0)[:, 0]


# What can be wrong ----------------------------------------------------------------------------------------------------


def _checked(data: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    """The data as arrays of float64 or of whole numbers, or what is wrong with them."""
    if not data:
        raise TypeError("data must be at least one array, that of which the likelihood is the distribution, got none")
    arrays = []
    for at, given in enumerate(data):
        name = f"data[{at}]"
        check_not_masked(name, given)
        array = np.asarray(given)
        if array.dtype.kind not in "iufb" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"{name} must have one entry for each effect, got shape {array.shape}")
        if len(array) != len(np.atleast_1d(data[0])):
            raise ValueError(
                f"{name} must have as many entries as data[0], {len(np.atleast_1d(data[0]))}, got {len(array)}"
            )
        array = array.astype(np.int64 if array.dtype.kind in "iub" else np.float64)
        wrong = ~np.isfinite(array)
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"{name} must be finite, but {int(wrong.sum())} of {array.size} values are not, the first "
                f"{array[first]} for datum {first[0]}; leave these data out"
            )
        arrays.append(array)
    return tuple(arrays)


def check_likelihood(measurements: Measurements, effect: float) -> None:
    """Raise where the likelihood is no distribution of the data, has another shape, or parameters that are invalid."""
    few = measurements.take(np.arange(min(len(measurements), 3)))
    effects = np.full((1, 2), effect)
    with in_float64(), numpyro.validation_enabled(False):  # what is invalid is found below, with the datum
        try:
            given = few.likelihood(jnp.asarray(effects), *(jnp.asarray(array[:, None]) for array in few.data[1:]))
        except (TypeError, ValueError) as error:
            error.add_note(
                f"likelihood is called with effects of shape {effects.shape} and {len(few.data) - 1} data arrays, "
                f"those after the first, of shapes {[array[:, None].shape for array in few.data[1:]]}; what differs "
                "from datum to datum has to be one of them"
            )
            raise
        if not isinstance(given, dist.Distribution):
            raise TypeError(f"likelihood must return a NumPyro distribution of data[0], got {given!r}")
        shape = np.shape(few.data[0])[1:]
        if len(shape) != len(given.event_shape):
            raise ValueError(
                f"likelihood must give a distribution whose events are the entries of data[0], of shape {shape}, got "
                f"event shape {given.event_shape}; several measurements of one effect are one event, by .to_event(1)"
            )
        try:
            fits = np.broadcast_shapes(given.batch_shape, (len(few), 2)) == (len(few), 2)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"likelihood must give a distribution of batch shape (num_data, num_effects), here ({len(few)}, 2), "
                f"for effects of shape (1, 2), got {given.batch_shape}; what differs from datum to datum is a data "
                "array of its own: empirical_bayes(lambda effect, error: Normal(effect, error), y, error)"
            )
    _check_parameters(measurements, effect)


def _check_parameters(measurements: Measurements, effect: float) -> None:
    """Raise at the first datum whose distribution has invalid parameters, or whose value is outside of its support."""
    effects = jnp.asarray([[effect]])
    with in_float64(), numpyro.validation_enabled(False):
        arrays = [jnp.asarray(array[:, None]) for array in measurements.data]
        given = measurements.likelihood(jnp.asarray(np.asarray(effects, np.float64)), *arrays[1:])
        base = given
        while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
            base = base.base_dist
        for name, constraint in base.arg_constraints.items():
            if name not in base.__dict__ or isinstance(constraint, constraints._Dependent):
                continue
            value = np.asarray(getattr(base, name))
            valid = np.asarray(constraint(value))
            wrong = _first_row(~valid, len(measurements))
            if wrong is not None:
                row = np.broadcast_to(value, np.broadcast_shapes(value.shape, (len(measurements), 1)))[wrong]
                raise ValueError(
                    f"likelihood must be a distribution with valid parameters, but {name} of {type(base).__name__} is "
                    f"{np.ravel(row)[0]:.6g} for datum {wrong} at the effect {effect:.6g}, and must be {constraint}; "
                    "correct or leave out that datum, or give a reference whose support holds the valid effects only"
                )
        outside = _first_row(~np.asarray(given.support(arrays[0])), len(measurements))
    if outside is not None:
        raise ValueError(
            f"data[0] must lie in the support of the likelihood {type(base).__name__}, but datum {outside} is "
            f"{measurements.data[0][outside]}"
        )


def _first_row(wrong: np.ndarray, num_data: int) -> int | None:
    """The first row of an array, as far as it has rows, that has something wrong."""
    if not wrong.any():
        return None
    if wrong.ndim == 0 or len(wrong) != num_data:
        return 0
    return int(np.argmax(wrong.reshape(num_data, -1).any(axis=1)))
