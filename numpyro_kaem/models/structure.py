"""The structure of a NumPyro model: its sites, plates and parameters, and which plate is the data's."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.handlers import seed, substitute, trace
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key

from numpyro_kaem.models.staging import StagedFunction, Static

# Printed by every error about rows that do not stand alone: one of these sentences is the way out.
CURES = (
    "Inside the data plate each row must stand alone: put the data axis first, pass covariates and labels as "
    "positional arguments next to the data (not as keywords or from the enclosing scope), give parameters no "
    "plate dimension, switch BatchNorm to evaluation mode, and let no factor mix rows."
)


class SampleSite(NamedTuple):
    """What is static about a sample site: plates maps plate names to batch dimensions; masked out is all of it."""

    is_observed: bool
    plates: dict[str, int]
    shape: tuple[int, ...]
    event_dim: int
    dtype: Any
    is_normalized: bool
    is_factor: bool
    is_masked: bool
    is_masked_out: bool
    is_unbounded: bool


class ParameterSite(NamedTuple):
    """What is static about a parameter site: plates as in `SampleSite`, event_dim if it was declared."""

    plates: dict[str, int]
    shape: tuple[int, ...] | None
    event_dim: int | None
    constraint: Any


class ModelStructure(NamedTuple):
    """Everything that one abstract run of a model tells about it.

    Factors are observed sites. Plates have their size and number of indices, deterministic sites the dimensions of
    their plates. `staged` gives the values of plates, parameters and mutable sites from params, arrays and the key.
    """

    sites: dict[str, SampleSite]
    plates: dict[str, tuple[int, int]]
    parameters: dict[str, ParameterSite]
    deterministic: dict[str, dict[str, int]]
    mutable: tuple[str, ...]
    has_random_state: bool
    has_subsample_statement: bool
    staged: StagedFunction

    @property
    def latent_sites(self) -> dict[str, SampleSite]:
        """The unobserved sites."""
        return {name: site for name, site in self.sites.items() if not site.is_observed}

    @property
    def unnormalized_sites(self) -> tuple[str, ...]:
        """Names of the unobserved sites whose distribution is known up to a constant only."""
        return tuple(name for name, site in self.latent_sites.items() if not site.is_normalized)


class _Messages(Messenger):
    """Notes the types of messages, of which a trace does not record all, and refuses priors that cannot be drawn."""

    def __init__(self, fn: Callable):
        super().__init__(fn)
        self.types: set[str] = set()

    def process_message(self, msg: dict) -> None:
        self.types.add(msg["type"])
        if msg["type"] == "sample" and msg["value"] is None and isinstance(_innermost(msg["fn"]), dist.ImproperUniform):
            raise ValueError(
                f"latent site {msg['name']!r} has an improper prior, from which nothing can be drawn: give it a proper "
                "distribution, such as a wide dist.Normal or dist.HalfCauchy"
            )


def inspect_model(model: Callable, params: dict, arrays: Any, static: Any, rng_key: Array) -> ModelStructure:
    """Run a model abstractly and note its structure; `static` is what is no array among its arguments."""

    def run(params: dict, arrays: Any, rng_key: Array) -> dict[str, Any]:
        data, model_kwargs = eqx.combine(arrays, static)
        messages = _Messages(substitute(seed(model, rng_key), data=params))
        by_type: dict[str, dict] = defaultdict(dict)
        for name, site in trace(messages).get_trace(*data, **model_kwargs).items():
            by_type[site["type"]][name] = site
        values: dict[str, Any] = {
            kind: {name: site["value"] for name, site in by_type[kind].items()}
            for kind in ("plate", "param", "mutable")
        }
        sizes = {name: site["args"][0] for name, site in by_type["plate"].items()}
        holds_keys = any(map(is_prng_key, jax.tree.leaves(values["mutable"])))
        facts = {
            "sites": {name: _sample_site(site) for name, site in by_type["sample"].items()},
            "plates": {name: (size, values["plate"][name].shape[0]) for name, size in sizes.items()},
            "parameters": {name: _parameter_site(site) for name, site in by_type["param"].items()},
            "deterministic": {name: _plates(site) for name, site in by_type["deterministic"].items()},
            "mutable": tuple(by_type["mutable"]),
            "has_random_state": holds_keys or "prng_key" in messages.types,
            "has_subsample_statement": "subsample" in messages.types,
        }
        return {**values, "facts": Static(facts)}

    staged = StagedFunction(run, params, arrays, rng_key)
    structure = ModelStructure(staged=staged, **staged.outputs["facts"].value)
    if not structure.latent_sites:
        raise ValueError("the model has no latent site: each of its sample sites is observed")
    return structure


def initial_values(model: Callable, data: tuple, model_kwargs: dict, rng_key: Array) -> dict[str, Any]:
    """The values of a model's parameter and mutable sites where none are given."""
    arrays, static = eqx.partition((data, model_kwargs), eqx.is_array)
    staged = inspect_model(model, {}, arrays, static, rng_key).staged
    return staged.evaluate(lambda values: {**values["param"], **values["mutable"]}, {}, arrays, rng_key)


def scaled_log_prob(site: dict) -> Array:
    """The log-probabilities of a traced site, by element, with its scale."""
    log_prob = site["fn"].log_prob(site["value"])
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def layers(fn: Any) -> Iterator[Any]:
    """A distribution and all that it wraps, from the outside."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "base_dist", None)


def masks_of(fn: Any) -> list[Any]:
    """The masks in a distribution that hide anything: False, or arrays."""
    masked = [layer for layer in layers(fn) if isinstance(layer, MaskedDistribution)]
    return [layer._mask for layer in masked if layer._mask is not True]


def unmasked(fn: Any) -> Any:
    """The distribution that a site is drawn from: without its masks."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    base = getattr(fn, "base_dist", None)
    bare = base if base is None else unmasked(base)
    if bare is base:
        return fn
    fn = copy(fn)
    fn.base_dist = bare
    return fn


def _plates(site: dict) -> dict[str, int]:
    return {frame.name: frame.dim for frame in site["cond_indep_stack"]}


def _sample_site(site: dict) -> SampleSite:
    if not (hasattr(site["value"], "dtype") or jnp.isscalar(site["value"])):
        raise TypeError(
            f"site {site['name']!r} has a {type(site['value']).__name__} for its value, which must be an array: pass "
            "numpy.array(...) of numbers"
        )
    fn, dtype = site["fn"], jnp.result_type(site["value"])
    if not site["is_observed"] and fn.support is not None and fn.support.is_discrete:
        raise ValueError(
            f"latent site {site['name']!r} is discrete: only continuous latents are supported; sum it out of the "
            "model, for example with numpyro.distributions.MixtureSameFamily"
        )
    shape, full = jnp.shape(site["value"]), tuple(fn.shape())
    common = range(-min(len(shape), len(full)), 0)
    repeated = {axis for axis in common if shape[axis] == 1 < full[axis]}
    plate_axes = {dim - fn.event_dim for dim in _plates(site).values()}
    if site["is_observed"] and repeated - plate_axes:
        raise ValueError(
            f"observed site {site['name']!r} has values of shape {shape}, but its distribution has shape {full}: "
            "values would be counted several times; give both the same shape"
        )
    normalized = all(getattr(layer, "is_normalized", True) for layer in layers(fn))
    if site["is_observed"] and not normalized:
        raise ValueError(
            f"observed site {site['name']!r} has a density that is not normalised: its likelihood is known up to a "
            "factor only, which may depend on latents and parameters; give it a normalised distribution"
        )
    masks = masks_of(fn)
    return SampleSite(
        is_observed=site["is_observed"],
        # What `handlers.lift` makes of a parameter has none of the dimensions of the plates around it.
        plates={name: dim for name, dim in _plates(site).items() if len(fn.batch_shape) >= -dim},
        shape=tuple(fn.shape()),
        event_dim=fn.event_dim,
        dtype=dtype,
        is_normalized=normalized,
        is_factor=isinstance(_innermost(fn), dist.Unit),
        is_masked=bool(masks),
        is_masked_out=any(mask is False for mask in masks),
        is_unbounded=getattr(fn.support, "base_constraint", fn.support) is constraints.real,
    )


def _innermost(fn: Any) -> Any:
    """The distribution inside of its wrappers."""
    return list(layers(fn))[-1]


def _parameter_site(site: dict) -> ParameterSite:
    event_dim, constraint = site["kwargs"].get("event_dim"), site["kwargs"].get("constraint", constraints.real)
    shape = None if event_dim is None else jnp.shape(site["value"])
    return ParameterSite(_plates(site), shape, event_dim, constraint)


def check_parameter_names(structure: ModelStructure, params: dict) -> None:
    """Raise a ValueError that lists missing and unknown keys of `params`; mutable sites may be left out."""
    expected = set(structure.parameters)
    missing, unknown = sorted(expected - set(params)), sorted(set(params) - expected - set(structure.mutable))
    if missing or unknown:
        raise ValueError(
            f"params must hold the values of the model's parameter sites {sorted(expected)}: "
            f"missing {missing}, unknown {unknown}"
        )


def find_data_plate(
    structure: ModelStructure, num_rows: set[int], plate: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """The plate that holds every latent site, or None and the latent sites outside of what comes nearest to one."""
    latents = structure.latent_sites
    if plate is not None and plate not in structure.plates:
        raise ValueError(f"plate={plate!r} is no plate of the model; it has {sorted(structure.plates)}")
    candidates = list(structure.plates) if plate is None else [plate]
    holding = [name for name in candidates if all(name in site.plates for site in latents.values())]
    if len(holding) > 1:
        fitting = [name for name in holding if num_rows & set(structure.plates[name])]
        if len(fitting) != 1:
            raise ValueError(f"the plates {holding} hold every latent site: name the data plate with plate=")
        holding = fitting
    if holding:
        return holding[0], ()
    nearest = max(candidates, key=lambda name: sum(name in site.plates for site in latents.values()), default=None)
    return None, tuple(name for name, site in latents.items() if nearest not in site.plates)


def check_no_plate_dimension(structure: ModelStructure, plate: str) -> None:
    """Raise a ValueError that names a parameter declared with one entry per row of the plate."""
    for name, site in structure.parameters.items():
        if plate in site.plates and site.event_dim is not None:
            axis = site.plates[plate] - site.event_dim
            if len(site.shape) >= -axis and site.shape[axis] != 1:
                raise ValueError(
                    f"parameter {name!r} of shape {site.shape} has a dimension of plate {plate!r}: a parameter "
                    "per row is a latent variable; make it a sample site, or give it no plate dimension"
                )
