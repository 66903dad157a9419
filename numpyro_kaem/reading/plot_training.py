"""A picture of training: the loss, held-out scores and all else that a history has, by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_kaem.reading.axes import COLOURS, make_axes
from numpyro_kaem.training.result import NOT_BY_STEP, epoch_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SCORE = "held_out_log_likelihood"
_MOST_STEPS = 2_000
# What is positive and changes by factors.
_BY_FACTORS = {"ess", "step_size"}
_TITLES = {
    "loss": "loss per datum",
    _SCORE: "held-out log-likelihood",
    "ess": "effective sample size",
    "stuck": "share of chains that did not move",
}


def plot_training(
    results: Any,
    *,
    metrics: Sequence[str] | None = None,
    num_columns: int = 3,
    figsize: Sequence[float | int] | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Draw what training has recorded, by epoch: one run, or several to compare.

    Thin lines are steps, thick ones means of epochs, in the middle of them. The held-out score of a single run has a
    band of two standard errors; several runs are scored on the same data, and differ by less.

    Args:
        results: a `FitResult`, a trained `KAEM` or their `history`; or several, by name.
        metrics: what to draw, of the names in `history`: "loss", "held_out_log_likelihood", and the metrics of the
            objective, such as "ess" or "acceptance"; a metric with an element for each rung has a line for each. None
            for all that there are.
        num_columns: of axes in a row of a new figure.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes to draw on, one for each metric; None for a new figure.

    Returns:
        The axes, one for each metric.

    Raises:
        ImportError: without Matplotlib.
        TypeError: for what has no history.
        ValueError: for a model that was not trained, and metrics that no run has.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import ImportanceMLE, fit, plot_training


        def model(x):
            location = numpyro.param("location", jnp.zeros(2))
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([1.0, -2.0]) + jax.random.normal(jax.random.key(0), (400, 2))
        options = {"objective": ImportanceMLE(100), "optimizer": optax.adam(0.05), "progress": False}
        result = fit(jax.random.key(1), model, x, num_epochs=5, batch_size=50, **options)
        axes = plot_training(result)
        assert [ax.get_title() for ax in axes] == ["loss per datum", "effective sample size"]
        ```
    """
    histories = _histories(results)
    there = [name for history in histories.values() for name in _metrics(history)]
    metrics = list(dict.fromkeys(there)) if metrics is None else list(metrics)
    if not metrics or any(metric not in there for metric in metrics):
        raise ValueError(f"metrics must be some of {list(dict.fromkeys(there))}, which were recorded, got {metrics}")
    axes = make_axes(len(metrics), ax, figsize, num_columns, (3.6, 2.7))
    for at, metric in zip(axes, metrics, strict=True):
        ends = []
        for (name, history), colour in zip(histories.items(), cycle(COLOURS), strict=False):
            if metric == _SCORE and metric in _metrics(history):
                _draw_score(at, history, colour, name, with_band=len(histories) == 1)
            elif metric in _metrics(history):
                ends += _draw_steps(at, history, metric, colour, name)
        at.set_title(_TITLES.get(metric, metric.replace("_", " ")), fontsize=10)
        at.set_xlabel("epoch")
        at.spines[["right", "top"]].set_visible(False)
        if metric in _BY_FACTORS:
            at.set_yscale("log")
        elif ends and min(ends) < max(ends):
            margin = 0.05 * (max(ends) - min(ends))
            at.set_ylim(min(ends) - margin, max(ends) + margin)
    if len(histories) > 1:
        axes[0].legend(fontsize=8)
    return axes


def _histories(results: Any) -> dict[str, Mapping[str, np.ndarray]]:
    """Of every run, by its name."""
    named = results if isinstance(results, Mapping) and "loss" not in results else {"": results}
    histories = {str(name): getattr(result, "history", result) for name, result in named.items()}
    for name, history in histories.items():
        if history is None:
            raise ValueError(f"results{name and f' {name!r}'} must be trained, but has no history: call its fit first")
        if not isinstance(history, Mapping) or "loss" not in history:
            raise TypeError(
                "results must be a FitResult, a KAEM, a history of one, or a dict of several by name, got "
                f"{type(named.get(name, results)).__name__}"
            )
    if not histories:
        raise ValueError("results must hold one run at least, got an empty dict")
    return histories


def _metrics(history: Mapping[str, np.ndarray]) -> list[str]:
    """What a history has to draw: records of steps that are not all NaN, and scores."""
    steps = {name for name, values in history.items() if name not in NOT_BY_STEP and np.isfinite(values).any()}
    scores = [_SCORE] if len(history.get("held_out_epoch", ())) else []
    return [*({"loss"} & steps), *scores, *sorted(steps - {"loss"})]


def _draw_score(at: Axes, history: Mapping[str, np.ndarray], colour: str, label: str, with_band: bool) -> None:
    epochs, score, error = (np.asarray(history[name]) for name in ("held_out_epoch", _SCORE, "held_out_std_error"))
    if with_band:
        at.fill_between(epochs, score - 2 * error, score + 2 * error, color=colour, alpha=0.2, linewidth=0)
    at.plot(epochs, score, ".-", color=colour, label=label)


def _draw_steps(at: Axes, history: Mapping[str, np.ndarray], metric: str, colour: str, label: str) -> list[float]:
    """Steps where they lie between the ends of epochs, and means of epochs; returns what is to be seen.

    Single steps, such as the first ones, are no reason to shrink all others.
    """
    steps = np.asarray(history[metric], float)
    elements = [metric] if steps.ndim == 1 else [f"{metric}[{index}]" for index in range(steps.shape[1])]
    rows, steps = epoch_table(dict(history)), np.where(np.isfinite(steps), steps, np.nan).reshape(len(steps), -1)
    ends = [0, *(row["steps"] for row in rows)]
    epochs = np.interp(1 + np.arange(len(steps)), ends, np.arange(len(ends)))
    shown = slice(None, None, -(-len(steps) // _MOST_STEPS))
    means = np.array([[row["epoch_loss" if metric == "loss" else element] for element in elements] for row in rows])
    for number, element in enumerate(elements):
        alpha, name = 1.0 - 0.7 * number / len(elements), label or element
        at.plot(epochs[shown], steps[shown, number], color=colour, alpha=0.3 * alpha, linewidth=0.7)
        at.plot(np.arange(len(rows)) + 0.5, means[:, number], ".-", color=colour, alpha=alpha, ms=4, label=name)
    seen = np.concatenate([np.nanquantile(steps, [0.005, 0.995]), means[np.isfinite(means)]])
    return [float(seen.min()), float(seen.max())]
