"""What the explorer shows: the densities of a model's coordinates, and where on them somebody stands."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.checks import check_count, check_key, check_not_masked
from numpyro_kaem.distributions import KAMixture, KAPrior
from numpyro_kaem.generators.autoregressive import AutoregressiveCategorical
from numpyro_kaem.posterior import ImportanceSampling
from numpyro_kaem.reading.display import Display, Shown
from numpyro_kaem.reading.effects import effects
from numpyro_kaem.reading.paths import interpolate
from numpyro_kaem.reading.product import Product, as_product

# Handles move in thousandths of probability, so that every place that one can have is computed beforehand.
PROBABILITIES = np.arange(1, 1000) / 1000
# Of a density that is drawn; draws by whose range pictures have their scale; draws from an encoder; steps of a morph.
NUM_POINTS, NUM_EXAMPLES, NUM_DRAWS, NUM_STEPS = 161, 64, 2_000, 51
# Of the design of effects, whose standard errors are then a percent or two.
NUM_ROWS = 1_024
# With a smaller effective sample size a draw is no fair one from the posterior.
FEW = 20


@dataclass(frozen=True, eq=False)
class Tables:
    """Of all coordinates of all components, which are one for a prior that is no mixture.

    Attributes:
        quantiles: at the `PROBABILITIES`, of shape (components, coordinates, probabilities).
        points: from the lowest quantile to the highest, a little beyond, (components, coordinates, points).
        density: at the points.
        reference: the density that was tilted, at the points; None where there is none.
    """

    quantiles: np.ndarray
    points: np.ndarray
    density: np.ndarray
    reference: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Encoded:
    """A draw from the posterior of a datum.

    Attributes:
        index: of the datum.
        z: the latent.
        component: of the prior's mixture, the most probable one at z; 0 where there is none.
        says: how it was found, in words.
    """

    index: int
    z: np.ndarray
    component: int
    says: str


class Explorer:
    """A model and what is computed of it once, for all pages that show it.

    Args:
        kaem: a `KAEM`.
        x: data of which some are encoded, one datum a row; None for none.
        key: JAX random key, of effects and posteriors; None for `jax.random.key(0)`.
        display: from what the generator makes, an array, to what is shown instead: an array or a text.

    Raises:
        TypeError: for what is no KAEM, and no key.
        ValueError: for a prior whose coordinates depend on each other, and data of another shape.
    """

    def __init__(self, kaem: Any, x: Any = None, key: PRNGKeyArray | None = None, display: Any = None):
        if not all(hasattr(kaem, name) for name in ("prior", "decode", "posterior")):
            raise TypeError(f"kaem must be a KAEM, got {kaem!r}")
        self.kaem, self.key = kaem, jax.random.key(0) if key is None else key
        check_key(self.key)
        self.x = None if x is None else _checked(x, kaem.shape)
        self.prior = kaem.prior
        # A mixture of whole latent vectors is read one component at a time.
        self.is_mixture = isinstance(self.prior, dist.MixtureSameFamily)
        self.weights = np.asarray(self.prior.mixing_distribution.probs, float) if self.is_mixture else np.ones(1)
        first = as_product(self.prior, 0 if self.is_mixture else None)
        self.names, self.shape = first.names, first.shape
        self.tables = _tables_of(first, len(self.weights))
        likelihood = kaem.parts.drawn.conditional(jnp.asarray(self._examples()))
        self.num_categories = _num_categories(likelihood)
        examples = likelihood.sample(self.key) if self.x is None else self.x[: 4 * NUM_EXAMPLES]
        self.display = Display(np.asarray(examples), display, self.num_categories is not None)
        self._component_log_probs = jax.jit(lambda z: self.prior.component_log_probs(z))
        self._effects: dict[int, tuple] = {}
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Compute and compile what a page needs, so that its handles answer at once."""
        Position(self).picture()

    def quantile(self, component: int, coordinate: int, probability: float) -> float:
        """Of a coordinate: exact at thousandths, linear in between, and no farther out than the last ones."""
        return float(np.interp(probability, PROBABILITIES, self.tables.quantiles[component, coordinate]))

    def probability(self, component: int, coordinate: int, z: float) -> float:
        """Below a value of a coordinate, from 0.001 to 0.999."""
        return float(np.interp(z, self.tables.quantiles[component, coordinate], PROBABILITIES))

    def decode(self, z: Float[np.ndarray, " D"]) -> np.ndarray:
        """What the generator makes of a latent."""
        return np.asarray(self.kaem.decode(np.asarray(z, jnp.result_type(float)).reshape(self.shape)))

    def encode(self, index: int, attempt: int = 0) -> Encoded:
        """A draw from the posterior of a datum: by the encoder, or the sampler that a model without one takes.

        Args:
            index: of the datum in `x`.
            attempt: another number is another draw.

        Raises:
            ValueError: without data, and for an index that there is not.
        """
        if self.x is None:
            raise ValueError("there are no data to encode: give them, explore(x=...) or --data FILE.npy")
        if check_count("index", index, 0) >= len(self.x):
            raise ValueError(f"index must be below {len(self.x)}, the number of data, got {index}")
        datum = self.x[index : index + 1]
        key = jax.random.fold_in(jax.random.fold_in(self.key, index), attempt)
        choose_key, run_key, draw_key = jax.random.split(key, 3)
        if self.kaem.guide is None:
            sampler, reason = self.kaem.choose_sampler(choose_key, datum)
            says = f"The model has no encoder: datum {index} by {reason}."
        else:
            sampler = ImportanceSampling(NUM_DRAWS, progress=False)
            says = f"Datum {index} by importance sampling from the encoder: "
        posterior = self.kaem.posterior(run_key, datum, sampler)
        if self.kaem.guide is not None:
            ess = float(posterior.ess[0])
            says += f"effective sample size {ess:,.0f} of {NUM_DRAWS:,} draws."
            says += " So few make it the best of the encoder's guesses." if ess < FEW else ""
        z = np.asarray(posterior.resample(draw_key, 1).latents["z"])[0, 0]
        component = int(np.argmax(self._component_log_probs(z))) if self.is_mixture else 0
        return Encoded(index, z.ravel(), component, says)

    def path(self, start: Encoded, end: Encoded) -> Float[np.ndarray, "steps D"]:
        """From one datum's latent to another's, along the cdf of the component of the first."""
        component = start.component if self.is_mixture else None
        z_a, z_b = (jnp.asarray(one.z).reshape(self.shape) for one in (start, end))
        path = interpolate(z_a, z_b, along="cdf", prior=self.prior, component=component, num_points=NUM_STEPS)
        return path.z.reshape(NUM_STEPS, -1)

    def effects(self, component: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Total effects of the coordinates of a component: shares of the variance of the whole output, (D,), and maps.

        A map, of shape (D, *shape) for all, has the variance of every number of the output that goes with a coordinate:
        where nothing varies, shares would be noise. It is None for categories.
        """
        with self._lock:
            if component not in self._effects:
                self._effects[component] = self._computed_effects(component)
            return self._effects[component]

    def known_effects(self, component: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The same where they were computed, and None where they were not."""
        return self._effects.get(component)

    def _examples(self) -> Float[np.ndarray, "n ..."]:
        """Latents, for the range of what is shown: quantiles of components drawn by their weights."""
        random = np.random.default_rng(0)
        components = random.choice(len(self.weights), NUM_EXAMPLES, p=self.weights / self.weights.sum())
        places = random.integers(len(PROBABILITIES), size=(NUM_EXAMPLES, len(self.names), 1))
        z = np.take_along_axis(self.tables.quantiles[components], places, axis=2)
        return z.reshape(NUM_EXAMPLES, *self.shape)

    def _computed_effects(self, component: int) -> tuple[np.ndarray, np.ndarray | None]:
        function = self.kaem.decode
        if self.num_categories is not None:

            def function(z: Array) -> Array:
                return jax.nn.one_hot(self.kaem.decode(z), self.num_categories)

        component = component if self.is_mixture else None
        result = effects(self.key, self.prior, function, NUM_ROWS, component=component, num_pairs=0)
        return result.whole_total, None if self.num_categories is not None else result.total * result.variance


class Position:
    """Where somebody stands: a latent, and the component by whose densities it is read."""

    def __init__(self, explorer: Explorer, seed: int | None = None):
        self.explorer = explorer
        self.random = np.random.default_rng(seed)
        self.component = int(np.argmax(explorer.weights))
        self.z = self._quantiles(np.full(len(explorer.names), 0.5))

    @property
    def probabilities(self) -> Float[np.ndarray, " D"]:
        """Below each coordinate, from 0.001 to 0.999."""
        of = self.explorer.probability
        return np.array([of(self.component, coordinate, z) for coordinate, z in enumerate(self.z)])

    def move(self, coordinate: int, probability: float) -> None:
        """Put a handle at a quantile."""
        self.z[coordinate] = self.explorer.quantile(self.component, coordinate, probability)

    def resample(self, coordinate: int | None = None) -> None:
        """Draw a coordinate anew from its density; None for all."""
        for one in range(len(self.z)) if coordinate is None else [coordinate]:
            self.move(one, self.random.uniform())

    def choose(self, component: int) -> None:
        """Go to the same quantiles of another component."""
        probabilities = self.probabilities
        self.component = component
        self.z = self._quantiles(probabilities)

    def place(self, z: Float[np.ndarray, " D"], component: int | None = None) -> None:
        """Go to a latent, and to the component in which it is read."""
        self.component = self.component if component is None else component
        self.z = np.array(z, float)

    def picture(self) -> Shown:
        """What the generator makes of the latent."""
        return self.explorer.display(self.explorer.decode(self.z)[None])

    def order(self) -> np.ndarray:
        """Numbers of the coordinates: by effect where it is known, the greatest first."""
        known = self.explorer.known_effects(self.component)
        return np.arange(len(self.z)) if known is None else np.argsort(-known[0], kind="stable")

    def saved(self) -> dict[str, Any]:
        """The latent, by coordinate, as JSON has it."""
        return {
            "component": self.component if self.explorer.is_mixture else None,
            "shape": list(self.explorer.shape),
            "z": dict(zip(self.explorer.names, map(float, self.z), strict=True)),
            "probability": dict(zip(self.explorer.names, map(float, self.probabilities), strict=True)),
        }

    def _quantiles(self, probabilities: np.ndarray) -> np.ndarray:
        of = self.explorer.quantile
        return np.array([of(self.component, coordinate, u) for coordinate, u in enumerate(probabilities)])


def _tables_of(first: Product, num_components: int) -> Tables:
    """Of the coordinates of all components, of which `first` is the first."""
    shape = first.shape if first.component is None else (num_components, *first.shape)
    values = _tables(Product(first.factors, shape), _reference(first.factors))
    flat = num_components, first.size, -1
    return Tables(*(value if value is None else np.asarray(value).T.reshape(flat) for value in values))


@jax.jit
def _tables(every: Product, reference: dist.Distribution | None) -> tuple:
    """Quantiles, points, densities and references, of shape (n, coordinates of all components)."""
    size = (every.size,)
    quantiles = jax.lax.map(lambda u: every.icdf(jnp.full(size, u)), jnp.asarray(PROBABILITIES), batch_size=64)
    quantiles = quantiles.reshape(len(PROBABILITIES), -1)
    width = quantiles[-1] - quantiles[0]
    # A little beyond what handles reach, as far as the support goes.
    share = jnp.linspace(-0.04, 1.04, NUM_POINTS)[:, None]
    points = quantiles[0] + share * width
    given = points.reshape(NUM_POINTS, *every.shape)

    def density(of: dist.Distribution) -> Array:
        value = jnp.exp(of.log_prob(jnp.clip(given, *_ends(of))).reshape(points.shape))
        return jnp.where(jnp.isfinite(value), value, 0.0)

    return quantiles, points, density(every.factors), None if reference is None else density(reference)


def _ends(factors: dist.Distribution) -> tuple[Any, Any]:
    """Lower and upper end of the support, None for none."""
    return getattr(factors.support, "lower_bound", None), getattr(factors.support, "upper_bound", None)


def _reference(factors: dist.Distribution) -> dist.Distribution | None:
    """What was tilted, for every coordinate; None where that is not one distribution."""
    if isinstance(factors, KAPrior):
        return factors.reference.expand(factors.batch_shape)
    if isinstance(factors, KAMixture) and factors.components.reference.batch_shape == ():
        return factors.components.reference.expand(factors.batch_shape)
    return None


def _num_categories(likelihood: dist.Distribution) -> int | None:
    """Of a likelihood of categories; None for another."""
    while isinstance(likelihood, dist.Independent):
        likelihood = likelihood.base_dist
    if isinstance(likelihood, AutoregressiveCategorical):
        return likelihood.decoder.vocabulary_size
    is_categorical = isinstance(likelihood, dist.CategoricalLogits | dist.CategoricalProbs)
    return likelihood.probs.shape[-1] if is_categorical else None


def _checked(x: Any, shape: tuple[int, ...]) -> np.ndarray:
    check_not_masked("x", x)
    x = np.asarray(x)
    if x.shape[1:] != shape or not len(x):
        raise ValueError(f"x must be data of shape (n, {', '.join(map(str, shape))}), one datum a row, got {x.shape}")
    return x.astype(np.uint8) if x.dtype == bool else x
