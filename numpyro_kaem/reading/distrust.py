"""What of a report to distrust: rules, each a statement about what was found that has a figure and a cure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from numpyro_kaem.reading.findings import Findings

# Standard errors beyond which a difference is told.
_ERRORS = 4.0
# Nine in ten posteriors should have more effective draws, and the cheap scores more.
_MIN_ESS, _MIN_CHEAP_ESS = 20.0, 100.0
# Data below which figures of them say little.
_FEW_TRAIN, _FEW_HELD_OUT, _FEW_SCORED = 200, 100, 20
# Share of the prior's spread above which a posterior is the prior, and of the variance that is told one by one.
_AS_PRIOR, _ADDITIVE = 0.9, 0.5
# How far beyond what is expected of draws that copy nothing, apart from its error.
_MOST_SHARE, _MOST_COPIES = 0.6, 0.15


@dataclass(frozen=True)
class Doubt:
    """A reason for distrust.

    Attributes:
        title: in a few words.
        text: what was found, and what would help.
        is_grave: whether what the model is used for is likely to be wrong; else a limit of what is known of it.
    """

    title: str
    text: str
    is_grave: bool = True


def doubts(findings: Findings) -> tuple[Doubt, ...]:
    """All that apply, the grave ones first."""
    rules = (_training, _overfit, _memorised, _coordinates, _posteriors, _scores, _data)
    found = [doubt for rule in rules for doubt in rule(findings)]
    return tuple(sorted(found, key=lambda doubt: not doubt.is_grave))


def _training(findings: Findings) -> Iterator[Doubt]:
    if not findings.is_trained:
        yield Doubt(
            "Not trained",
            "All parameters have their initial values: what is drawn is noise, and what coordinates do is chance. "
            "Train it by kaem = kaem.fit(key, x).",
        )
    history = findings.history or {}
    skipped = int(np.sum(history.get("non_finite_steps", 0)))
    if skipped:
        yield Doubt(
            "Steps that were not finite",
            f"{skipped:,} steps of the training had a loss or parameters that were infinite or NaN, and were skipped. "
            "A smaller learning rate, or gradients that are clipped, would help.",
        )
    scores, errors = (np.asarray(history.get(f"held_out_{name}", ())) for name in ("log_likelihood", "std_error"))
    if len(scores) and np.isfinite(scores).any():
        best = int(np.nanargmax(scores))
        if scores[best] - scores[-1] > 2.0 * max(errors[best], errors[-1]):
            yield Doubt(
                "Trained for too long",
                f"The held-out score was best after epoch {int(history['held_out_epoch'][best])}, at "
                f"{scores[best]:,.1f}, and {scores[-1]:,.1f} at the end. fit(patience=...) keeps the best parameters.",
            )


def _overfit(findings: Findings) -> Iterator[Doubt]:
    if findings.scores is None or findings.train_log_likelihood is None:
        return
    score, (train, train_error) = findings.scores["log_likelihood"], findings.train_log_likelihood
    gap, error = train - score.value, float(np.hypot(train_error, score.std_error))
    if gap > _ERRORS * error:
        yield Doubt(
            "Overfit",
            f"Training data have {gap:,.1f} +- {error:,.1f} nats a datum more than held-out data. More data, a smaller "
            "generator, or fewer epochs would help; figures of training data say nothing about new ones.",
        )


def _memorised(findings: Findings) -> Iterator[Doubt]:
    near = findings.nearest
    if near is None:
        return
    is_near = near.share > max(_MOST_SHARE, 0.5 + _ERRORS * near.share_error)
    has_copies = near.copies > max(_MOST_COPIES, 0.05 + _ERRORS * near.copies_error)
    if is_near or has_copies:
        yield Doubt(
            "Draws copy training data",
            f"In {near.share:.0%} of pairs a draw is nearer to a training example than other data are (50 % are "
            f"expected), and {near.copies:.0%} of draws are nearer than all but 5 % of other data (5 % are expected). "
            "Do not publish draws of private data; more data or a smaller generator would help.",
        )


def _coordinates(findings: Findings) -> Iterator[Doubt]:
    dead = {
        component.name: [c.name for c in component.coordinates if c.is_without_effect]
        for component in findings.components
    }
    if any(dead.values()):
        where = "; ".join(", ".join(names) + (f" in {name}" if name else "") for name, names in dead.items() if names)
        yield Doubt(
            "Coordinates without effect",
            f"{where}: the output does not depend on them, within the error. A smaller latent_size would do as well.",
            is_grave=False,
        )
    posteriors = findings.posteriors
    same = [name for name, spread in posteriors.spread.items() if spread > _AS_PRIOR] if posteriors else []
    if same:
        yield Doubt(
            "Posteriors that are the prior",
            f"{', '.join(same)}: data say nothing about them, {_AS_PRIOR:.0%} or more of the prior's spread is left. "
            "Their densities have learned nothing from data.",
            is_grave=len(same) == len(posteriors.spread),
        )
    # Of components by their proportions.
    additive = sum(component.weight * component.additive for component in findings.components)
    if findings.components and additive < _ADDITIVE:
        yield Doubt(
            "Coordinates act together",
            f"One by one they explain {max(additive, 0.0):.0%} of the variance: what a slider does depends on where "
            "the others are. The paths here are those through the medians.",
            is_grave=False,
        )


def _posteriors(findings: Findings) -> Iterator[Doubt]:
    posteriors = findings.posteriors
    if posteriors is not None and (low := float(np.quantile(posteriors.ess, 0.1))) < _MIN_ESS:
        yield Doubt(
            "Few effective draws from posteriors",
            f"One in ten of {len(posteriors.ess)} posteriors has an effective sample size below {low:.1f}, of "
            f"{posteriors.num_particles:,} draws by {posteriors.sampler}: their reconstructions and spreads are noisy. "
            "A sampler with more particles, sampler=TemperedSMC(num_particles=...), would help.",
        )
    if findings.scores is not None:
        ess = findings.scores["effective_sample_size"].value
        if ess < _MIN_CHEAP_ESS:
            yield Doubt(
                "Importance sampling does not reach",
                f"Its effective sample size is {ess:.1f} for the median datum, and its scores differ from those here "
                f"by {findings.scores['importance_gap']} nats. Score and infer by TemperedSMC.",
                is_grave=False,
            )


def _scores(findings: Findings) -> Iterator[Doubt]:
    if findings.scores is not None and findings.scores["num_data"] < _FEW_SCORED:
        yield Doubt(
            "Few data were scored",
            f"The scores are of {findings.scores['num_data']} held-out data: see their errors. num_scored=... is more.",
            is_grave=False,
        )


def _data(findings: Findings) -> Iterator[Doubt]:
    for name, number, least in (
        ("x", findings.num_train, _FEW_TRAIN),
        ("held_out", findings.num_held_out, _FEW_HELD_OUT),
    ):
        what = "training" if name == "x" else "held-out"
        if number is None:
            says = (
                "draws copy them, or the model overfits" if name == "x" else "the model is good for data it never saw"
            )
            yield Doubt(f"No {what} data", f"Whether {says} is not examined: hand in {name}=...", is_grave=False)
        elif number < least:
            yield Doubt(
                f"Few {what} data",
                f"There are {number}: with fewer than {least} what is said of them may be chance.",
                is_grave=False,
            )
