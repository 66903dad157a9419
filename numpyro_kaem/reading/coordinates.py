"""All that is read of the coordinates of a prior, ranked by effect: densities, formulas, maps and paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num, PRNGKeyArray

from numpyro_kaem.reading.effects import effects
from numpyro_kaem.reading.formula import formula
from numpyro_kaem.reading.paths import traverse
from numpyro_kaem.reading.product import Product, as_product

# Points of a density, and what is left out on either side.
_NUM_POINTS, _TAIL = 81, 0.002
# Rows of outputs that effects of all components may take, about; draws that stand for a component.
_MOST_OUTPUTS, _NUM_DRAWS = 2**17, 10
# Total variation that a formula in short may lose.
TOLERANCE = 0.03
# Of a slider: its positions, and the probabilities of the first and the last.
_NUM_FRAMES, ENDS = 11, (0.02, 0.98)


@dataclass(frozen=True, eq=False)
class Density:
    """Of a coordinate, at points z; the reference that it is a tilt of is None where there is none."""

    z: Float[np.ndarray, " n"]
    learned: Float[np.ndarray, " n"]
    reference: Float[np.ndarray, " n"] | None


@dataclass(frozen=True, eq=False)
class Coordinate:
    """What is known of a coordinate.

    Attributes:
        name: such as `z[3]`.
        first_order: share of the output's variance that it explains by itself.
        total: share that it has a part in, alone or with others.
        first_order_error: standard error of the first.
        total_error: standard error of the second.
        density: its learned density.
        formula: its density in short, as `formula` picks it; None where none is near enough, and without a path.
        map: variance of each number of the output in which it has a part, of the shape of a datum.
        z: its values along its path; None for a coordinate without one.
        path: what is shown of the datum there, from its low quantiles to its high ones, all others at their medians.
    """

    name: str
    first_order: float
    total: float
    first_order_error: float
    total_error: float
    density: Density
    formula: str | None
    map: Float[np.ndarray, "..."]
    z: Float[np.ndarray, " frames"] | None = None
    path: Num[np.ndarray, "frames ..."] | None = None

    @property
    def is_without_effect(self) -> bool:
        """Whether its total effect is within its noise of none."""
        return self.total < max(1e-3, 3.0 * self.total_error)


@dataclass(frozen=True, eq=False)
class Component:
    """The coordinates of a prior, or of one component of a mixture, in the order of their total effects.

    Attributes:
        index: of the component; None where the prior is no mixture.
        weight: its proportion.
        coordinates: ranked.
        mean: of what is shown of its data; None for categories.
        draws: what is shown of data that are drawn from it.
        additive: share of the variance that coordinates explain one by one.
        pairs: coordinates that act together, with their share of the variance; not looked for in mixtures.
    """

    index: int | None
    weight: float
    coordinates: tuple[Coordinate, ...]
    mean: Float[np.ndarray, "..."] | None
    draws: Num[np.ndarray, "n ..."]
    additive: float
    pairs: tuple[tuple[str, str, float], ...]

    @property
    def name(self) -> str:
        """In words; empty where there are no others."""
        return "" if self.index is None else f"component {self.index}"


def read_components(
    key: PRNGKeyArray,
    prior: dist.Distribution,
    decode: Callable[[Array], Array],
    function: Callable[[Array], Array],
    num_paths: int,
    tell: Callable[..., None],
) -> tuple[Component, ...]:
    """Read every component of a prior, the most probable first.

    Args:
        key: JAX random key.
        prior: a product, or a mixture of products.
        decode: from latents to what is shown.
        function: from latents to numbers whose variance is explained: what is shown, or categories one by one.
        num_paths: coordinates with a path, of all components together; each has two of them at least.
        tell: what is called with a line on how far it is.
    """
    weights = np.asarray(prior.mixing_distribution.probs, float) if isinstance(prior, dist.MixtureSameFamily) else [1.0]
    reader = _Reader(prior, decode, function, max(2, num_paths // len(weights)), len(weights))
    found = []
    for index in np.argsort(-np.asarray(weights), kind="stable").tolist():
        tell("report: coordinates" + (f" of component {index}, of {len(weights)}" if len(weights) > 1 else ""))
        component = index if isinstance(prior, dist.MixtureSameFamily) else None
        found.append(reader.read(jax.random.fold_in(key, index), component, float(weights[index])))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Reader:
    prior: dist.Distribution
    decode: Callable[[Array], Array]
    function: Callable[[Array], Array]
    num_paths: int
    num_components: int

    def read(self, key: PRNGKeyArray, component: int | None, weight: float) -> Component:
        product = as_product(self.prior, component)
        rows = _MOST_OUTPUTS // (2 * (product.size + 1) * self.num_components)
        num_samples = 2 ** int(np.log2(np.clip(rows, 64, 4096)))
        num_pairs = 0 if self.num_components > 1 else 10
        found = effects(key, self.prior, self.function, num_samples, component=component, num_pairs=num_pairs)
        played = found.ranking[: self.num_paths]
        paths = traverse(self.prior, self.decode, played, num_points=_NUM_FRAMES, quantiles=ENDS, component=component)
        shown = np.asarray(self.decode(paths.z))  # a path's own outputs are floating-point, categories among them
        z = np.reshape(paths.z, (*paths.z.shape[:2], product.size))
        tables = formula(self.prior, component=component, coordinates=played, tolerance=TOLERANCE).coordinates
        picks = {d: table.pick for d, table in zip(played, tables, strict=True) if table.pick is not None}
        densities = _densities(product)
        coordinates = []
        for d in found.ranking:
            place = paths.coordinates.index(d) if d in played else None
            coordinates.append(
                Coordinate(
                    product.names[d],
                    first_order=float(found.whole_first_order[d]),
                    total=float(found.whole_total[d]),
                    first_order_error=float(found.whole_first_order_se[d]),
                    total_error=float(found.whole_total_se[d]),
                    density=densities[d],
                    formula=picks[d].expression if d in picks else None,
                    map=_by_place(found.total[d] * found.variance, shown.ndim - 2),
                    z=None if place is None else z[place, :, d],
                    path=None if place is None else shown[place],
                )
            )
        is_number = np.issubdtype(shown.dtype, np.floating)
        draws = product.icdf(jax.random.uniform(jax.random.fold_in(key, 1), (_NUM_DRAWS, product.size), minval=1e-6))
        return Component(
            index=component,
            weight=weight,
            coordinates=tuple(coordinates),
            mean=found.mean if is_number else None,
            draws=np.asarray(self.decode(draws)),
            additive=float(found.whole_first_order.sum()),
            pairs=tuple((*pair.names, pair.value) for pair in found.pairs),
        )


def _by_place(variance: np.ndarray, rank: int) -> np.ndarray:
    """By number of a datum; of categories one by one the sum."""
    return variance.sum(axis=tuple(range(rank, variance.ndim)))


def _densities(product: Product) -> list[Density]:
    """Of every coordinate, where it has mass and a little around that."""
    u = jnp.linspace(_TAIL, 1.0 - _TAIL, _NUM_POINTS)
    start, low, high, end = np.asarray(product.grid(jnp.array([0.0, _TAIL, 1.0 - _TAIL, 1.0])), float)
    margin = 0.15 * (high - low)
    low, high = np.maximum(low - margin, start), np.minimum(high + margin, end)
    even = low + (high - low) * np.linspace(0.0, 1.0, _NUM_POINTS)[:, None]
    z = np.sort(np.concatenate([even, np.asarray(product.grid(u), float)]), axis=0)
    points = jnp.asarray(z, u.dtype).reshape(-1, *product.shape)

    def at(product: Product) -> np.ndarray:
        # One that is infinite at an end of its support is not drawn there.
        return np.nan_to_num(np.exp(np.asarray(jax.vmap(product.log_prob)(points), float)), posinf=0.0)

    behind = None
    if (reference := getattr(product.factors, "reference", None)) is not None:
        behind = at(dataclasses.replace(product, factors=reference.expand(product.factors.batch_shape)))
    learned = at(product)
    return [Density(z[:, d], learned[:, d], None if behind is None else behind[:, d]) for d in range(product.size)]
