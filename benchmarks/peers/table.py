"""What the runs say: one table for each data set, and the draws side by side."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.peers.runs import Effort, contestants, path_of

HEADER = (
    "model",
    "log-likelihood",
    "behind the best of ours",
    "importance gap",
    "Fréchet distance",
    "kernel distance, x 1,000",
    "nearer to training data",
    "draws a second",
    "s to VAE's score",
    "parameters",
    "prior",
)


def read_jobs(folder: Path, effort: Effort, task: str) -> dict[str, dict]:
    """The jobs of a data set that have runs from all seeds, by contestant."""
    paths = {name: path_of(folder, task, name) for name in contestants()}
    jobs = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    return {
        name: job for name, job in jobs.items() if job["effort"] == effort.told and len(job["runs"]) == effort.num_seeds
    }


def likelihoods(job: dict) -> np.ndarray:
    """Log-likelihoods by seed and datum."""
    return np.array([run["log_likelihood"] for run in job["runs"]])


def difference(job: dict, other: dict) -> tuple[float, float]:
    """Mean difference of log-likelihoods and its standard error: of the data, paired, and of the seeds."""
    a, b = likelihoods(job), likelihoods(other)
    of_data = a.mean(0) - b.mean(0)
    variance = of_data.var(ddof=1) / len(of_data)
    for values in (a, b):
        if len(values) > 1:
            variance += values.mean(1).var(ddof=1) / len(values)
    return float(of_data.mean()), math.sqrt(variance)


def best_of_ours(jobs: dict[str, dict]) -> str | None:
    """The KAEM of the best log-likelihood."""
    ours = [name for name in jobs if contestants()[name].is_ours]
    return max(ours, key=lambda name: likelihoods(jobs[name]).mean(), default=None)


def rows_of(jobs: dict[str, dict]) -> list[tuple[str, ...]]:
    """A row for each contestant, those of the best log-likelihood first."""
    best = best_of_ours(jobs)
    goal = np.mean([max(run["scores"]) for run in jobs["VAE"]["runs"]]) if "VAE" in jobs else math.inf
    rows = []
    for name in sorted(jobs, key=lambda name: -likelihoods(jobs[name]).mean()):
        job, contestant = jobs[name], contestants()[name]
        runs = job["runs"]
        is_bound = contestant.objectives is None
        values = likelihoods(job).mean(1)
        error = likelihoods(job).mean(0).std(ddof=1) / math.sqrt(likelihoods(job).shape[1])
        behind = "" if best is None or name == best else plus_minus(*difference(jobs[best], job))
        gaps = [np.mean(run["importance_gap"]) for run in runs if run["importance_gap"] is not None]
        reached = np.median([seconds_to(run, goal) for run in runs])
        rows.append(
            (
                name,
                ("> " if is_bound else "") + plus_minus(float(values.mean()), float(error)),
                behind,
                f"{np.mean(gaps):.1f}" if gaps else "",
                of_seeds([run["frechet"] for run in runs]),
                of_seeds([[1e3 * value for value in run["kernel"]] for run in runs]),
                of_seeds([run["nearer"] for run in runs]),
                f"{rounded(np.median([run['draws_per_second'] for run in runs])):,}",
                f"{reached:.0f}" if math.isfinite(reached) else "never",
                f"{runs[0]['num_parameters']:,}",
                "readable" if contestant.is_ours else ("none" if is_bound else ""),
            )
        )
    return rows


def seconds_to(run: dict, goal: float) -> float:
    """Seconds of training until a validation score, between scores along a line; infinite for never."""
    before = (0.0, -math.inf)
    for seconds, score in zip(run["seconds"], run["scores"], strict=True):
        if score >= goal:
            share = 1.0 if before[1] == -math.inf else (goal - before[1]) / (score - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, score)
    return math.inf


def of_seeds(values: list) -> str:
    """Mean of (value, own error) of each seed, with the error by seeds and within."""
    value, own = np.array(values, float).T
    among = value.std(ddof=1) / math.sqrt(len(value)) if len(value) > 1 else 0.0
    return plus_minus(float(value.mean()), math.hypot(among, float(np.sqrt(np.mean(own**2) / len(own)))))


def plus_minus(value: float, error: float) -> str:
    """A value and its error, to the second digit of the error."""
    if not math.isfinite(error) or error == 0:
        return f"{value:.2f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def rounded(value: float) -> int:
    """To two digits."""
    return int(round(value, 1 - math.floor(math.log10(value)))) if value > 0 else 0


def to_markdown(jobs: dict[str, dict]) -> str:
    """The table of a data set."""
    lines = ["| " + " | ".join(HEADER) + " |", "| --- |" + " ---: |" * (len(HEADER) - 2) + " --- |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows_of(jobs)])


def device() -> str:
    """The machine, and the versions of what the figures depend on."""
    packages = ("jax", "numpyro", "equinox", "flowjax", "optax", "blackjax")
    return f"{platform.machine()}, Python {platform.python_version()}, " + ", ".join(
        f"{package} {version(package)}" for package in packages
    )


def print_all(folder: Path, effort: Effort) -> None:
    """Print the settings and the tables, and draw what each model draws."""
    print(f"One core for each model: {device()}")
    trials = f"{effort.num_trials} trials of {effort.trial_seconds:g} s" if effort.num_trials else "no trials"
    seeds = ", ".join(str(seed) for seed in range(1, 1 + effort.num_seeds))
    print(f"{effort.seconds:g} s of training from seeds {seeds}, {trials}, {effort.num_scored} held-out data scored")
    for task in effort.tasks:
        jobs = read_jobs(folder, effort, task)
        if jobs:
            print(f"\n## {task}\n\n{to_markdown(jobs)}\n")
            if missing := [name for name in contestants() if name not in jobs]:
                print(f"Not run from all seeds: {'; '.join(missing)}.\n")
            draw_samples(folder / f"{task.replace(' ', '-')}.png", task, jobs)


def draw_samples(path: Path, name: str, jobs: dict[str, dict]) -> None:
    """Draws of every model in rows, under as many held-out data."""
    import matplotlib.pyplot as plt

    from benchmarks.peers.tasks import task

    data = task(name)
    drawn = {one: np.array(job["runs"][0]["drawn"]) for one, job in jobs.items() if "drawn" in job["runs"][0]}
    rows = {"held-out data": data.test[:10]} | drawn
    figure, grid = plt.subplots(
        len(rows), 10, figsize=(9, 0.62 * len(rows)), squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05}
    )
    for line, (label, values) in zip(grid, rows.items(), strict=True):
        for axis, value in zip(line, values, strict=False):
            axis.axis("off")
            if data.image_shape is None:
                text = "".join(chr(96 + int(token)) for token in value if token)
                axis.text(0.5, 0.5, text, fontsize=7, ha="center", va="center")
                continue
            image = np.asarray(value, float).reshape(data.image_shape)
            if data.likelihood == "8-bit":
                image = image.astype(int)
            elif image.ndim == 3:
                image = np.concatenate([image[..., 0], image[..., 1] - 2], axis=1)
            scale = (
                {"cmap": "gray"} if data.likelihood == "bernoulli" else {"cmap": "cividis", "vmin": -2.5, "vmax": 2.5}
            )
            axis.imshow(image, **scale)
        line[0].text(-0.1, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
