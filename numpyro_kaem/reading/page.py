"""What the templates of a report are filled with: findings as words, figures, paths and pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numpyro_kaem.reading.coordinates import ENDS, TOLERANCE, Component, Coordinate, Density
from numpyro_kaem.reading.display import HEIGHT, MARGIN, WIDTH, Display, line
from numpyro_kaem.reading.distrust import Doubt
from numpyro_kaem.reading.findings import Findings
from numpyro_kaem.reading.memorisation import Nearest

_SECTIONS = {
    "distrust": "What to distrust",
    "summary": "Summary",
    "training": "Training",
    "scores": "Scores",
    "samples": "Samples",
    "coordinates": "Coordinates",
    "memorisation": "Nearest training examples",
    "reconstructions": "Reconstructions",
    "origin": "Versions and how to reproduce",
}
_NUM_SAMPLES, _NUM_PAIRS, _NUM_BINS = 48, 12, 40


def content(
    findings: Findings, doubts: Sequence[Doubt], title: str, show: Callable | None, call: str
) -> dict[str, Any]:
    """All that both templates ask for, by name; `call` is the one that writes the report."""
    is_text = np.issubdtype(findings.means.dtype, np.integer)
    display = Display(findings.draws, show, is_text)
    about = findings.about
    return {
        "title": title,
        "lead": f"A Kolmogorov-Arnold energy model of data of shape {about['datum']}. Latents: {about['latents']}. "
        f"Prior: {about['prior']}. Generator: {about['generator']}. Likelihood: {about['likelihood']}. It has "
        f"{about['parameters']} parameters and is {'' if findings.is_trained else 'not '}trained.",
        "use": _use(findings),
        "findings": findings,
        "doubts": doubts,
        "sections": list(_SECTIONS.items()),
        "keys": _keys(findings, doubts),
        "training": _training(findings.history),
        "scores": _scores(findings),
        "samples": _each(display, findings.means[:_NUM_SAMPLES]),
        "what_is_shown": "the most probable categories" if is_text else "the means of their likelihoods",
        "groups": [_group(component, display) for component in findings.components],
        "low": f"{ENDS[0]:.0%}",
        "high": f"{ENDS[1]:.0%}",
        "tolerance": f"{TOLERANCE:.0%}",
        "near": None if findings.nearest is None else _near(findings, findings.nearest, display),
        "reconstructions": _reconstructions(findings, display),
        "code": _code(findings, call),
    }


def for_markdown(text: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", " ".join(str(text).split()))


def _figure(value: float, digits: int = 3) -> str:
    """A number to some digits, as it is read."""
    text = f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return text.replace("-", "\N{MINUS SIGN}") if "e" not in text else text


def _with_error(value: float, error: float) -> str:
    """A share and its standard error, in per cent."""
    return f"{100 * value:.1f} ± {100 * error:.1f} %"


def _each(display: Display, data: np.ndarray) -> list[Any]:
    return [display(data[i : i + 1]) for i in range(len(data))]


def _use(findings: Findings) -> str:
    """For what the model is meant, as far as its parts tell."""
    return (
        "It draws data like those it was trained on, scores how probable data are, and finds their latents. It is of "
        "no use for data of another kind: it gives these a score and latents all the same."
        + ("" if findings.is_trained else " It is not trained, and of no use yet.")
    )


def _keys(findings: Findings, doubts: Sequence[Doubt]) -> list[tuple[str, str]]:
    """The figures at the top."""
    keys = []
    if findings.scores is not None:
        keys.append(("held-out log-likelihood, nats a datum", _pm(findings.scores["log_likelihood"])))
    if findings.train_log_likelihood is not None:
        value, error = findings.train_log_likelihood
        keys.append(("of training data", _pm_of(value, error)))
    if findings.scores is not None:
        keys.append(("reconstruction error", _pm(findings.scores["reconstruction_error"])))
    if findings.components:
        first = findings.components[0].coordinates[0]
        name = f"{first.name}" + (f" of {findings.components[0].name}" if findings.components[0].name else "")
        keys.append(("most effective coordinate", f"{name}: {first.total:.0%}"))
    grave = sum(doubt.is_grave for doubt in doubts)
    keys.append(("to distrust", f"{grave} warnings, {len(doubts) - grave} notes" if doubts else "nothing found"))
    return keys


def _pm(score: Any) -> str:
    """A score as it prints itself, in type."""
    return str(score).replace("+-", "±").replace("-", "\N{MINUS SIGN}")


def _pm_of(value: float, error: float) -> str:
    digits = max(0, 1 - int(np.floor(np.log10(error)))) if error > 0 else 2
    return f"{value:,.{digits}f} ± {error:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _scores(findings: Findings) -> list[tuple[str, str, str]]:
    rows = []
    if findings.scores is not None:
        for name, score in findings.scores.items():
            if hasattr(score, "value"):
                rows.append((name.replace("_", " "), _pm(score), score.what))
    if findings.train_log_likelihood is not None:
        count = min(findings.num_scored, findings.num_train)
        what = f"nats a datum, {count} training data, to compare with held-out ones"
        rows.insert(1 if rows else 0, ("log likelihood of training data", _pm_of(*findings.train_log_likelihood), what))
    return rows


def _plot(lines: dict[str, tuple[np.ndarray, np.ndarray]], **words: str) -> dict[str, Any]:
    """Lines in one box, by name, each of its places and values."""
    values = np.concatenate([value for _, value in lines.values()])
    places = np.concatenate([place for place, _ in lines.values()])
    # The first steps of a training may be far off, and squeeze all that comes after.
    low, high = float(values.min()), float(values.max())
    if high - low > 3.0 * (middle := float(np.quantile(values, 0.9)) - low) > 0:
        high = low + 1.5 * middle
    span, start, width = max(high - low, 1e-12), places.min(), max(np.ptp(places), 1e-12)
    drawn = [
        {"name": name, "path": line((value - low) / span, (place - start) / width)}
        for name, (place, value) in lines.items()
    ]
    return {"lines": drawn, "low": _figure(low, 4), "high": _figure(high, 4), **words}


def _training(history: dict[str, np.ndarray] | None) -> dict[str, Any] | None:
    """Loss and score by epoch."""
    if not history or not len(loss := np.asarray(history["epoch_loss"], float)):
        return None
    epochs = np.arange(1, len(loss) + 1)
    kept = np.isfinite(loss)
    if not kept.any():
        return None
    lines = {"loss": (epochs[kept], loss[kept])}
    scores, at = np.asarray(history["held_out_log_likelihood"], float), np.asarray(history["held_out_epoch"])
    label = (
        f"The loss a datum went from {_figure(loss[kept][0], 4)} to {_figure(loss[kept][-1], 4)} in {len(loss)} epochs."
    )
    if (good := np.isfinite(scores)).any():
        lines["minus the held-out log-likelihood"] = (at[good], -scores[good])
        label += f" The last held-out log-likelihood is {_figure(scores[good][-1], 4)}."
    seconds = float(np.sum(history["seconds"]))
    return _plot(
        lines,
        label=label,
        caption=f"{label} In nats; {int(history['steps'][-1]):,} steps, {seconds:,.0f} seconds.",
        start="epoch 1",
        end=f"epoch {len(loss)}",
    )


def _density(density: Density) -> dict[str, Any]:
    z = density.z
    places = (z - z[0]) / max(float(z[-1] - z[0]), 1e-12)
    top = max(float(density.learned.max()), 0.0 if density.reference is None else float(density.reference.max()))
    return {
        "low": _figure(float(z[0])),
        "high": _figure(float(z[-1])),
        "top": _figure(float(z[np.argmax(density.learned)])),
        "learned": line(density.learned / top, places),
        "reference": None
        if density.reference is None
        else f"{line(density.reference / top, places)}L{WIDTH - MARGIN} {HEIGHT - MARGIN}L{MARGIN} {HEIGHT - MARGIN}Z",
    }


def _coordinate(c: Coordinate, display: Display, identity: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": c.name,
        "total": _with_error(c.total, c.total_error),
        "alone": _with_error(c.first_order, c.first_order_error),
        "percent": f"{100 * min(max(c.total, 0.0), 1.0):.1f}",
        "density": _density(c.density),
        "formula": c.formula,
        "frames": None,
    }
    if c.path is None:
        return shown
    width = max(float(c.density.z[-1] - c.density.z[0]), 1e-12)
    return shown | {
        "id": identity,
        "frames": display(c.path),
        "map": display.heat(c.map, float(c.map.max())),
        "z": [_figure(float(value)) for value in c.z],
        "places": [round(float(MARGIN + (WIDTH - 2 * MARGIN) * (value - c.density.z[0]) / width), 1) for value in c.z],
    }


def _group(component: Component, display: Display) -> dict[str, Any]:
    prefix = f"path{'' if component.index is None else f'-{component.index}'}"
    return {
        "index": component.index,
        "of": f" of {component.name}" if component.name else "",
        "weight": f"{component.weight:.0%}",
        "mean": None if component.mean is None or display.kind == "text" else display(component.mean[None]),
        "samples": _each(display, component.draws),
        "coordinates": [_coordinate(c, display, f"{prefix}-{rank}") for rank, c in enumerate(component.coordinates)],
        "pairs": ", ".join(f"{a} with {b} ({share:.0%} of the variance)" for a, b, share in component.pairs),
    }


def _near(findings: Findings, near: Nearest, display: Display) -> dict[str, Any]:
    pairs = zip(_each(display, findings.means[near.closest]), _each(display, findings.train_nearest), strict=True)
    both = np.concatenate([near.distance, near.other])
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-9), _NUM_BINS + 1)
    middles = 0.5 * (edges[1:] + edges[:-1])
    others = "held-out data" if near.is_held_out else "training data"
    shares = {
        name: (middles, np.histogram(values, edges)[0] / len(values))
        for name, values in (("draws", near.distance), (others, near.other))
    }
    label = (
        f"Distances to the nearest training example: of draws {_figure(float(np.median(near.distance)))} in the "
        f"middle, of {others} {_figure(float(np.median(near.other)))}."
    )
    return {
        "share": _with_error(near.share, near.share_error),
        "copies": _with_error(near.copies, near.copies_error),
        "count": len(near.distance),
        "other": "a held-out datum" if near.is_held_out else "another training datum",
        "others": others,
        "pairs": list(pairs),
        "plot": _plot(
            shares,
            label=label,
            caption=f"{label} Root mean squares of the differences of all numbers of a datum.",
            start=_figure(float(edges[0])),
            end=_figure(float(edges[-1])),
        ),
    }


def _reconstructions(findings: Findings, display: Display) -> dict[str, Any] | None:
    posteriors = findings.posteriors
    if posteriors is None:
        return None
    shown = (_each(display, data[:_NUM_PAIRS]) for data in (posteriors.data, posteriors.reconstructions))
    return {
        "pairs": list(zip(*shown, strict=True)),
        "what": "Held-out data" if findings.num_held_out else "Training data",
        "ess": _figure(float(np.median(posteriors.ess))),
    }


def _code(findings: Findings, call: str) -> str:
    """What writes the report again."""
    implementation, data = findings.origin["key"].split(" ", 1)
    return (
        "import jax, numpy\nfrom numpyro_kaem import KAEM, report\n\n"
        'kaem = KAEM.load("model.kaem")\n'
        f'key = jax.random.wrap_key_data(numpy.uint32({data}), impl="{implementation}")\n'
        f"{call}"
    )
