"""All runs of the table: a job is a contestant on a data set, in a process of its own on a core of its own.

A job tries out its settings, takes the one with the best validation score, trains with it from each seed and scores
what comes out. What is done is written at once, and is not done again: a run that is broken off goes on.
"""

import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue


@dataclass(frozen=True)
class Effort:
    """How much is spent: seconds of a core for each training, and how many there are."""

    seconds: float
    trial_seconds: float
    num_trials: int
    num_seeds: int
    num_scored: int
    tasks: tuple[str, ...]

    @property
    def told(self) -> dict:
        """As a job's file has it."""
        return asdict(self) | {"tasks": list(self.tasks)}


FULL = Effort(20.0, 6.0, 2, 3, 160, ("digits", "colour digits", "patches", "darcy", "words"))
QUICK = Effort(4.0, 0.0, 0, 1, 32, ("digits",))


def contestants() -> dict:
    """All contestants by name, in the order of the table."""
    from benchmarks.peers.ddpm import DDPM
    from benchmarks.peers.flow_prior import FLOW_VAE
    from benchmarks.peers.kaem_contestants import KAEMS
    from benchmarks.peers.latent_ebm import LATENT_EBM
    from benchmarks.peers.mixture_prior import MIXTURE_VAE
    from benchmarks.peers.vae import IWAE, VAE

    return {one.name: one for one in (VAE, IWAE, MIXTURE_VAE, FLOW_VAE, LATENT_EBM, *KAEMS, DDPM)}


def path_of(folder: Path, task: str, contestant: str) -> Path:
    """The file of a job."""
    return folder / task.replace(" ", "-") / f"{contestant.replace(',', '').replace(' ', '-')}.json"


def run_job(folder: Path, task_name: str, name: str, effort: Effort) -> None:
    """Do what is not done of a job."""
    from benchmarks.peers import ddpm, training
    from benchmarks.peers.scoring import score
    from benchmarks.peers.tasks import task
    from numpyro_kaem import TrainingFailed

    contestant, data, path = contestants()[name], task(task_name), path_of(folder, task_name, name)
    job = json.loads(path.read_text()) if path.exists() else {}
    if job.get("effort") != effort.told:
        job = {"effort": effort.told, "task": task_name, "contestant": name, "trials": [], "runs": [], "clocks": {}}

    def train(number: int, seed: int, budget: float):
        setting = contestant.settings[number]
        if contestant.objectives is None:
            return ddpm.train(data, setting, seed, budget, training.NUM_SCORES, training.NUM_SCORED)
        clock = {int(stage): seconds for stage, seconds in job["clocks"].get(str(number), {}).items()}
        trained = training.train(contestant, data, setting, seed, budget, clock)
        job["clocks"][str(number)] = clock
        return trained

    def keep(kind: str, row: dict, trained, start: float) -> None:
        row |= {"scores": trained.scores, "seconds": trained.seconds, "num_epochs": trained.num_epochs}
        row["wall_seconds"] = round(time.perf_counter() - start, 1)
        job[kind].append(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(job))
        partial.replace(path)
        print(f"{task_name}: {name}: {kind[:-1]} {len(job[kind])}: {max(trained.scores):.2f}", flush=True)

    for number in range(len(job["trials"]), effort.num_trials):
        start = time.perf_counter()
        try:
            trained = train(number, 0, effort.trial_seconds)
        except TrainingFailed:  # a setting with which training diverges is not taken
            trained = training.Trained(None, [-math.inf], [effort.trial_seconds], 0)
        keep("trials", {"setting": asdict(contestant.settings[number])}, trained, start)
    best = max(range(len(job["trials"])), key=lambda number: max(job["trials"][number]["scores"]), default=0)
    for seed in range(1 + len(job["runs"]), 1 + effort.num_seeds):
        start = time.perf_counter()
        trained = train(best, seed, effort.seconds)
        row = score(trained.model, data, effort.num_scored)
        if seed > 1:
            del row["drawn"]  # draws of one seed are looked at
        keep("runs", {"seed": seed, "setting": best, **row}, trained, start)
        if contestant.objectives is not None:  # for scores that are thought of later
            trained.model.save(path.with_suffix(f".{seed}.kaem"))


def is_done(folder: Path, task: str, name: str, effort: Effort) -> bool:
    """Whether nothing of a job is left to do."""
    path = path_of(folder, task, name)
    job = json.loads(path.read_text()) if path.exists() else {}
    return job.get("effort") == effort.told and len(job["runs"]) == effort.num_seeds


def run_all(folder: Path, effort: Effort, arguments: list[str], only: list[str] | None = None) -> list[str]:
    """Run the jobs that are not done, one on each core. What fails is returned, and the others go on."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * os.cpu_count()
    free: Queue = Queue()
    for core in cores:
        free.put(core)
    jobs = [(task, name) for task in effort.tasks for name in contestants() if not only or name in only]
    jobs = [job for job in jobs if not is_done(folder, *job, effort)]
    begun, failed = time.perf_counter(), []

    def run(job: tuple[str, str]) -> bool:
        core = free.get()
        try:
            command = [sys.executable, "-m", "benchmarks.peers", *arguments, "--job", *job]
            pin = None if core is None else (lambda: os.sched_setaffinity(0, {core}))
            process = subprocess.run(command, preexec_fn=pin, check=False)
            return process.returncode == 0
        finally:
            free.put(core)

    pool = ThreadPoolExecutor(len(cores))
    try:
        for number, (job, went_well) in enumerate(zip(jobs, pool.map(run, jobs), strict=True), 1):
            minutes, text = (time.perf_counter() - begun) / 60, ", ".join(job)
            if not went_well:
                failed.append(text)
            print(f"[{minutes:5.1f} min] {number} of {len(jobs)}: {text}{'' if went_well else ': FAILED'}", flush=True)
    finally:  # after Ctrl-C, too, nothing new begins
        pool.shutdown(cancel_futures=True)
    return failed
