"""What a training run begins with: an optimiser, an objective that suits the model, sites of both, and the state."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.svi import SVIState
from numpyro.optim import _NumPyroOptim

from numpyro_kaem._compilation.fingerprint import fingerprint
from numpyro_kaem._compilation.options import RUN_ONCE
from numpyro_kaem._compilation.programs import jit_by_program
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives.objective import STATE, Objective, missing_guide
from numpyro_kaem.posterior.reading import NEEDS_VALUES, explained
from numpyro_kaem.posterior.run_checkpoints import describe_distributions

# NumPyro's own losses: their latents are draws from the guide, and every density is taken for normalised.
_NEED_GUIDE = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, RenyiELBO)


def build_optimizer(optimizer: Any, labels: Callable[[str], str] | None, accumulate: int) -> Any:
    """The optimiser that NumPyro's `SVI` is given, from what `fit` is given."""
    if isinstance(optimizer, Mapping):
        optimizer = _by_label(dict(optimizer), labels or (lambda site: site.removesuffix("$params")))
    elif labels is not None:
        raise ValueError("labels need a dict of optimisers: optimizer={'energy': optax.adam(1e-3), ...}")
    if accumulate == 1:
        return optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError("accumulate needs an optimiser of Optax, got one of NumPyro")
    return optax.MultiSteps(optimizer, accumulate).gradient_transformation()


def optimizer_fingerprint(optim: _NumPyroOptim, params: dict[str, Any]) -> Hashable:
    """What an optimiser computes for parameters of these shapes: two of `optax.adam(1e-3)` are two closures."""

    def use(params: dict[str, Any]) -> Any:
        def loss(params: dict[str, Any]) -> tuple[Array, None]:
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), None

        state = optim.init(params)
        return state, optim.eval_and_update(loss, state)

    return fingerprint(jax.make_jaxpr(use)(params))


def _by_label(optimizers: dict[str, Any], labels: Callable[[str], str]) -> Any:
    def label_sites(params: dict[str, Any]) -> dict[str, str]:
        chosen = {site: labels(site) for site in params}
        if unknown := {site: label for site, label in chosen.items() if label not in optimizers}:
            raise ValueError(
                f"optimizer has entries for {sorted(optimizers)}, but parameter sites have labels {unknown}: add an "
                "entry, or pass labels, a function from the name of a site to a key"
            )
        if unused := set(optimizers) - set(chosen.values()):
            raise ValueError(
                f"optimizer has entries for {sorted(unused)}, but parameter sites have only the labels "
                f"{sorted(set(chosen.values()))}: remove them, or see whether they are spelt as the model does"
            )
        return chosen

    return optax.multi_transform(optimizers, label_sites)


def guide_for(objective: Any, guide: Callable | None) -> Callable:
    """The guide that an objective is trained with: one without sites where it needs none."""
    if not isinstance(objective, ELBO):
        raise TypeError(f"objective must be ImportanceMLE(...) or another numpyro.infer.elbo.ELBO, got {objective!r}")
    if guide is None and isinstance(objective, _NEED_GUIDE):
        raise ValueError(
            f"guide must be given with {type(objective).__name__}, which without one trains on draws from the prior: "
            "pass guide=..., an encoder, or take ImportanceMLE(...), LangevinMLE(...) or ThermodynamicMLE(...)"
        )
    if guide is None and isinstance(objective, Objective) and objective.takes_guide:
        raise missing_guide(objective)
    return _no_guide if guide is None else guide


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """A guide without sites."""


def check_suits(objective: ELBO, latent_model: LatentModel, guide: Callable, guide_params: dict[str, Any]) -> None:
    """Raise an error where the objective would learn something wrong of the model, or the guide does not suit."""
    if isinstance(objective, Objective):
        objective.check(latent_model)
        if objective.takes_guide:
            objective.read_guide(guide, guide_params, latent_model)
    if isinstance(objective, _NEED_GUIDE) and latent_model.unnormalized_sites:
        raise ValueError(
            f"objective must be ImportanceMLE(...), LangevinMLE(...) or ThermodynamicMLE(...), because the density of "
            f"{list(latent_model.unnormalized_sites)} is known up to a constant only, got {type(objective).__name__}, "
            "which would take it for normalised and learn a wrong energy"
        )


class Sites(NamedTuple):
    """Names of the parameter and mutable sites of a model and its guide; families of the model's sample sites."""

    svi: SVI  # has learned by its `init` how parameters are constrained
    of_model: tuple[str, ...]
    of_guide: tuple[str, ...]
    distributions: dict[str, str]

    def values(self, names: tuple[str, ...], state: SVIState, params: PyTree = None) -> dict[str, Any]:
        """Constrained values; of other unconstrained parameters than the state's where they are given."""
        params = self.svi.optim.get_params(state.optim_state) if params is None else params
        constrained = self.svi.constrain_fn(params) | (state.mutable_state or {})
        return {name: constrained[name] for name in names}


def read_sites(svi: SVI, args: tuple, kwargs: dict[str, Any]) -> Sites:
    """The sites of the model and guide of an `SVI` that has been initialised."""

    def read(function: Callable) -> tuple[tuple[str, ...], dict[str, dict]]:
        recorder = handlers.trace(handlers.seed(function, 0))
        jax.eval_shape(lambda: recorder.get_trace(*args, **kwargs) and None)
        kept = (name for name, site in recorder.trace.items() if site["type"] in ("param", "mutable"))
        return tuple(sorted(kept)), recorder.trace

    (of_model, trace), (of_guide, _) = read(svi.model), read(svi.guide)
    return Sites(svi, of_model, of_guide, describe_distributions(trace))


def initial_state(
    svi: SVI, key: PRNGKeyArray, args: tuple, init_params: dict[str, Any] | None, kwargs: dict[str, Any]
) -> SVIState:
    """`svi.init`, compiled: of the model only the parameters' initial values are computed."""

    def init(key, args, init_params, kwargs):
        return svi.init(key, *args, init_params=init_params, **kwargs)

    try:
        state = jit_by_program(init, compiler_options=RUN_ONCE)(key, args, init_params, kwargs)
        svi.get_params(state)
    except jax.errors.UnexpectedTracerError:
        # A constraint whose bounds are arrays made inside of the model: SVI has kept a traced one.
        state = init(key, args, init_params, kwargs)
    except NEEDS_VALUES as error:
        raise explained(error) from error
    return state


def with_optimizer_state(state: SVIState, given: PyTree) -> SVIState:
    """The state with that of an optimiser which has been at work."""
    step, kept = state.optim_state
    if len(kept) != 2:
        raise ValueError("init_optimizer_state needs an optimiser of Optax, got one of NumPyro")
    params, own = kept
    (leaves, structure), arrays = jax.tree.flatten(own), jax.tree.leaves(given)
    shapes, expected = [jnp.shape(leaf) for leaf in arrays], [leaf.shape for leaf in leaves]
    if shapes != expected:
        raise ValueError(
            "init_optimizer_state must be that of the same optimizer and model, whose arrays have shapes "
            f"{_in_short(expected)}, got {_in_short(shapes)}: leave it out to begin anew"
        )
    arrays = [jnp.asarray(array, leaf.dtype) for array, leaf in zip(arrays, leaves, strict=True)]
    return state._replace(optim_state=(step, (params, jax.tree.unflatten(structure, arrays))))


def _in_short(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes[:10])) + (f" and {len(shapes) - 10} more" if len(shapes) > 10 else "")


def with_objective_state(
    state: SVIState, objective: Objective, latent_model: LatentModel, num_chains: int | None
) -> SVIState:
    """The state with what the objective keeps between steps, by datum if it is known which datum is which."""
    own = objective.initial_state(latent_model, latent_model.num_data if num_chains is None else num_chains)
    if own["per_datum"] and num_chains is None:
        if getattr(objective, "persistent", True) is not None:
            raise ValueError(
                "persistent chains need data as arrays, or batches that are IndexedBatch(data, indices): an iterable "
                "does not tell which datum is which"
            )
        own["per_datum"] = {}
    return SVIState(state.optim_state, (state.mutable_state or {}) | {STATE: own}, state.rng_key)
