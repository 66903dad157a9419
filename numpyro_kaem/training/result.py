"""What `fit` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpyro.infer.svi import SVIState


@dataclass(frozen=True, eq=False)
class FitResult:
    """What `fit` returns.

    Attributes:
        params: constrained values of the model's parameter and mutable sites after the last step, as `LatentModel`,
            the samplers and `numpyro.infer.Predictive` take them.
        history: NumPy arrays. By step: `loss`, divided by the number of data, and the objective's metrics. By epoch:
            `epoch_loss` (mean over its steps that were taken), `steps` (steps since the start), `seconds` (without
            compilation) and `non_finite_steps` (how many were skipped because their loss, or the parameters or the
            optimiser after them, were infinite or NaN). By held-out score: `held_out_epoch` (1 is the first),
            `held_out_log_likelihood` (mean over data) and `held_out_std_error` (of that mean, from the spread between
            data). And `compile_seconds`.
        state: NumPyro's SVIState, with the optimiser's state and the chains.
        guide_params: constrained values of the guide's parameters.
        best_params: model parameters with the best held-out score; those of `params` where nothing was held out.
        averaged_params: exponential moving averages of the model's parameters; None without `ema_decay`.
        stop_reason: "finished", "patience", "callback", "interrupted" or "non-finite steps".
    """

    params: dict[str, Any]
    history: dict[str, np.ndarray]
    state: SVIState
    guide_params: dict[str, Any]
    best_params: dict[str, Any]
    averaged_params: dict[str, Any] | None = None
    stop_reason: str = "finished"

    def to_pandas(self) -> Any:
        """The history by epoch, as a pandas DataFrame: metrics of steps are means, vectors one column an element.

        Raises:
            ImportError: if pandas is not installed.
        """
        import pandas as pd

        rows = epoch_table(self.history)
        return pd.DataFrame(rows).set_index("epoch")


BY_EPOCH = ("epoch_loss", "seconds", "non_finite_steps")
NOT_BY_STEP = (*BY_EPOCH, "steps", "compile_seconds", "held_out_epoch", "held_out_log_likelihood", "held_out_std_error")


def epoch_table(history: dict[str, np.ndarray]) -> list[dict[str, float | int]]:
    """One row an epoch."""
    rows = []
    ends = history["steps"]
    for index, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        row = {"epoch": index + 1, "steps": int(last)} | {name: history[name][index].item() for name in BY_EPOCH}
        for name, values in history.items():
            if name in NOT_BY_STEP or name == "loss":
                continue
            mean = values[first:last].mean(0)
            row |= {name: mean.item()} if mean.ndim == 0 else {f"{name}[{i}]": v.item() for i, v in enumerate(mean)}
        scored = np.flatnonzero(history["held_out_epoch"] == index + 1)
        for name in ("held_out_log_likelihood", "held_out_std_error"):
            row[name] = history[name][scored[0]].item() if len(scored) else np.nan
        rows.append(row)
    return rows
