"""What `fit` returns, raises where a run cannot go on, and has logged after every epoch."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
        stop_reason: "finished", "patience", "callback", "interrupted", "non-finite steps", or "error" for the `result`
            of an error that something else raised, such as a callback or the data.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import ImportanceMLE, fit


        def model(x):
            location = numpyro.param("location", jnp.zeros(2))
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([1.0, -2.0]) + jax.random.normal(jax.random.key(0), (400, 2))
        options = {"objective": ImportanceMLE(100), "optimizer": optax.adam(0.05), "progress": False}
        result = fit(jax.random.key(1), model, x, num_epochs=20, batch_size=50, **options)
        assert result.stop_reason == "finished"
        assert result.history["loss"].shape == (160,) and result.history["epoch_loss"].shape == (20,)
        ```
    """

    params: dict[str, Any]
    history: dict[str, np.ndarray]
    state: SVIState
    guide_params: dict[str, Any]
    best_params: dict[str, Any]
    averaged_params: dict[str, Any] | None = None
    stop_reason: str = "finished"

    @property
    def optimizer_state(self) -> Any:
        """The state of an optimiser of Optax, for `fit(init_optimizer_state=...)`; None of one of NumPyro."""
        kept = self.state.optim_state[1]
        return kept[1] if len(kept) == 2 else None

    def to_pandas(self) -> Any:
        """The history by epoch, as a pandas DataFrame: metrics of steps are means, vectors one column an element.

        An epoch that was broken off is the last row, with means over what there is of it.

        Raises:
            ImportError: if pandas is not installed.
        """
        import pandas as pd

        rows = epoch_table(self.history)
        return pd.DataFrame(rows or {"epoch": []}).set_index("epoch")


class TrainingFailed(RuntimeError):
    """Raised by `fit` when too many steps in a row were not finite, or none at all was finite.

    Attributes:
        result: what there was before them, as `fit` would have returned it.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import ImportanceMLE, TrainingFailed, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Exponential(jnp.exp(z)), obs=x)  # its density is zero at negative x


        x = jax.random.normal(jax.random.key(0), (100,))
        options = {"objective": ImportanceMLE(50), "optimizer": optax.adam(0.1), "progress": False}
        try:
            fit(jax.random.key(1), model, x, num_epochs=3, batch_size=25, **options)
        except TrainingFailed as error:
            assert error.result.params["location"] == 0.0
        ```
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


class TensorBoardLogger:
    """Log the metrics of every epoch for TensorBoard, as a callback of `fit`.

    Needs tensorboardX or clu: `pip install 'numpyro_kaem[tensorboard]'`.

    Args:
        directory: where the event files go.

    Raises:
        ImportError: if neither package is installed.

    Example:
        <!-- not run: it needs the extra `tensorboard` -->
        ```python
        from numpyro_kaem import TensorBoardLogger, fit

        fit(..., callbacks=[TensorBoardLogger("logs")])
        ```
    """

    def __init__(self, directory: str | os.PathLike):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            try:
                from clu.metric_writers import create_default_writer
            except ImportError as error:
                raise ImportError(
                    "TensorBoardLogger needs tensorboardX or clu: pip install 'numpyro_kaem[tensorboard]'"
                ) from error
            writer = create_default_writer(os.fspath(directory))
            self._write = writer.write_scalars
        else:
            writer = SummaryWriter(os.fspath(directory))
            self._write = lambda step, values: [writer.add_scalar(name, value, step) for name, value in values.items()]
        self._flush = writer.flush

    def __call__(self, epoch: int, metrics: dict[str, Any], params: dict[str, Any]) -> None:
        """Write the scalars of an epoch."""
        values = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0 and name != "epoch"}
        self._write(epoch, values)
        self._flush()


BY_EPOCH = ("epoch_loss", "seconds", "non_finite_steps")
_SCORES = ("held_out_log_likelihood", "held_out_std_error")
NOT_BY_STEP = (*BY_EPOCH, "steps", "compile_seconds", "held_out_epoch", *_SCORES)


def epoch_table(history: dict[str, np.ndarray]) -> list[dict[str, float | int]]:
    """One row an epoch, the last of which may be broken off."""
    by_step = {name: values for name, values in history.items() if name not in NOT_BY_STEP}
    scores = zip(*(history[name] for name in ("held_out_epoch", *_SCORES)), strict=True)
    scores = {int(epoch): score for epoch, *score in scores}
    ends, num_steps = history["steps"].tolist(), len(by_step.get("loss", ()))
    rows = []
    for index, first in enumerate([0, *ends]):
        last = ends[index] if index < len(ends) else num_steps
        if first == last:
            break
        records = {name: values[first:last] for name, values in by_step.items()}
        if index < len(ends):
            by_epoch = {name: history[name][index].item() for name in BY_EPOCH}
        else:
            finite = records["loss"][np.isfinite(records["loss"])]
            by_epoch = {"epoch_loss": finite.mean().item() if len(finite) else np.nan}
        rows.append(epoch_row(index + 1, {"steps": last} | by_epoch, records, scores.get(index + 1)))
    return rows


def epoch_row(
    epoch: int, by_epoch: dict[str, float | int], records: dict[str, np.ndarray], score: Sequence[float] | None
) -> dict[str, float | int]:
    """What is known of an epoch: of its end, of its steps (as means), and its held-out score if it has one."""
    row = {"epoch": epoch} | by_epoch
    for name, values in records.items():
        if name != "loss":
            mean = values.mean(0)
            row |= {name: mean.item()} if mean.ndim == 0 else {f"{name}[{i}]": v.item() for i, v in enumerate(mean)}
    return row | dict(zip(_SCORES, map(float, score or (np.nan, np.nan)), strict=True))
