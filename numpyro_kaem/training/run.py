"""The course of a training run on the host: epochs, scores, checkpoints, callbacks, and how it ends."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from numpyro_kaem._checkpoints.store import CheckpointStore
from numpyro_kaem._compilation.interrupts import interrupts
from numpyro_kaem.training.data import ArrayFeed, StreamFeed
from numpyro_kaem.training.failure import TrainingFailed
from numpyro_kaem.training.processes import any_process
from numpyro_kaem.training.result import BY_EPOCH, FitResult, epoch_row
from numpyro_kaem.training.step import Stepper, TrainState

# Seconds of compiled steps between two looks at the progress bar and the keyboard.
_SECONDS = 1.0
# An ESS of `ImportanceMLE` below this means that single draws stand for whole posteriors.
_COLLAPSED_ESS = 2.0
# Share of chains that may stand still, and nats that they may be below importance sampling.
_STUCK, _GAP = 0.1, -1.0
# Standard deviation of log p(x | z) of a posterior of a few latents.
_SPREAD = 2.0


class Settings(NamedTuple):
    """Of the arguments of `fit`, those that steer the course."""

    num_epochs: int
    held_out_every: int
    patience: int | None
    checkpoint_every: int | None
    callbacks: tuple[Callable, ...]
    progress: bool


@dataclass(eq=False)
class Run:
    """A training run.

    Attributes:
        feed: gives batches, and takes steps on them.
        optim: the optimiser, of NumPyro.
        stepper: what a step is.
        model_values, guide_values: constrained values of the sites, of unconstrained parameters and mutable state.
        score: mean held-out log-likelihood and its standard error, of parameters and a key; None without.
        store: of checkpoints; None without.
        description: facts that a checkpoint and its continuation have in common.
        settings: of the course.
    """

    feed: ArrayFeed | StreamFeed
    optim: Any
    stepper: Stepper
    model_values: Callable
    guide_values: Callable
    score: Callable | None
    store: CheckpointStore | None
    description: dict[str, Any]
    settings: Settings

    def __call__(self, state: TrainState, keys: dict[str, Array], shardings: PyTree, kwargs: dict) -> FitResult:
        """Train to the end, or until something ends it; the arrays of the state are given up."""
        self.state, self.keys, self.best = state, keys, None
        self.by_step: dict[str, list[np.ndarray]] = {}
        self.by_epoch: dict[str, list[float]] = {name: [] for name in (*BY_EPOCH, "steps")}
        self.scores: list[tuple[float, float, float]] = []
        self.epoch, self.step_in_epoch, self.seconds, self.size = 1, 0, 0.0, 1
        self.warned: set[str] = set()
        self._resume()
        self.compile_seconds = 0.0
        reason = "patience" if self._is_out_of_patience() else "finished"
        if self.epoch <= self.settings.num_epochs and reason == "finished":
            self.feed.resume(int(self.state.step), self.step_in_epoch)
            self.compile_seconds = self.feed.compile(self.stepper, self.state, shardings, kwargs)
        is_first = jax.process_index() == 0
        with (
            interrupts() as interrupted,
            tqdm(
                total=self.settings.num_epochs,
                initial=self.epoch - 1,
                unit="epoch",
                disable=not (self.settings.progress and is_first),
            ) as bar,
        ):
            try:
                while self.epoch <= self.settings.num_epochs and reason == "finished":
                    reason = self._one_epoch(bar, interrupted)
            except Exception as error:
                self._rescue(error)
                raise
        if reason in ("finished", "patience") and not self._has_good_steps():
            reason = "non-finite steps"
        if reason == "non-finite steps":
            raise TrainingFailed(self._failure(), self._result(reason))
        return self._result(reason)

    def _one_epoch(self, bar: tqdm, interrupted: list[bool]) -> str:
        """Go to the end of the epoch; tells whether and why the run ends there."""
        self.feed.begin(jax.random.fold_in(self.keys["shuffle"], self.epoch))
        ended = False
        while not ended:
            first, last = self.step_in_epoch, self._next_stop()
            start = time.perf_counter()
            self.state, records, ended = self.feed.advance(self.state, first, last, interrupted)
            seconds = time.perf_counter() - start
            taken = len(records["loss"]) if records else 0
            self.seconds, self.step_in_epoch = self.seconds + seconds, first + taken
            for name, values in records.items():
                self.by_step.setdefault(name, []).append(values)
            self._warn(records)
            bar.set_postfix_str(self._postfix(), refresh=False)
            bar.update(taken / self.feed.num_steps if self.feed.num_steps else float(ended))
            if int(self.state.bad_in_a_row) >= self.stepper.max_bad_steps:
                return "non-finite steps"
            self.size = self._next_size(seconds / max(taken, 1))
            every = self.settings.checkpoint_every
            if not ended and every is not None and int(self.state.step) % every == 0:
                self._save()
            if not ended and self._anywhere(bool(interrupted)):
                self._save()
                return "interrupted"
        self._warn_of_collapse()
        self._warn_of_chains()
        reason = self._end_epoch()
        bar.set_postfix_str(self._postfix(), refresh=False)
        if self._anywhere(bool(interrupted)):
            reason = "interrupted"
        is_last = self.epoch > self.settings.num_epochs or reason != "finished"
        every = self.settings.checkpoint_every
        if is_last or every is None or int(self.state.step) % every == 0:
            self._save()
        return reason

    def _next_stop(self) -> int:
        """The step before which to come back from the device."""
        first, every = self.step_in_epoch, self.settings.checkpoint_every
        stop = first + self.size
        if every is not None:
            stop = min(stop, first + every - int(self.state.step) % every)
        return stop if self.feed.num_steps is None else min(stop, self.feed.num_steps)

    def _next_size(self, seconds_per_step: float) -> int:
        """How many steps to take at once: a second's worth, found by doubling."""
        longest = self.feed.num_steps or 10**9
        if jax.process_count() > 1:  # every process must come back at the same step, whatever its clock says
            return longest
        return min(longest, 2 * self.size, max(1, int(_SECONDS / max(seconds_per_step, 1e-9))))

    def _end_epoch(self) -> str:
        """Close the books of the epoch; tells whether and why the run ends."""
        reason, number = "finished", self.epoch
        if self.score is not None and (
            number % self.settings.held_out_every == 0 or number == self.settings.num_epochs
        ):
            params = self._scored_params(self.state)
            mean, std_error = (float(value) for value in self.score(params, self.keys["score"]))
            self.scores.append((number, mean, std_error))
            if self._best_score() == len(self.scores) - 1:
                self.best = _copied(params)
            elif self._is_out_of_patience():
                reason = "patience"
        records = {name: self._of_epoch(name) for name in self.by_step}
        losses, finite = records["loss"], records.pop("is_finite")
        self.by_epoch["epoch_loss"].append(float(losses[finite].mean()) if finite.any() else np.nan)
        self.by_epoch["seconds"].append(self.seconds)
        self.by_epoch["non_finite_steps"].append(int(np.sum(~finite)))
        self.by_epoch["steps"].append(self.step_in_epoch + (self.by_epoch["steps"][-1] if number > 1 else 0))
        # The books are closed before callbacks are called: if one raises, the run goes on with the next epoch.
        self.epoch, self.step_in_epoch, self.seconds = number + 1, 0, 0.0
        if self.settings.callbacks:
            by_epoch = {name: values[-1] for name, values in self.by_epoch.items()}
            row = epoch_row(number, by_epoch, records, [score for score in self.scores[-1:] if score[0] == number])
            answers = [callback(number, row, _copied(self._params())) for callback in self.settings.callbacks]
            if self._anywhere(any(_is_true(answer) for answer in answers)):
                reason = "callback"
        return reason

    def _anywhere(self, value: bool) -> bool:
        """Whether the value is true in any of the processes that train together."""
        return value if self.feed.layout is None else any_process(value)

    def _best_score(self) -> int:
        """Index of the first of the best scores; -1 while there is none that is finite."""
        scores = [mean if np.isfinite(mean) else -np.inf for _, mean, _ in self.scores]
        return int(np.argmax(scores)) if np.isfinite(scores).any() else -1

    def _is_out_of_patience(self) -> bool:
        """Whether there were too many scores since the best one."""
        patience = self.settings.patience
        return patience is not None and len(self.scores) - 1 - self._best_score() >= patience

    def _of_epoch(self, name: str) -> np.ndarray:
        """The records of the steps of the present epoch, which are at the end of those of the run."""
        chunks, size = [], 0
        for values in reversed(self.by_step[name]):
            if size >= self.step_in_epoch:
                break
            chunks, size = [values, *chunks], size + len(values)
        return np.concatenate(chunks)[size - self.step_in_epoch :]

    def _has_good_steps(self) -> bool:
        """Whether any step was taken that was not skipped; without steps nothing is wrong."""
        finite = self.by_step.get("is_finite", [])
        return not finite or any(values.any() for values in finite)

    def _rescue(self, error: Exception) -> None:
        """Keep what there is when something raises: in a checkpoint, and as `result` of the error."""
        if jax.process_count() > 1:  # the other processes know nothing of it, and would have to help
            return
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):  # it broke in the middle of steps
            return
        if int(self.state.step):
            self._save()
        error.result = self._result("error")
        error.add_note("What there was before it is in `result` of this error, and in checkpoint_dir if there is one.")

    def _warn(self, records: dict[str, np.ndarray]) -> None:
        """Say once what goes wrong."""
        if not records or jax.process_index():
            return
        if "steps" not in self.warned and not records["is_finite"].all():
            self.warned.add("steps")
            step = int(np.argmin(records["is_finite"]))
            loss, number = records["loss"][step], self.step_in_epoch - len(records["loss"]) + step + 1
            what = f"the loss is {loss}"
            if np.isfinite(loss):
                what = "the parameters or the state of the optimiser are not finite"
            warnings.warn(
                f"{what} at step {number} of epoch {self.epoch}, which is skipped (history counts such steps): try a "
                "smaller learning rate, clipped gradients or a likelihood that is nowhere zero",
                RuntimeWarning,
                stacklevel=5,
            )

    def _warn_of_collapse(self) -> None:
        """Say once that the prior draws of an epoch have not met the posteriors."""
        if "ess" not in self.by_step or "ess" in self.warned or jax.process_index():
            return
        if self.epoch == 1 and self.settings.num_epochs > 1:  # a model that has learned nothing yet may well collapse
            return
        ess = self._of_epoch("ess")
        median = np.median(ess[np.isfinite(ess)]) if np.isfinite(ess).any() else np.inf
        if median < _COLLAPSED_ESS:
            self.warned.add("ess")
            warnings.warn(
                f"the effective sample size of the prior draws is {median:.3g} in epoch {self.epoch}: single draws "
                "stand for whole posteriors, and the number of draws is part of what is learned. Take more draws "
                "or fewer latent dimensions, or LangevinMLE or ThermodynamicMLE",
                RuntimeWarning,
                stacklevel=5,
            )

    def _warn_of_chains(self) -> None:
        """Say once that chains of an epoch did not move, or have not come to where the likelihood is."""
        if "stuck" not in self.by_step or "chains" in self.warned or jax.process_index():
            return
        stuck, gap = (self._of_epoch(name) for name in ("stuck", "importance_gap"))
        gap = gap[np.isfinite(gap)]
        # Three standard errors on: single chains of converged data differ by nats, and a tenth of the batch may count.
        chance = 3 * _SPREAD / np.sqrt(0.1 * self.feed.batch_size * max(len(gap), 1))
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
        self.warned.add("chains")
        warnings.warn(
            f"{what} (epoch {self.epoch}; `history` has 'stuck' and 'importance_gap'). Leave the step size to "
            "adaptation, or take more steps or ThermodynamicMLE",
            RuntimeWarning,
            stacklevel=5,
        )

    def _postfix(self) -> str:
        losses = self.by_step["loss"][-1] if self.by_step else np.array([])
        text = f"loss {losses.mean() if len(losses) else np.nan:.5g}"
        if self.by_epoch["epoch_loss"] and not self.step_in_epoch:
            text = f"loss {self.by_epoch['epoch_loss'][-1]:.5g}"
        if self.scores:
            text += f", held-out {self.scores[-1][1]:.5g} ± {self.scores[-1][2]:.2g}"
        if self.by_epoch["seconds"]:
            text += f", {self.by_epoch['seconds'][-1]:.2g} s/epoch"
        return text

    def _params(self) -> dict[str, Any]:
        svi = self.state.svi
        return self.model_values(self.optim.get_params(svi.optim_state), svi.mutable_state)

    def _scored_params(self, state: TrainState) -> dict[str, Any]:
        """Model parameters to be scored: moving averages where there are any."""
        params = self.optim.get_params(state.svi.optim_state) if state.average is None else state.average
        return self.model_values(params, state.svi.mutable_state)

    def _history(self) -> dict[str, np.ndarray]:
        by_step = {name: np.concatenate(values) for name, values in self.by_step.items()}
        by_step.pop("is_finite", None)
        scores = np.array(self.scores, float).reshape(-1, 3)
        return by_step | {
            **{name: np.array(values) for name, values in self.by_epoch.items()},
            "held_out_epoch": scores[:, 0].astype(int),
            "held_out_log_likelihood": scores[:, 1],
            "held_out_std_error": scores[:, 2],
            "compile_seconds": np.array(self.compile_seconds),
        }

    def _result(self, reason: str) -> FitResult:
        svi, average = self.state.svi, self.state.average
        params = self._params()
        guide_params = self.guide_values(self.optim.get_params(svi.optim_state), svi.mutable_state)
        averaged = None if average is None else self.model_values(average, svi.mutable_state)
        best = self.best if self.best is not None else (params if averaged is None else averaged)
        return FitResult(params, self._history(), svi, guide_params, best, averaged, reason)

    def _failure(self) -> str:
        number = int(self.state.bad_in_a_row)
        losses = np.concatenate(self.by_step["loss"])[-number:]
        return (
            f"the last {number} steps, up to step {int(self.state.step)} of the run, were "
            f"not finite (losses {', '.join(f'{loss:.3g}' for loss in losses[:3])}, ...) and were skipped: take a "
            "smaller learning rate, clip gradients, or see whether the likelihood can be zero or NaN. The error's "
            "`result` has the parameters before them"
        )

    def _save(self) -> None:
        """Write a checkpoint, if there is a place for it."""
        if self.store is None:
            return
        history = {f"step/{name}": np.concatenate(values) for name, values in self.by_step.items()}
        history |= {f"epoch/{name}": np.array(values, float) for name, values in self.by_epoch.items()}
        history["scores"] = np.array(self.scores, float).reshape(-1, 3)
        history["position"] = np.array([self.epoch, self.step_in_epoch, self.seconds])
        self.store.save(int(self.state.step), self._kept(), history, self.description)

    def _kept(self) -> PyTree:
        best = self._scored_params(self.state) if self.best is None else self.best
        return {"train": self.state, "best": best, "keys": self.keys}

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = None if self.store is None else self.store.restore(self._kept(), self.description)
        if found is None:
            return
        _, kept, history = found
        self.state, self.keys = kept["train"], kept["keys"]
        for name, values in history.items():
            kind, _, key = name.partition("/")
            if kind == "step":
                self.by_step[key] = [values]
            elif kind == "epoch":
                self.by_epoch[key] = values.tolist()
        for key in ("steps", "non_finite_steps"):
            self.by_epoch[key] = [int(value) for value in self.by_epoch[key]]
        self.scores = [tuple(score) for score in history["scores"].tolist()]
        self.best = kept["best"] if self._best_score() >= 0 else None
        epoch, step_in_epoch, self.seconds = history["position"].tolist()
        self.epoch, self.step_in_epoch = int(epoch), int(step_in_epoch)


def _copied(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that outlive the state, whose arrays the next steps take over."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, params)


def _is_true(answer: Any) -> bool:
    """Whether it is True, of Python, NumPy or JAX; what else a callback may return says nothing."""
    return isinstance(answer, bool | np.bool_ | jax.Array) and np.asarray(answer).dtype == bool and bool(np.all(answer))
