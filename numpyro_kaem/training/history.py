"""The books of a training run: where it stands, and what it has recorded by step, by epoch and by score."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from numpyro_kaem.training.result import BY_EPOCH, epoch_row


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
        return epoch_row(number, row, records, [score for score in self.scores[-1:] if score[0] == number])

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

    def last_losses(self, number: int) -> np.ndarray:
        """The losses of the last steps."""
        return np.concatenate(self.by_step["loss"])[-number:]

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
