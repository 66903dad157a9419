"""What a training run warns of, once each: skipped steps, collapsed weights, chains that do not get there."""

from __future__ import annotations

import warnings

import jax
import numpy as np

from numpyro_kaem.training.history import History

# An ESS of `ImportanceMLE` below this means that single draws stand for whole posteriors.
_COLLAPSED_ESS = 2.0
# Share of chains that may stand still, and nats that they may be below importance sampling.
_STUCK, _GAP = 0.1, -1.0
# Standard deviation of log p(x | z) of a posterior of a few latents.
_SPREAD = 2.0


class Alarms:
    """Warnings of a run, each of which is given once, and by the first process only."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of_steps(self, records: dict[str, np.ndarray], history: History) -> None:
        """Tell of steps that were skipped."""
        if not records or records["is_finite"].all():
            return
        index = int(np.argmin(records["is_finite"]))
        loss, number = records["loss"][index], history.step_in_epoch - len(records["loss"]) + index + 1
        what = f"the loss is {loss}"
        if np.isfinite(loss):
            what = "the parameters or the state of the optimiser are not finite"
        self._warn(
            "steps",
            f"{what} at step {number} of epoch {history.epoch}, which is skipped (history counts such steps): try a "
            "smaller learning rate, clipped gradients or a likelihood that is nowhere zero",
        )

    def of_draws(self, history: History) -> None:
        """Tell that the prior draws of an epoch have not met the posteriors."""
        if "ess" not in history.by_step:
            return
        ess = history.of_epoch("ess")
        median = np.median(ess[np.isfinite(ess)]) if np.isfinite(ess).any() else np.inf
        if median < _COLLAPSED_ESS:
            self._warn(
                "ess",
                f"the effective sample size of the prior draws is {median:.3g} in epoch {history.epoch}: single draws "
                "stand for whole posteriors, and the number of draws is part of what is learned. Take more draws "
                "or fewer latent dimensions, or LangevinMLE or ThermodynamicMLE",
            )

    def of_chains(self, history: History, batch_size: int) -> None:
        """Tell that chains of an epoch did not move, or have not come to where the likelihood is."""
        if "stuck" not in history.by_step:
            return
        stuck, gap = (history.of_epoch(name) for name in ("stuck", "importance_gap"))
        gap = gap[np.isfinite(gap)]
        # Three standard errors on: single chains of converged data differ by nats, and a tenth of the batch may count.
        chance = 3 * _SPREAD / np.sqrt(0.1 * batch_size * max(len(gap), 1))
        gap = gap.mean() + chance if len(gap) else 0.0
        if stuck.mean() > _STUCK:
            what = f"{stuck.mean():.0%} of the chains did not move in a training step: their step size is too large"
        elif gap < _GAP:
            what = (
                f"log p(x | z) at the chains' ends is at least {-gap:.2g} nats below what importance sampling says of "
                "it: the chains have not come to the posteriors"
            )
        else:
            return
        self._warn(
            "chains",
            f"{what} (epoch {history.epoch}; `history` has 'stuck' and 'importance_gap'). Leave the step size to "
            "adaptation, or take more steps or ThermodynamicMLE",
        )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._given and jax.process_index() == 0:
            self._given.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=6)  # at the call of `fit`
