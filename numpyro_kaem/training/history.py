"""The books of a training run: where it stands, what it has recorded by step, epoch and score; what it warns of."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import jax
import numpy as np

from numpyro_kaem.training.result import BY_EPOCH, epoch_row

# An ESS of `ImportanceMLE` below this means that single draws stand for whole posteriors.
_COLLAPSED_ESS = 2.0
# Share of chains that may stand still, and nats that they may be below importance sampling.
_STUCK, _GAP = 0.1, -1.0
# Standard deviation of log p(x | z) of a posterior of a few latents.
_SPREAD = 2.0


@dataclass(eq=False)
class History:
    """What a run has recorded so far; `epoch` is the one at hand, from 1, whose steps have taken `seconds`."""

    epoch: int = 1
    step_in_epoch: int = 0
    seconds: float = 0.0
    by_step: dict[str, list[np.ndarray]] = field(default_factory=dict)  # in chunks
    by_epoch: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*BY_EPOCH, "steps")})
    scores: list[tuple[float, float, float]] = field(default_factory=list)  # epoch, mean, standard error

    def add_steps(self, records: dict[str, np.ndarray], seconds: float) -> int:
        """Take down what some steps have recorded; returns their number."""
        taken = len(records["loss"]) if records else 0
        self.step_in_epoch, self.seconds = self.step_in_epoch + taken, self.seconds + seconds
        for name, values in records.items():
            self.by_step.setdefault(name, []).append(values)
        return taken

    def end_epoch(self) -> dict[str, float | int]:
        """Close the books of the epoch; returns its row of the table."""
        number, records = self.epoch, {name: self.of_epoch(name) for name in self.by_step}
        losses, finite = records["loss"], records.pop("is_finite")
        row = {
            "epoch_loss": float(losses[finite].mean()) if finite.any() else np.nan,
            "seconds": self.seconds,
            "non_finite_steps": int(np.sum(~finite)),
            "steps": self.step_in_epoch + (self.by_epoch["steps"][-1] if number > 1 else 0),
        }
        for name, value in row.items():
            self.by_epoch[name].append(value)
        self.epoch, self.step_in_epoch, self.seconds = number + 1, 0, 0.0
        is_scored = bool(self.scores) and self.scores[-1][0] == number
        return epoch_row(number, row, records, self.scores[-1][1:] if is_scored else None)

    def of_epoch(self, name: str) -> np.ndarray:
        """The records of the steps of the present epoch, which are at the end of those of the run."""
        chunks, size = [], 0
        for values in reversed(self.by_step[name]):
            if size >= self.step_in_epoch:
                break
            chunks, size = [values, *chunks], size + len(values)
        return np.concatenate(chunks)[size - self.step_in_epoch :]

    def best_score(self) -> int:
        """Index of the first of the best scores; -1 while there is none that is finite."""
        scores = [mean if np.isfinite(mean) else -np.inf for _, mean, _ in self.scores]
        return int(np.argmax(scores)) if np.isfinite(scores).any() else -1

    def scores_since_best(self) -> int:
        """How many scores there were since the best one."""
        return len(self.scores) - 1 - self.best_score()

    def has_good_steps(self) -> bool:
        """Whether any step was taken that was not skipped; without steps nothing is wrong."""
        finite = self.by_step.get("is_finite", [])
        return not finite or any(values.any() for values in finite)

    def postfix(self) -> str:
        """What a progress bar shows: of the last whole epoch, or of the last steps in one that is under way."""
        loss = self.by_step["loss"][-1].mean() if self.by_step and len(self.by_step["loss"][-1]) else np.nan
        if self.by_epoch["epoch_loss"] and not self.step_in_epoch:
            loss = self.by_epoch["epoch_loss"][-1]
        text = f"loss {loss:.5g}"
        if self.scores:
            text += f", held-out {self.scores[-1][1]:.5g} ± {self.scores[-1][2]:.2g}"
        if self.by_epoch["seconds"]:
            text += f", {self.by_epoch['seconds'][-1]:.2g} s/epoch"
        return text

    def for_result(self, compile_seconds: float) -> dict[str, np.ndarray]:
        """The history of a `FitResult`."""
        by_step = {name: np.concatenate(values) for name, values in self.by_step.items() if name != "is_finite"}
        by_epoch = {name: np.array(values) for name, values in self.by_epoch.items()}
        scores = np.array(self.scores, float).reshape(-1, 3)
        whole_run = {
            "held_out_epoch": scores[:, 0].astype(int),
            "held_out_log_likelihood": scores[:, 1],
            "held_out_std_error": scores[:, 2],
            "compile_seconds": np.array(compile_seconds),
        }
        return by_step | by_epoch | whole_run

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a checkpoint."""
        arrays = {f"step/{name}": np.concatenate(values) for name, values in self.by_step.items()}
        arrays |= {f"epoch/{name}": np.array(values, float) for name, values in self.by_epoch.items()}
        arrays["scores"] = np.array(self.scores, float).reshape(-1, 3)
        arrays["position"] = np.array([self.epoch, self.step_in_epoch, self.seconds])
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> History:
        """What `to_arrays` has made arrays of."""
        epoch, step_in_epoch, seconds = arrays["position"].tolist()
        history = cls(int(epoch), int(step_in_epoch), seconds)
        for name, values in arrays.items():
            kind, _, key = name.partition("/")
            if kind == "step":
                history.by_step[key] = [values]
            elif kind == "epoch":
                whole = key in ("steps", "non_finite_steps")
                history.by_epoch[key] = [int(value) if whole else value for value in values.tolist()]
        history.scores = [tuple(score) for score in arrays["scores"].tolist()]
        return history


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
