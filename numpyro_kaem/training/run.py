"""The course of a training run on the host: epochs, scores, checkpoints, callbacks, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from numpyro_kaem._checkpoints.store import CheckpointStore, any_process
from numpyro_kaem._compilation.interrupts import interrupts
from numpyro_kaem.training.feeds import ArrayFeed, StreamFeed
from numpyro_kaem.training.history import Alarms, History
from numpyro_kaem.training.initial import Sites
from numpyro_kaem.training.result import FitResult, TrainingFailed
from numpyro_kaem.training.settings import HeldOut
from numpyro_kaem.training.step import Stepper, TrainState

# Seconds of compiled steps between two looks at the progress bar and the keyboard.
_SECONDS = 1.0


@dataclass(eq=False)
class Run:
    """A training run; the feed gives batches and takes steps on them."""

    num_epochs: int
    feed: ArrayFeed | StreamFeed
    stepper: Stepper
    sites: Sites
    held_out: HeldOut | None
    scorer: Callable | None  # of parameters, a function that gives those of the guide, and a key
    store: CheckpointStore | None
    checkpoint_every: int | None  # in steps; None for the end of every epoch
    description: dict[str, Any]  # facts that a checkpoint and its continuation have in common
    callbacks: tuple[Callable, ...]
    progress: bool

    def __call__(self, state: TrainState, keys: dict[str, Array], shardings: PyTree, kwargs: dict) -> FitResult:
        """Train to the end, or until something ends it; the arrays of the state are given up."""
        self.state, self.keys = state, keys
        self.best: dict[str, Any] | None = None
        self.history, self.alarms = History(), Alarms()
        self.size, self.compile_seconds = 1, 0.0
        self._resume()
        reason = "patience" if self._is_out_of_patience() else "finished"
        if self._goes_on(reason):
            self.feed.resume(self.step, self.history.step_in_epoch)
            start = time.perf_counter()
            self.feed.compile(self.stepper, self.state, shardings, kwargs)
            self.compile_seconds = time.perf_counter() - start
        is_shown = self.progress and jax.process_index() == 0
        bar = tqdm(total=self.num_epochs, initial=self.history.epoch - 1, unit="epoch", disable=not is_shown)
        with interrupts() as interrupted, bar:
            try:
                while self._goes_on(reason):
                    reason = self._one_epoch(bar, interrupted)
            except Exception as error:
                self._rescue(error)
                raise
        if reason in ("finished", "patience") and not self.history.has_good_steps():
            reason = "non-finite steps"
        if reason == "non-finite steps":
            raise TrainingFailed(self._failure(), self._result(reason))
        return self._result(reason)

    @property
    def step(self) -> int:
        """Number of steps so far."""
        return int(self.state.step)

    def _goes_on(self, reason: str) -> bool:
        return self.history.epoch <= self.num_epochs and reason == "finished"

    def _one_epoch(self, bar: tqdm, interrupted: list[bool]) -> str:
        """Go to the end of the epoch; tells whether and why the run ends there."""
        self.feed.begin(jax.random.fold_in(self.keys["shuffle"], self.history.epoch))
        ended = False
        while not ended:
            records, ended = self._some_steps(bar, interrupted)
            self.alarms.of_steps(records, self.history)
            if int(self.state.bad_in_a_row) >= self.stepper.max_bad_steps:
                return "non-finite steps"
            if not ended:
                stops = self._anywhere(bool(interrupted))
                if stops or self._is_checkpoint():
                    self._save()
                if stops:
                    return "interrupted"
        if self.history.epoch > 1 or self.num_epochs == 1:  # a model that has learned nothing yet may well collapse
            self.alarms.of_draws(self.history)
        self.alarms.of_chains(self.history, self.feed.batch_size)
        reason = self._end_epoch()
        bar.set_postfix_str(self.history.postfix(), refresh=False)
        if self._anywhere(bool(interrupted)):
            reason = "interrupted"
        if not self._goes_on(reason) or self.checkpoint_every is None or self._is_checkpoint():
            self._save()
        return reason

    def _some_steps(self, bar: tqdm, interrupted: list[bool]) -> tuple[dict[str, np.ndarray], bool]:
        """Take about a second's worth of steps; their records, and whether the epoch ends with them."""
        first, start = self.history.step_in_epoch, time.perf_counter()
        self.state, records, ended = self.feed.advance(self.state, first, self._next_stop(), interrupted)
        seconds = time.perf_counter() - start
        taken = self.history.add_steps(records, seconds)
        self.size = self._next_size(seconds / max(taken, 1))
        bar.set_postfix_str(self.history.postfix(), refresh=False)
        bar.update(taken / self.feed.num_steps if self.feed.num_steps else float(ended))
        return records, ended

    def _next_stop(self) -> int:
        """The step of the epoch before which to come back from the device."""
        size = self.size
        if self.checkpoint_every is not None:
            size = min(size, self.checkpoint_every - self.step % self.checkpoint_every)
        stop = self.history.step_in_epoch + size
        return stop if self.feed.num_steps is None else min(stop, self.feed.num_steps)

    def _next_size(self, seconds_per_step: float) -> int:
        """How many steps to take at once: a second's worth, found by doubling."""
        longest = self.feed.num_steps or 10**9
        if jax.process_count() > 1:  # every process must come back at the same step, whatever its clock says
            return longest
        return min(longest, 2 * self.size, max(1, int(_SECONDS / max(seconds_per_step, 1e-9))))

    def _is_checkpoint(self) -> bool:
        """Whether a checkpoint is due after this step, wherever in an epoch it is."""
        return self.checkpoint_every is not None and self.step % self.checkpoint_every == 0

    def _end_epoch(self) -> str:
        """Score, close the books of the epoch, and call back; tells whether and why the run ends."""
        number, reason = self.history.epoch, "finished"
        if self.held_out is not None and (number % self.held_out.every == 0 or number == self.num_epochs):
            params = self._params(self.state.average)
            score = self.scorer(params, partial(self._guide_params, self.state.average), self.keys["score"])
            if score is None:  # the run that goes on from here will score
                return "interrupted"
            self.history.scores.append((number, *score))
            if self.history.scores_since_best() == 0:
                self.best = _copied(params)
            elif self._is_out_of_patience():
                reason = "patience"
        # The books are closed before callbacks are called: if one raises, the run goes on with the next epoch.
        row = self.history.end_epoch()
        answers = [callback(number, row, _copied(self._params())) for callback in self.callbacks]
        if self.callbacks and self._anywhere(any(_is_true(answer) for answer in answers)):
            reason = "callback"
        return reason

    def _anywhere(self, value: bool) -> bool:
        """Whether the value is true in any of the processes that train together."""
        return value if self.feed.layout.mesh is None else any_process(value)

    def _is_out_of_patience(self) -> bool:
        """Whether there were too many scores since the best one."""
        patience = None if self.held_out is None else self.held_out.patience
        return patience is not None and self.history.scores_since_best() >= patience

    def _params(self, unconstrained: PyTree = None) -> dict[str, Any]:
        """Parameters of the model; those that are scored are of moving averages, where there are any."""
        return self.sites.values(self.sites.of_model, self.state.svi, unconstrained)

    def _guide_params(self, unconstrained: PyTree = None) -> dict[str, Any]:
        """Parameters of the guide, as `_params`."""
        return self.sites.values(self.sites.of_guide, self.state.svi, unconstrained)

    def _result(self, reason: str) -> FitResult:
        scored = self._params(self.state.average)
        return FitResult(
            params=self._params(),
            history=self.history.for_result(self.compile_seconds),
            state=self.state.svi,
            guide_params=self._guide_params(),
            best_params=scored if self.best is None else self.best,
            averaged_params=None if self.state.average is None else scored,
            stop_reason=reason,
        )

    def _failure(self) -> str:
        number = int(self.state.bad_in_a_row)
        last = np.concatenate(self.history.by_step["loss"])[-number:]
        losses = ", ".join(f"{loss:.3g}" for loss in last[:3])
        return (
            f"the last {number} steps, up to step {self.step} of the run, were not finite (losses {losses}, ...) and "
            "were skipped: take a smaller learning rate, clip gradients, or see whether the likelihood can be zero or "
            "NaN. The error's `result` has the parameters before them"
        )

    def _rescue(self, error: Exception) -> None:
        """Keep what there is when something raises: in a checkpoint, and as `result` of the error."""
        if jax.process_count() > 1:  # the other processes know nothing of it, and would have to help
            return
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):  # it broke in the middle of steps
            return
        if self.step:
            self._save()
        error.result = self._result("error")  # type: ignore[attr-defined]
        error.add_note("What there was before it is in `result` of this error, and in checkpoints if there are any.")

    def _save(self) -> None:
        """Write a checkpoint, if there is a place for it."""
        if self.store is not None:
            self.store.save(self.step, self._kept(), self.history.to_arrays(), self.description)

    def _kept(self) -> PyTree:
        best = self._params(self.state.average) if self.best is None else self.best
        return {"train": self.state, "best": best, "keys": self.keys}

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = None if self.store is None else self.store.restore(self._kept(), self.description)
        if found is None:
            return
        _, kept, arrays = found
        self.state, self.keys, self.history = kept["train"], kept["keys"], History.from_arrays(arrays)
        self.best = kept["best"] if self.history.best_score() >= 0 else None


def _copied(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that outlive the state, whose arrays the next steps take over."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, params)


def _is_true(answer: Any) -> bool:
    """Whether it is True, of Python, NumPy or JAX; what else a callback may return says nothing."""
    return isinstance(answer, bool | np.bool_ | jax.Array) and np.asarray(answer).dtype == bool and bool(np.all(answer))
