"""The density of an energy and a reference: its panels, its normaliser, and the table of its body."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import core
from jaxtyping import Array, Float

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.cdf_table import CDFTable, build_table, log_integral
from numpyro_kaem._densities.cut_panels import CutPanels
from numpyro_kaem._densities.inverse_table import InverseTable
from numpyro_kaem._densities.panels import Panels, default_rule, nodes_first
from numpyro_kaem._densities.reference import (
    check_reference,
    kinks,
    merge_components,
    reaches_outside,
    support_bounds_of_body,
    support_ends,
    warn_of_narrow_panels,
    with_numbers_as_arrays,
)
from numpyro_kaem._densities.reference_tails import log_mass_above, log_mass_below
from numpyro_kaem._numerics.log_probabilities import log_sum_exp
from numpyro_kaem._numerics.quadrature import QuadratureRule
from numpyro_kaem.energies import Basis
from numpyro_kaem.energies.energy import UnivariateEnergy, check_half_precision

_Module = TypeVar("_Module", bound=eqx.Module)


def unchecked(module: type[_Module], *fields: Any) -> _Module:
    """A module of all its fields, without Equinox's checks: they take as long as a call of a compiled program."""
    made = object.__new__(module)
    for field, value in zip(dataclasses.fields(module), fields, strict=True):
        object.__setattr__(made, field.name, value)
    return made


class Density(eqx.Module):
    """A reference pi0 that is tilted by an energy f, or a mixture of those along a last axis of components c:

        p(z) = sum_c pi_c pi0_c(z) exp(f_c(z)) / Z_c.

    Its body is the domain of the energy's basis, beyond which it has the tails of the reference. Without proportions
    there is a single component without an axis. Tables and constants are None until they have been built.
    """

    energy: UnivariateEnergy
    reference: dist.Distribution
    log_proportions: Float[Array, "*batch num_components"] | None = None
    quadrature: QuadratureRule | None = eqx.field(static=True, default=None)
    reference_has_icdf: bool = eqx.field(static=True, default=True)
    table: CDFTable | None = None
    inverse: InverseTable | None = None
    constants: Constants | None = None

    @classmethod
    def of(
        cls, energy: UnivariateEnergy, reference: dist.Distribution, quadrature: QuadratureRule | None = None
    ) -> Density:
        """Tilt a reference, or raise an error that says what does not fit."""
        if not isinstance(energy, UnivariateEnergy) or not isinstance(reference, dist.Distribution):
            given = f"{energy!r} and {reference!r}"
            raise TypeError(f"energy must be a UnivariateEnergy and reference a NumPyro distribution, got {given}")
        check_half_precision(energy)
        if isinstance(reference, dist.ExpandedDistribution):
            reference = reference.base_dist  # an ExpandedDistribution hides cdf and icdf
        has_icdf = check_reference(reference)
        dtype, ends = energy.coefficients.dtype, energy.basis.domain
        if not any(isinstance(end, core.Tracer) for end in ends):
            bounds = np.broadcast_arrays(*ends, *support_ends(reference))
            with np.errstate(over="ignore"):
                rounded = [bound.astype(dtype) for bound in bounds]
            outside = (rounded[0] < rounded[2]) | (rounded[1] > rounded[3])
            if np.any(outside):
                a, b, low, high = (float(bound[outside][0]) for bound in bounds)
                raise ValueError(
                    f"domain ({a}, {b}) of the energy's basis reaches outside the support ({low}, {high}) of the "
                    f"reference {type(reference).__name__}; choose a domain inside the support"
                )
        reference = with_numbers_as_arrays(reference, dtype)
        density = cls(energy, reference, None, quadrature, has_icdf)
        warn_of_narrow_panels(reference, energy.basis.breakpoints, density.rule.panels_per_interval)
        return density

    def prepared(self) -> Density:
        """The same density with its table and constants, for all that is computed from here on."""
        if self.table is not None:
            return self
        constants, log_density, log_tails = self._tilt()
        if self.log_proportions is not None:
            log_weights = self.log_proportions - constants.log_integral
            log_density = jax.nn.logsumexp(log_density + log_weights[..., None, None], axis=-3)
            log_tails = log_sum_exp(log_tails[0] + log_weights), log_sum_exp(log_tails[1] + log_weights)
        table = build_table(log_density, *self.edges_and_sizes, self.rule, *log_tails)
        return dataclasses.replace(self, table=table, constants=constants)

    # Shapes ---------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the batch of densities, components not counted."""
        if self.log_proportions is None:
            return self._component_shape
        return jnp.broadcast_shapes(self.log_proportions.shape, self._component_shape or (1,))[:-1]

    @property
    def dtype(self):
        return self.energy.coefficients.dtype

    @property
    def constants_shape(self) -> tuple[int, ...]:
        """The shape of the constants: the batch, and the components of a mixture."""
        return self.shape if self.log_proportions is None else (*self.shape, self.log_proportions.shape[-1])

    @property
    def _component_shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self.energy.batch_shape, self.reference.batch_shape)

    def _to_components(self, z):
        """Points of the batch with an axis of components, if there is one; numbers stay."""
        return z if self.log_proportions is None or np.ndim(z) == 0 else z[..., None]

    def _mixed(self, log_terms: Array) -> Array:
        """The log-density or log-mass of the mixture, from those of the components."""
        return log_terms if self.log_proportions is None else log_sum_exp(self.log_proportions + log_terms)

    # The body and its panels ----------------------------------------------------------------------------------------

    @property
    def support(self):
        return self.reference.support

    @property
    def is_bounded(self) -> bool:
        """Whether it has bounds that the reference has not, so that all its moments are finite."""
        return False

    @property
    def rule(self) -> QuadratureRule:
        """The panel rule: as it was given, or that of the dtype and the basis."""
        return default_rule(self.dtype, self.energy.basis) if self.quadrature is None else self.quadrature

    @property
    def basis(self) -> Basis:
        """The basis whose domain is the body, its grid of a batch shape that broadcasts to that of the densities."""
        basis = self.energy.basis
        if self.log_proportions is None or basis.grid.batch_shape == ():
            return basis
        return eqx.tree_at(lambda b: b.grid.bits, basis, basis.grid.bits[..., 0, :])

    @property
    def kinks(self) -> Float[Array, "*batch num_kinks"] | None:
        """Where the density has kinks, if there are any."""
        points = kinks(self.reference)
        return points if self.log_proportions is None else merge_components(points)

    @property
    def panels(self) -> Panels:
        low, high = self._support_bounds
        if isinstance(self.reference, dist.Uniform):  # flat up to its ends
            low, high = -np.inf, np.inf
        return Panels.lay_out(self.rule, self.energy.basis, low, high, float(jnp.finfo(self.dtype).eps))

    @property
    def pieces(self) -> Panels | CutPanels:
        """The panels, cut where the density has kinks."""
        points = self.kinks
        return self.panels if points is None else CutPanels.at(points, self.panels, self.basis, self.dtype)

    @property
    def body(self) -> tuple[float, float] | tuple[Array, Array]:
        """Ends of the body, floats or arrays like those of the domain."""
        edges = self.panels.edges(self.basis)
        if isinstance(edges, np.ndarray):
            return float(edges[0]), float(edges[-1])
        edges = edges.astype(self.dtype)
        return edges[..., 0], edges[..., -1]

    @property
    def edges_and_sizes(self) -> tuple[np.ndarray | Array, np.ndarray | Array]:
        """Edges and widths of the panels, with the shape of the batch unless all share them."""
        pieces, basis = self.pieces, self.basis
        edges, sizes = pieces.edges(basis), pieces.sizes(basis)
        if edges.ndim == 1:
            return edges, sizes
        shape = (*self.shape, sizes.shape[-1])
        return jnp.broadcast_to(edges, (*self.shape, edges.shape[-1])), jnp.broadcast_to(sizes, shape)

    @property
    def has_tails(self) -> bool:
        """Whether the support may reach beyond the body."""
        low, high = self.body
        return isinstance(low, jax.Array) or (low, high) != self._support_bounds

    @property
    def _support_bounds(self) -> tuple[float, float]:
        return support_bounds_of_body(self.reference, self.basis.domain, self.dtype)

    # The density and its tails --------------------------------------------------------------------------------------

    @property
    def tails_invert(self) -> bool:
        """Whether the tails are multiples of one reference that has an icdf."""
        return self.reference_has_icdf and (self.log_proportions is None or self.reference.batch_shape == ())

    def log_density(self, z: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        """Normalised log-density at z inside the support."""
        (low, high), constants, z = map(self._to_components, self.body), self._constants(), self._to_components(z)
        # Relative to the largest value, as the normaliser is, and beyond the body by the numbers that made the tails:
        # the rounding error of a single number, such as log Z, would be that of all of the mass or of a whole tail.
        energy = self.energy.centered(z) - constants.largest
        energy = jnp.where(z < low, constants.at_ends[0], jnp.where(z > high, constants.at_ends[1], energy))
        return self._mixed(self.reference.log_prob(z) + (energy - constants.log_integral))

    def log_tail_masses(self, below, above, lower=log_mass_below, upper=log_mass_above) -> tuple[Array, Array]:
        """Log F at points below the body and log(1 - F) at points above it.

        With `lower` and `upper` exchanged, what the reference has on the other side of the points, in the same units.
        """
        constants = self._constants()
        at_low, at_high = (end - constants.log_integral for end in constants.at_ends)
        below, above = self._to_components(jnp.asarray(below)), self._to_components(jnp.asarray(above))
        return self._mixed(at_low + lower(self.reference, below)), self._mixed(at_high + upper(self.reference, above))

    def _constants(self) -> Constants:
        return self._tilt()[0] if self.constants is None else self.constants

    def _tilt(self) -> tuple[Constants, Array, tuple[Array, Array]]:
        """The constants; and with e = f - offset - largest, log pi0 + e at the nodes and log-masses of the tails."""
        rule, panels, basis, shape = self.rule, self.panels, self.energy.basis, self._component_shape
        points = self.kinks
        if points is None:
            pieces = panels
        else:  # those of all components in every one of them
            points = points if self.log_proportions is None else points[..., None, :]
            pieces = CutPanels.at(points, panels, basis, self.dtype)
        coarse, fine = self.energy.at_places(*panels.places_and_ends(rule))
        largest = jnp.max(jax.lax.stop_gradient(coarse), axis=(-2, -1))
        energy = (coarse - largest[..., None, None]) + fine
        energy, at_ends = pieces.refine(energy[..., :-2, :], rule), energy[..., -2:, 0]

        # What rounding took from the nodes is given back to first order: far from zero it is not negligible.
        nodes = pieces.nodes(basis, rule, self.dtype)
        rank = max(nodes[0].ndim - 2, len(self.reference.batch_shape))
        rounded, lost = (jnp.asarray(nodes_first(part, rank)) for part in nodes)
        log_reference, correction = jax.jvp(self.reference.log_prob, (rounded,), (lost,))
        log_reference = jnp.moveaxis(log_reference + correction, 0, -1)
        log_reference = log_reference.reshape(*log_reference.shape[:-1], *energy.shape[-2:])

        log_density = jnp.broadcast_to(energy + log_reference, (*shape, *energy.shape[-2:]))
        traced = any(isinstance(end, core.Tracer) for end in basis.domain)
        if traced or np.any(np.isnan(support_ends(self.reference))):  # not known when the density was made
            outside = reaches_outside(self.reference, basis.domain, self.dtype)
            log_density = jnp.where(jnp.expand_dims(outside, (-2, -1)), jnp.nan, log_density)

        low, high = (self._to_components(jnp.asarray(end, self.dtype)) for end in self.body)
        at_low, at_high = at_ends[..., 0], at_ends[..., 1]
        log_tails = (
            jnp.broadcast_to(at_low + log_mass_below(self.reference, low), shape),
            jnp.broadcast_to(at_high + log_mass_above(self.reference, high), shape),
        )
        integral = log_integral(log_density, pieces.sizes(basis), rule, *log_tails)
        return Constants(largest, (at_low, at_high), integral), log_density, log_tails


class Constants(NamedTuple):
    """What a normalised log-density needs: the largest of f - offset, e at the body's ends, log int pi0 exp(e)."""

    largest: Array
    at_ends: tuple[Array, Array]
    log_integral: Array


@compiled
def log_normalizer(density: Density) -> Float[Array, "*batch"]:
    """Log Z, of a density without components."""
    constants = density._constants()
    return density.energy.offset + constants.largest + constants.log_integral
