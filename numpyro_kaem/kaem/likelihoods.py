"""Likelihoods by name: from a generator's output to a NumPyro distribution of data of a known shape."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_kaem.checks import check_not_masked, check_positive
from numpyro_kaem.distributions.discretized import DiscretizedLogistic


class Likelihood(eqx.Module):
    """A likelihood of data of one shape, an Equinox module whose arrays, if any, are learned. Abstract.

    Attributes:
        shape: of one datum.
        dtype: of the data as the model is given them.
        error: what `errors` are, in words.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    dtype: ClassVar[type] = float
    error: ClassVar[str] = "mean square"

    @property
    def output_size(self) -> int:
        """How many numbers the generator gives of a datum."""
        return math.prod(self.output_shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the generator's output of a datum, which may come flat."""
        return self.shape

    def __call__(self, output: Float[Array, "..."]) -> dist.Distribution:
        """The distribution of data, with all axes of a datum in its event."""
        return self.distribution(self._in_shape(output)).to_event(len(self.shape))

    def mean(self, outputs: Float[Array, "num_draws ..."]) -> Float[Array, "..."]:
        """What is shown of a datum, given the generator's outputs at several draws: the mean over them."""
        return jnp.mean(self.distribution(self._in_shape(outputs)).mean, axis=0)

    def errors(self, x: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """How far each datum is from what is shown of it: the mean square of differences."""
        return np.mean((np.asarray(x, float) - shown).reshape(len(x), -1) ** 2, axis=1)

    @abc.abstractmethod
    def distribution(self, output: Float[Array, "..."]) -> dist.Distribution:
        """Of each element of a datum, from an output in its shape."""

    @abc.abstractmethod
    def check_support(self, name: str, x: np.ndarray) -> None:
        """Raise a ValueError for data without probability, with the first place and the cure."""

    def encoded(self, x: Array) -> Float[Array, "..."]:
        """Data as an encoder is given them: numbers of about unit size."""
        return x.astype(jnp.result_type(float))

    def _in_shape(self, output: Float[Array, "..."]) -> Float[Array, "..."]:
        want = self.output_shape
        if output.shape[output.ndim - len(want) :] == want:
            return output
        return output.reshape(*output.shape[:-1], *want)


class BernoulliLikelihood(Likelihood):
    """Elements that are 0 or 1, of log-odds from the generator."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def distribution(self, output: Float[Array, "..."]) -> dist.Distribution:
        """Bernoulli, by its logits."""
        return dist.Bernoulli(logits=output)

    def check_support(self, name: str, x: np.ndarray) -> None:
        """Raise a ValueError unless all are 0 or 1."""
        place = _first_outside(x, (x == 0) | (x == 1))
        if not place:
            return
        if x.max() > 1:
            cure = f"for grey values from 0 to {_nice(x.max())} pass ({name} > {_nice(x.max() / 2)}), or divide by " + (
                f"{_nice(x.max())} and cut at one half; likelihood='8-bit' takes integers from 0 to 255 as they are"
            )
        else:
            cure = f"cut grey values at one half, ({name} > 0.5), or draw them; likelihood='normal' takes any numbers"
        raise ValueError(f"{name} must be 0 or 1 for likelihood 'bernoulli', got {place}: {cure}")


class NormalLikelihood(Likelihood):
    """Real elements, of mean from the generator; their standard deviation is given, or learned.

    Learned it is one number for each channel of data of three axes, else one for all.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    log_noise: Float[Array, "..."] | None
    noise: float | None = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], noise: float | None = None):
        self.shape = shape
        self.noise = None if noise is None else check_positive("noise", noise)
        self.log_noise = jnp.full(_channels(shape), jnp.log(0.3)) if noise is None else None

    def distribution(self, output: Float[Array, "..."]) -> dist.Distribution:
        """Normal."""
        return dist.Normal(output, self.noise if self.log_noise is None else jnp.exp(self.log_noise))

    def check_support(self, name: str, x: np.ndarray) -> None:
        """Raise a ValueError for integers."""
        if not np.issubdtype(x.dtype, np.floating):
            raise ValueError(
                f"{name} must be real numbers for likelihood 'normal', got dtype {x.dtype}: pass "
                f"({name} / 255.0) for images, or {name}.astype(float); likelihood='8-bit' takes integers from 0 to 255"
            )


class CategoricalLikelihood(Likelihood):
    """Elements that are integers from 0 to num_categories - 1, of log-probabilities along the output's last axis."""

    shape: tuple[int, ...] = eqx.field(static=True)
    num_categories: int = eqx.field(static=True)
    dtype: ClassVar[type] = int
    error: ClassVar[str] = "share of elements"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """That of a datum, and the categories."""
        return (*self.shape, self.num_categories)

    def distribution(self, output: Float[Array, "..."]) -> dist.Distribution:
        """Categorical, by its logits."""
        return dist.Categorical(logits=output)

    def mean(self, outputs: Float[Array, "num_draws ..."]) -> Array:
        """The most probable category, its probabilities averaged over draws."""
        return jnp.argmax(jnp.mean(jax.nn.softmax(self._in_shape(outputs)), axis=0), axis=-1)

    def errors(self, x: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """The share of elements that differ."""
        return np.mean((x != shown).reshape(len(x), -1), axis=1)

    def check_support(self, name: str, x: np.ndarray) -> None:
        """Raise a ValueError for what is no index of a category."""
        _check_integers(name, x, 0, self.num_categories - 1, "categorical", "num_categories is the number of values")

    def encoded(self, x: Array) -> Float[Array, "..."]:
        """One number of each category."""
        return jax.nn.one_hot(x, self.num_categories)


class EightBitLikelihood(Likelihood):
    r"""Integers from 0 to 255: a logistic distribution around 127.5 (1 + output), rounded.

    Its scale is learned: one number for each channel of data of three axes, else one for all.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    log_scale: Float[Array, "..."]

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self.log_scale = jnp.full(_channels(shape), jnp.log(0.1))

    def distribution(self, output: Float[Array, "..."]) -> dist.Distribution:
        """Discretised logistic."""
        return DiscretizedLogistic(127.5 * (1.0 + output), 127.5 * jnp.exp(self.log_scale))

    def mean(self, outputs: Float[Array, "num_draws ..."]) -> Array:
        """The mean over draws of the location, as far as values go: what a picture is made of."""
        return jnp.mean(jnp.clip(127.5 * (1.0 + self._in_shape(outputs)), 0.0, 255.0), axis=0)

    def check_support(self, name: str, x: np.ndarray) -> None:
        """Raise a ValueError for what is no integer from 0 to 255."""
        _check_integers(name, x, 0, 255, "8-bit", "images from 0 to 1 are numpy.round(255 * x)")

    def encoded(self, x: Array) -> Float[Array, "..."]:
        """From -1 to 1."""
        return x / 127.5 - 1.0


class OwnLikelihood(eqx.Module):
    """A function of the user's from the generator's output to a distribution, which knows how data are shaped."""

    function: Callable
    error: ClassVar[str] = Likelihood.error

    def __call__(self, output: Any) -> dist.Distribution:
        """The distribution, with all batch axes but the first in the event."""
        given = self.function(output)
        return given.to_event(len(given.batch_shape) - 1) if len(given.batch_shape) > 1 else given

    def mean(self, outputs: Any) -> Array:
        """The distribution's own mean, averaged over draws."""
        return jnp.mean(self(outputs).mean, axis=0)

    errors = Likelihood.errors

    def encoded(self, x: Array) -> Array:
        """Data as they are."""
        return x


NAMES = ("bernoulli", "normal", "categorical", "8-bit")


def likelihood_by_name(
    name: str, shape: tuple[int, ...], noise: float | None = None, num_categories: int | None = None
) -> Likelihood:
    """The likelihood of a name, for data of a shape."""
    if name not in NAMES:
        raise ValueError(f"likelihood must be one of {NAMES} or a function to a NumPyro distribution, got {name!r}")
    if noise is not None and name != "normal":
        raise ValueError(f"noise is that of likelihood='normal', got {noise!r} with {name!r}")
    if (num_categories is None) != (name != "categorical"):
        raise ValueError(
            f"num_categories goes with likelihood='categorical', which needs it, got {num_categories!r} with {name!r}"
        )
    if name == "bernoulli":
        return BernoulliLikelihood(shape)
    if name == "normal":
        return NormalLikelihood(shape, noise)
    return EightBitLikelihood(shape) if name == "8-bit" else CategoricalLikelihood(shape, num_categories)


def check_values(likelihood: Likelihood | OwnLikelihood, name: str, x: Any) -> Array:
    """Data as the model takes them; raise a ValueError for what has no probability."""
    check_not_masked(name, x)
    values = np.asarray(x)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise ValueError(f"{name} must be numbers, got dtype {values.dtype}")
    if place := _first_outside(values, np.isfinite(values)):
        raise ValueError(f"{name} must be finite, got {place}")
    if isinstance(likelihood, OwnLikelihood):
        return jnp.asarray(x)
    likelihood.check_support(name, values)
    return jnp.asarray(x, likelihood.dtype)


def _channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[-1:] if len(shape) == 3 else ()


def _check_integers(name: str, x: np.ndarray, low: int, high: int, likelihood: str, cure: str) -> None:
    if place := _first_outside(x, (x >= low) & (x <= high) & (x == np.round(x))):
        what = f"integers from {low} to {high} for likelihood {likelihood!r}"
        raise ValueError(f"{name} must be {what}, got {place}: {cure}")


def _first_outside(x: np.ndarray, inside: np.ndarray) -> str:
    """The first value that is not inside, and where; empty where all are."""
    if np.all(inside):
        return ""
    place = tuple(map(int, np.argwhere(~inside)[0]))
    return f"{x[place]} at {list(place)}"


def _nice(number: Any) -> str:
    return f"{float(number):g}"
