"""One training step, and many of them in one compiled call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO
from numpyro.infer.svi import SVIState

from numpyro_kaem._compilation.fingerprint import SameProgram
from numpyro_kaem._numerics.convolutions import channels_last
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives.objective import STATE
from numpyro_kaem.training.grids import GridAdaptation


class TrainState(NamedTuple):
    """Everything that a step changes."""

    svi: SVIState
    average: PyTree  # moving, of the unconstrained parameters; None without
    step: Int[Array, ""]
    bad_in_a_row: Int[Array, ""]


class Stepper(NamedTuple):
    """What a training step is made of; all of it static, and compared by value."""

    model: SameProgram
    guide: SameProgram
    optim: SameProgram
    objective: SameProgram | ELBO
    plate: str | None
    model_sites: tuple[str, ...]
    data_per_step: float  # by which losses are divided
    ema_decay: float | None
    grid_adaptation: GridAdaptation | None
    max_bad_steps: int

    def svi(self, state: TrainState, batch: tuple, kwargs: dict) -> SVI:
        """NumPyro's own algorithm, which has learned by a run of model and guide how parameters are constrained."""
        objective = self.objective.function if isinstance(self.objective, SameProgram) else self.objective
        svi = SVI(self.model, self.guide, self.optim.function, objective)
        svi.init(state.svi.rng_key, *batch, **kwargs)
        return svi

    def step(
        self, svi: SVI, state: TrainState, batch: tuple, rows: Any, kwargs: dict
    ) -> tuple[TrainState, dict[str, Array]]:
        """Take a step on a batch, or stay where everything was if what comes out of it is not finite.

        What the optimiser has accumulated counts too: a gradient that is not finite may wait there for its turn.
        """
        before = _with_chains(state.svi, lambda chains: jax.tree.map(lambda x: x[rows], chains))
        after, loss = svi.update(before, *batch, **kwargs)
        metrics = (after.mutable_state or {}).get(STATE, {}).get("metrics", {})
        finite = [jnp.isfinite(leaf) for leaf in _numbers(svi.get_params(after))]
        # An optimiser may begin with an infinite best loss.
        optimisers = zip(_numbers(before.optim_state), _numbers(after.optim_state), strict=True)
        finite += [jnp.isfinite(new) | ~jnp.isfinite(old) for old, new in optimisers]
        is_finite = jnp.all(jnp.stack([jnp.isfinite(loss), *map(jnp.all, finite)]))
        # All of it, chains and grids too; but for the random key, so that the next step draws anew.
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, before)
        kept = SVIState(kept.optim_state, kept.mutable_state, after.rng_key)
        number, average = state.step + 1, state.average
        if self.grid_adaptation is not None:
            key, key_adapt = jax.random.split(kept.rng_key)
            kept = SVIState(kept.optim_state, kept.mutable_state, key)

            def adapt(kept, average):
                values = svi.get_params(kept) | (kept.mutable_state or {})
                params = {name: values[name] for name in self.model_sites}
                given = {"plate": self.plate, "rng_key": key_adapt, "check": False, **kwargs}
                at = LatentModel(self.model, params, *batch, **given)
                return self.grid_adaptation.apply(key_adapt, svi, kept, average, at)

            due = is_finite & self.grid_adaptation.is_due(number)
            kept, average = jax.lax.cond(due, adapt, lambda *unchanged: unchanged, kept, average)
        if self.ema_decay is not None:
            params, decay = svi.optim.get_params(kept.optim_state), self.ema_decay
            average = jax.tree.map(lambda a, p: jnp.where(is_finite, decay * a + (1 - decay) * p, a), average, params)
        bad_in_a_row = jnp.where(is_finite, 0, state.bad_in_a_row + 1)
        record = {"loss": loss / self.data_per_step, "is_finite": is_finite, **metrics}

        def put(chains):
            everyones = state.svi.mutable_state[STATE]["per_datum"]
            return jax.tree.map(lambda old, new: old.at[rows].set(new), everyones, chains)

        return TrainState(_with_chains(kept, put), average, number, bad_in_a_row), record

    def run(
        self,
        state: TrainState,
        records: dict[str, Array],
        steps: tuple[Int[Array, "num_steps batch_size"], Array, Array],
        data: tuple,
        kwargs: dict,
        cut: Callable[[tuple, Array], tuple],
        place: Callable[[TrainState], TrainState],
    ) -> tuple[TrainState, dict[str, Array], Array]:
        """Take some steps of an epoch, or up to too many bad ones; returns the next step's number too.

        `steps` are the rows of all steps, and the numbers of the first to take and of the one after the last. The
        bounds are values, so that one compiled program serves epochs that are broken off anywhere.
        """
        order, first, last = steps
        svi = self.svi(state, cut(data, order[0]), kwargs)

        def goes_on(carry):
            i, state, _ = carry
            return (i < last) & (state.bad_in_a_row < self.max_bad_steps)

        def body(carry):
            i, state, records = carry
            rows = order[i]
            step = channels_last(lambda state, batch, rows: self.step(svi, state, batch, rows, kwargs))
            state, record = step(state, cut(data, rows), rows)
            records = jax.tree.map(lambda all_, one: all_.at[i].set(one), records, record)
            return i + 1, place(state), records

        end, state, records = jax.lax.while_loop(goes_on, body, (first, state, records))
        return state, records, end


def empty_records(state: TrainState, num_steps: int) -> dict[str, Array]:
    """Room for the records of an epoch."""
    metrics = (state.svi.mutable_state or {}).get(STATE, {}).get("metrics", {})
    record = {"loss": jnp.zeros(()), "is_finite": jnp.zeros((), bool), **metrics}
    return jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), record)


def _with_chains(state: SVIState, function: Callable[[dict], dict]) -> SVIState:
    own = (state.mutable_state or {}).get(STATE)
    if not own or not own["per_datum"]:
        return state
    own = own | {"per_datum": function(own["per_datum"])}
    return SVIState(state.optim_state, state.mutable_state | {STATE: own}, state.rng_key)


def _numbers(tree: PyTree) -> list[Array]:
    """The leaves that may be infinite or NaN."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
