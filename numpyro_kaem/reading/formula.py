"""Formulas of what a prior has learned: for every coordinate a table of candidates, one of them the pick."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem.checks import check_count, check_positive
from numpyro_kaem.distributions import SideBySide
from numpyro_kaem.generators import KAN
from numpyro_kaem.reading.basis_expressions import import_sympy
from numpyro_kaem.reading.descriptions import Itself, Mixture, Named, mixtures, named_descriptions
from numpyro_kaem.reading.energy_terms import Tilted, exact_energy, ingredients, sparse_energies
from numpyro_kaem.reading.kan_formula import kan_formula
from numpyro_kaem.reading.learned_density import LearnedDensity, learned_densities
from numpyro_kaem.reading.product import Product, as_product

_MOST_DIGITS = 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One description of one coordinate.

    Attributes:
        name: of the family, or what the description is made of.
        parameters: as they are printed, by name.
        complexity: printed numbers, and one for each named density; for each function of a basis one that says which.
        nats: KL(learned || description), of the printed parameters.
        total_variation: 1/2 int |learned - description|, of the printed parameters.
        expression: the formula, as it is printed.
    """

    name: str
    parameters: dict[str, Any]
    complexity: int
    nats: float
    total_variation: float
    expression: str
    description: Named | Mixture | Tilted | Itself = dataclasses.field(repr=False)

    @property
    def is_formula(self) -> bool:
        """Whether it can be written down: the distribution itself is in the table where it has no formula."""
        return not isinstance(self.description, Itself)


@dataclasses.dataclass(frozen=True)
class CoordinateFormula:
    """The candidates of one coordinate, from short to exact.

    Attributes:
        name: of the coordinate, such as `z[3]`.
        candidates: in the order of their complexity.
        pick: the candidate of smallest complexity within the tolerance; None where there is none.
        tolerance: the total variation that was allowed.
    """

    name: str
    candidates: tuple[Candidate, ...]
    pick: Candidate | None
    tolerance: float

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, name: str) -> Candidate:
        """The candidate of a name."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(
            f"{self.name} has no candidate {name!r}, but {[candidate.name for candidate in self.candidates]}"
        )

    @property
    def refusal(self) -> str:
        """Why there is no pick; empty where there is one."""
        if self.pick is not None:
            return ""
        best = min((c for c in self.candidates if c.is_formula), key=lambda c: c.total_variation, default=None)
        reached = f"the nearest, {best.name}, has {best.total_variation:.2g}" if best else "none could be fitted"
        return (
            f"no formula of {self.name} is within a total variation of {self.tolerance:g}: {reached}; allow a greater "
            "tolerance or more digits, or keep the learned prior"
        )

    def __str__(self) -> str:
        lines = [f"{self.name}", "   complexity      nats  total variation"]
        for c in self.candidates:
            mark = "->" if c is self.pick else "  "
            lines.append(f"{mark} {c.complexity:>10}  {c.nats:>8.2g}  {c.total_variation:>15.2g}  {c.expression}")
        return "\n".join(lines if self.pick else [*lines, self.refusal])


@dataclasses.dataclass(frozen=True)
class Formula:
    """What `formula` returns for a prior. Printed, it is a table for each coordinate.

    Attributes:
        coordinates: the tables.
        shape: of a latent, all of whose coordinates a distribution needs.
        event_dim: of the prior that was read.
    """

    coordinates: tuple[CoordinateFormula, ...]
    shape: tuple[int, ...]
    event_dim: int

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.coordinates))

    def to_sympy(self) -> tuple[Any, ...]:
        """The picked densities as SymPy expressions of a real symbol z, one for each coordinate.

        Raises:
            ImportError: without SymPy: `pip install 'numpyro_kaem[reading]'`.
            ValueError: where a coordinate has no pick.
        """
        sympy = import_sympy()
        z = sympy.Symbol("z", real=True)
        # A pick is a formula, never the distribution itself.
        picks: list[Any] = [pick.description for pick in self._picks()]
        return tuple(pick.density(sympy, z) for pick in picks)

    def to_latex(self) -> str:
        """The picked densities in LaTeX, one line for each coordinate.

        Raises:
            ImportError: without SymPy: `pip install 'numpyro_kaem[reading]'`.
            ValueError: where a coordinate has no pick.
        """
        sympy = import_sympy()
        names = [of.name.replace("[", "_{").replace("]", "}") for of in self.coordinates]
        lines = [
            f"p({name}) &= {sympy.latex(density.subs(sympy.Symbol('z', real=True), sympy.Symbol(name)))}"
            for name, density in zip(names, self.to_sympy(), strict=True)
        ]
        return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"

    def _repr_latex_(self) -> str | None:
        try:
            return f"$${self.to_latex()}$$"
        except (ImportError, ValueError):
            return None

    def to_numpyro(self) -> dist.Distribution:
        """The picks as a NumPyro distribution of the batch and event shape of the prior, to be used instead of it.

        Raises:
            ValueError: where a coordinate has no pick, or was not asked for.
        """
        if len(self.coordinates) != math.prod(self.shape):
            raise ValueError(
                f"coordinates must be all {math.prod(self.shape)} of a latent for a distribution of it, but the "
                f"formula is of {len(self.coordinates)}: call formula(prior) without coordinates"
            )
        joint = _joint([pick.description for pick in self._picks()], self.shape)
        return joint.to_event(self.event_dim) if self.event_dim else joint

    def to_pandas(self) -> Any:
        """All candidates of all coordinates as a pandas `DataFrame`, one row each."""
        import pandas

        rows = [
            {
                "coordinate": of.name,
                "candidate": c.name,
                "complexity": c.complexity,
                "nats": c.nats,
                "total_variation": c.total_variation,
                "picked": c is of.pick,
                "expression": c.expression,
            }
            for of in self.coordinates
            for c in of
        ]
        return pandas.DataFrame(rows)

    def _picks(self) -> list[Candidate]:
        refused = [of.refusal for of in self.coordinates if of.pick is None]
        if refused:
            more = f" ({len(refused)} coordinates have none)" if len(refused) > 1 else ""
            raise ValueError(f"{refused[0]}{more}")
        return [of.pick for of in self.coordinates if of.pick is not None]


def formula(
    prior: Any,
    *,
    tolerance: float = 0.01,
    digits: int = 3,
    component: int | None = None,
    coordinates: Sequence | int | str | None = None,
    inputs: Any = None,
) -> Any:
    r"""Write what a prior has learned as formulas: for every coordinate candidates from short to exact, one the pick.

    Candidates are the nearest members of named families on the coordinate's support, in KL(learned || family), found by
    quadrature; mixtures of up to four of one of them; sparse energies, which are the reference of a `KAPrior` times
    $\exp(\sum_g c_g B_g(z)) / Z$ with few functions $B_g$; and at last all of its coefficients. Each is judged with
    the digits that are printed. The pick has the smallest complexity within the tolerance; where there is none it is
    refused.

    Of a `KAN` the learned functions of one variable are written as formulas, and composed: see `KANFormula`.

    Args:
        prior: a product of one-dimensional distributions, such as a `KAPrior`, or one that is made by calling it, such
            as a `ClusterPrior`; or a `KAN`.
        tolerance: the total variation that is allowed, between 0 and 1: no probability changes by more. Of a KAN, the
            share of an output's variance that its formula may leave unexplained.
        digits: significant digits of what is printed, from 1 to 8. Locations are printed to the last place of their
            scale, weights of mixtures to so many places.
        component: of a mixture of whole latent vectors, the one to read.
        coordinates: those to read, by number, index or name; None for all.
        inputs: of a KAN: the prior of its inputs, or (low, high) for all or for each; None for the domain of its basis.

    Returns:
        A `Formula` with a table of candidates for each coordinate, or a `KANFormula`.

    Raises:
        TypeError: if prior is neither.
        ValueError: for a tolerance, digits or coordinates out of range, a prior whose coordinates depend on each other,
            and one whose density is not finite.

    Example:
        ```python
        import numpyro.distributions as dist
        from numpyro_kaem import KAPrior, formula

        learned = KAPrior.from_log_density(
            lambda z: -2.0 * (z - 1.0) ** 2, (-3.0, 5.0), reference=dist.Normal(0.0, 2.0)
        )
        found = formula(learned)
        assert found.coordinates[0].pick.expression == "Normal(1, 0.5)"
        assert abs(found.to_numpyro().log_prob(1.0) + 0.2258) < 1e-4
        ```
    """
    tolerance = check_positive("tolerance", tolerance)
    if tolerance >= 1.0:
        raise ValueError(f"tolerance must be a total variation between 0 and 1, such as 0.01, got {tolerance!r}")
    if check_count("digits", digits, 1) > _MOST_DIGITS:
        raise ValueError(f"digits must be at most {_MOST_DIGITS}, got {digits}")
    if isinstance(prior, KAN):
        if component is not None or coordinates is not None:
            raise ValueError("component and coordinates are of a prior, and a KAN was given: give inputs")
        return kan_formula(prior, inputs=inputs, tolerance=tolerance, digits=digits)
    if inputs is not None:
        raise ValueError("inputs are those of a KAN, and a prior was given: leave them out")
    if not isinstance(prior, dist.Distribution):
        if not callable(prior):
            raise TypeError(f"prior must be a NumPyro distribution, what makes one, or a KAN, got {prior!r}")
        prior = prior()
    product = as_product(prior, component)
    if coordinates is None:
        chosen = list(range(product.size))
    elif isinstance(coordinates, (int, str)):
        chosen = [product.index(coordinates)]
    else:
        chosen = [product.index(coordinate) for coordinate in coordinates]
        if not chosen:
            raise ValueError("coordinates must be at least one, got none; leave it out for all of them")
    densities = learned_densities(product, chosen)
    tables = tuple(
        _table(product, number, density, tolerance, digits) for number, density in zip(chosen, densities, strict=True)
    )
    return Formula(tables, product.shape, len(prior.event_shape))


def _table(product: Product, number: int, density: LearnedDensity, tolerance: float, digits: int) -> CoordinateFormula:
    """Candidates from short to exact; a longer one of a kind is not looked for once one is near enough."""
    candidates: list[Candidate] = []

    def add(description: Named | Mixture | Tilted) -> bool:
        with np.errstate(all="ignore"):
            nats, distance = density.divergences(description.log_density(density.z))
        of = description
        if math.isfinite(distance) and not math.isnan(nats):
            candidates.append(Candidate(of.name, of.parameters, of.complexity, nats, distance, of.expression, of))
        return distance <= tolerance

    of = ingredients(product, number, density)
    if not any([add(named) for named in named_descriptions(density, digits)]):
        any(add(mixture) for mixture in mixtures(density, digits))
        # An energy that is longer than what is near enough is of no use.
        shortest = min((c.complexity for c in candidates if c.total_variation <= tolerance), default=math.inf)
        few = sparse_energies(of, density, digits) if of else ()
        any(add(energy) for energy in takewhile(lambda energy: energy.complexity < shortest, few))
    if of is not None and of.exact:
        add(exact_energy(of, density, digits))
    else:
        itself = Itself(product.factors)
        learned = f"the learned {itself.name}, which has no formula"
        candidates.append(Candidate(itself.name, {}, itself.complexity, 0.0, 0.0, learned, itself))
    candidates.sort(key=lambda c: (not c.is_formula, c.complexity, c.total_variation))
    within = [c for c in candidates if c.is_formula and c.total_variation <= tolerance]
    return CoordinateFormula(product.names[number], tuple(candidates), within[0] if within else None, tolerance)


def _joint(descriptions: list, shape: tuple[int, ...]) -> dist.Distribution:
    """One NumPyro distribution, of one family with arrays of parameters where there is one with quantiles."""
    first = descriptions[0]
    if all(isinstance(one, Named) and one.family is first.family and one.is_plain for one in descriptions):
        values = zip(*(one.values for one in descriptions), strict=True)
        joint = first.family.distribution(tuple(jnp.reshape(jnp.asarray(value), shape) for value in values))
        try:
            jax.eval_shape(joint.icdf, jnp.zeros(shape))
            return joint
        except (NotImplementedError, ImportError, AttributeError):
            pass
    return SideBySide(tuple(one.distribution() for one in descriptions), shape)
