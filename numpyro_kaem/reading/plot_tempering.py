"""Pictures of tempering and of the evidence: what a ladder does, and which model the data are for."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_kaem.checks import check_count
from numpyro_kaem.reading.axes import BLUE, COLOURS, GREY, ORANGE, checked_data, make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = "rates", "integrand"
_MOST_LINES = 30


def plot_ladder(
    posterior: Any,
    *,
    datum: int | None = None,
    panels: Sequence[str] | None = None,
    figsize: Sequence[float | int] | None = None,
    ax: Any = None,
) -> np.ndarray:
    r"""Draw what happens on a ladder of temperatures: the power posteriors p_t(z), between prior and posterior.

    - "rates": how often the kernel's moves are accepted at each rung and, of `ParallelTempering`, swaps of each
      rung with the next.
    - "integrand": the mean of log p(x | z) under p_t against t, a dot for each rung. The area under it is the
      log-evidence. It increases, and so runs through the grey boxes: where they are large, more rungs are needed.

    Thin lines are data, thick ones means over all data, where they have one ladder.

    Args:
        posterior: of a sampler with temperatures, `ParallelTempering` or `TemperedSMC`; or its `rungs`; or, for the
            rates alone, what `fit` returns of a `ThermodynamicMLE` by chains, whose last epoch is drawn.
        datum: the one to draw; None for all of them (of more than 30, for 30 of them).
        panels: what to draw, of "rates" and "integrand"; None for what there is.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes to draw on, one for each panel; None for a new figure.

    Returns:
        The axes, one for each panel.

    Raises:
        ImportError: without Matplotlib.
        TypeError: for what has no rungs.
        ValueError: for a datum or a panel that there is not.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        from numpyro_kaem import Ladder, ParallelTempering, plot_ladder


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        sampler = ParallelTempering(Ladder.power(4), num_steps=100, progress=False)
        posterior = sampler.run(jax.random.key(0), model, {}, jnp.array([0.5, 2.0]))
        rates, integrand = plot_ladder(posterior, datum=1)
        assert rates.get_ylabel() == "acceptance rate"
        ```
    """
    temperatures, acceptance, swaps, integrand = _rungs(posterior)
    there = _PANELS if integrand is not None else _PANELS[:1]
    panels = there if panels is None else tuple(panels)
    if not panels or any(panel not in there for panel in panels):
        raise ValueError(f"panels must be some of {there}, which is what there is to draw, got {panels!r}")
    if datum is not None and check_count("datum", datum, 0) >= len(temperatures):
        raise ValueError(f"datum must be below {len(temperatures)}, the number of data, got {datum}")
    rows = slice(None, None, -(-len(temperatures) // _MOST_LINES)) if datum is None else slice(datum, datum + 1)
    axes = make_axes(len(panels), ax, figsize, len(panels), (4.2, 3.0))
    for at, panel in zip(axes, panels, strict=True):
        if panel == "rates":
            rungs = np.broadcast_to(np.arange(temperatures.shape[1]), temperatures.shape)
            _draw(at, rungs, acceptance, rows, True, color=BLUE, marker="o", label="moves")
            if swaps is not None:
                between = rungs[:, :-1] + 0.5
                _draw(at, between, swaps, rows, True, color=ORANGE, marker="s", label="swaps with the next rung")
            at.set(xlabel="rung, from prior to posterior", ylabel="acceptance rate", ylim=(0.0, 1.05))
            at.xaxis.get_major_locator().set_params(integer=True)
            at.legend(loc="lower right", fontsize=8)
        else:
            one_ladder = np.array_equal(temperatures[rows], np.broadcast_to(temperatures[0], temperatures[rows].shape))
            t, mean = _draw(at, temperatures, integrand, rows, one_ladder, color=BLUE, marker="o")
            if t is not None:
                at.bar(t[:-1], np.diff(mean), np.diff(t), mean[:-1], align="edge", color=GREY, alpha=0.4, zorder=0)
            # A few data that the prior explains badly are no reason to shrink all others.
            if len(integrand[rows]) > 1:
                at.set_ylim(float(np.nanquantile(integrand[rows], 0.01)))
            at.set(xlabel="temperature t", ylabel="mean of log p(x | z) under $p_t$")
        at.spines[["right", "top"]].set_visible(False)
    return axes


def _draw(
    at: Axes, x: np.ndarray, y: np.ndarray, rows: slice, comparable: bool, **style: Any
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """A thin line for each datum, a thick one for their mean over all data where these share their abscissae.

    Returns the thick line; None where there is none.
    """
    x, several = x[rows], len(x[rows]) > 1
    style = {"markersize": 4, **style}
    if several:
        at.plot(x.T, y[rows].T, color=style["color"], linewidth=0.7, alpha=0.4)
    if several and not comparable:
        return None, None
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of rungs that no datum has
        mean = np.nanmean(y if several else y[rows], axis=0)
    at.plot(x[0], mean, linewidth=2.0 if several else 1.2, **style)
    return x[0], mean


def _rungs(posterior: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Temperatures, acceptance, swap rates and integrand, by datum and rung."""
    history = getattr(posterior, "history", posterior)
    if isinstance(history, Mapping) and np.ndim(history.get("temperatures")) == 2:
        last = int(np.diff([0, *history["steps"]])[-1]) if len(history["steps"]) else len(history["temperatures"])
        temperatures, acceptance, swaps = (
            np.asarray(history[name][-last:], float).mean(0, keepdims=True)
            for name in ("temperatures", "acceptance", "swap_acceptance")
        )
        return temperatures, acceptance, np.broadcast_to(swaps[:, None], (1, temperatures.shape[1] - 1)), None
    rungs = getattr(posterior, "rungs", posterior)
    if not hasattr(rungs, "log_likelihood_mean"):
        raise TypeError(
            "posterior must be of a sampler with temperatures, such as ParallelTempering or TemperedSMC, or what `fit` "
            f"returns of ThermodynamicMLE by chains; a {type(posterior).__name__} has no rungs"
        )
    integrand = np.where(np.isfinite(rungs.log_likelihood_mean), rungs.log_likelihood_mean, np.nan)
    drawn = None if np.isnan(integrand).all() else integrand
    return rungs.temperatures, rungs.acceptance, rungs.swap_acceptance, drawn


def plot_evidence(
    evidence: Mapping[Any, Any],
    *,
    baseline: Any = None,
    figsize: Sequence[float | int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the log-evidence of models of the same data, as differences to one of them.

    Differences are paired: means over the data of log p(x | model) - log p(x | baseline), with lines of two standard
    errors of these means, either way, in which the Monte Carlo error of a sampler is contained. Where there is one
    datum, such as of a model with global latents, the errors are those of the samplers.

    Args:
        evidence: by name of the model a `Posterior` of a sampler with an evidence, or an array of log-evidence, or of
            held-out log-likelihood, of every datum. Where all names are numbers, such as numbers of clusters, a curve
            is drawn against them; a dict of several such dicts, by name, is drawn as several curves.
        baseline: name of the model that others are compared with; None for the best. Of several curves, a pair of the
            curve's name and the model's.
        figsize: of a new figure, in inches.
        ax: Matplotlib's axes; None for a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: without Matplotlib.
        ValueError: for fewer than two models, different numbers of data, a posterior without an evidence, and values
            that are not finite.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem import plot_evidence

        score = np.random.default_rng(0).normal(size=100)
        ax = plot_evidence({"one": score, "another": score + 0.5})
        assert [label.get_text() for label in ax.get_yticklabels()] == ["another", "one"]
        ```
    """
    if not isinstance(evidence, Mapping):
        raise TypeError(f"evidence must be a dict, by name of the model, got {type(evidence).__name__}")
    several = bool(evidence) and all(isinstance(one, Mapping) for one in evidence.values())
    curves = evidence if several else {None: evidence}
    scores = {(name, key): _score(key, one) for name, models in curves.items() for key, one in models.items()}
    if len(scores) < 2 or len({len(score[0]) for score in scores.values()}) > 1:
        sizes = {key: len(score[0]) for (_, key), score in scores.items()}
        raise ValueError(f"evidence must be of two models of the same data at least, got numbers of data {sizes}")
    best = max(scores, key=lambda name: scores[name][0].mean())
    base = best if baseline is None else tuple(baseline) if several else (None, baseline)
    if base not in scores:
        known = [name if several else name[1] for name in scores]
        raise ValueError(f"baseline must be one of {known}, got {baseline!r}")
    differences = {name: _difference(score, scores[base], name == base) for name, score in scores.items()}
    called = base[1] if not several else f"{base[0]}, {base[1]}"
    label = f"log-evidence less that of {called}\n({scores[base][0].mean():.4g} nats a datum)"

    if several or all(isinstance(key, numbers.Real) for key in evidence):
        (ax,) = make_axes(1, ax, figsize, 1, (5.0, 3.4))
        for (name, models), colour in zip(curves.items(), cycle(COLOURS), strict=False):
            mean, error = np.transpose([differences[name, key] for key in models])
            ax.errorbar(list(models), mean, 2.0 * error, fmt="o-", color=colour, markersize=4, label=name)
        ax.set_ylabel(label, fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if several:
            ax.legend(fontsize=8)
    else:
        ranked = sorted(evidence, key=lambda key: -differences[None, key][0])
        mean, error = np.transpose([differences[None, key] for key in ranked])
        (ax,) = make_axes(1, ax, figsize, 1, (5.0, 0.4 * len(ranked) + 1.0))
        ax.errorbar(mean, np.arange(len(ranked)), xerr=2.0 * error, fmt="o", color=BLUE, markersize=5)
        ax.set_yticks(np.arange(len(ranked)), [str(key) for key in ranked])
        ax.set_ylim(len(ranked) - 0.5, -0.5)
        ax.set_xlabel(label, fontsize=9)
        ax.axvline(0.0, color=GREY, linewidth=1.0, zorder=0)
    ax.spines[["right", "top"]].set_visible(False)
    return ax


def _score(name: Any, one: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log-evidence of every datum, and the standard errors that the sampler gives, zero where there are none."""
    values = getattr(one, "log_evidence", one)
    if values is None:
        raise ValueError(f"evidence of {name!r} must be of a sampler that estimates it, such as ImportanceSampling")
    values = checked_data(f"evidence of {name!r}", values)
    errors = getattr(one, "log_evidence_std_error", None)
    return values, np.zeros_like(values) if errors is None else np.asarray(errors, float)


def _difference(one: tuple, other: tuple, is_same: bool) -> tuple[float, float]:
    """Mean of the paired differences, and its standard error."""
    if is_same:
        return 0.0, 0.0
    difference, size = one[0] - other[0], len(one[0])
    error = np.hypot(one[1][0], other[1][0]) if size == 1 else difference.std(ddof=1) / size**0.5
    return float(difference.mean()), float(error)
