"""First calls, of which compilation is most, against NumPyro's NUTS: eight schools, each call in a process of its own.

Samplers and NUTS take turns, so that a machine that others use serves all alike. Printed are medians over the rounds:
wall-clock and CPU seconds of the first call, the ratio of the CPU seconds to those of NUTS, what JAX says of them
(seconds of tracing and lowering, of XLA, and programs compiled), the seconds of the second call, and the largest
programs.

Run with `python -m benchmarks.first_calls`; it takes some minutes. `python -m benchmarks.first_calls TemperedSMC` is
one call.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from benchmarks.timing import print_device, print_rows
from numpyro_kaem import ImportanceSampling, Ladder, Langevin, ParallelTempering, TemperedSMC

ROUNDS = 3


def eight_schools(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 10.0), obs=y)


def nuts(key, y):
    mcmc = MCMC(NUTS(eight_schools), num_warmup=1000, num_samples=1000, progress_bar=False)
    mcmc.run(key, y)
    return mcmc.get_samples()


def sampler(make):
    return lambda key, y: make().run(key, eight_schools, {}, y)


CALLS = {
    "NUTS": nuts,
    "TemperedSMC": sampler(lambda: TemperedSMC(progress=False)),
    "Langevin": sampler(lambda: Langevin(progress=False)),
    "ParallelTempering": sampler(lambda: ParallelTempering(Ladder.power(4), progress=False)),
    "ImportanceSampling": sampler(lambda: ImportanceSampling(1000)),
    "to_arviz": None,
}


def measure(name: str) -> dict:
    """Seconds of the first and the second call in this process, and what JAX did in the first."""
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    call = CALLS[name]
    if name == "to_arviz":
        posterior = CALLS["ImportanceSampling"](jax.random.key(2), y)

        def call(key, y):
            return posterior.to_arviz()

    import blackjax  # noqa: F401  # samplers import it when they are first run

    programs, stages = defaultdict(float), defaultdict(float)
    counting = True

    def note(event: str, seconds: float, **kwargs) -> None:
        stage = event.rsplit("/", 1)[-1].removesuffix("_duration")
        if counting and stage in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile"):
            stages["xla" if stage == "backend_compile" else "python"] += seconds
            stages["programs"] += stage == "backend_compile"
            programs[str(kwargs.get("fun_name")).removeprefix("jit(").removesuffix(")")] += seconds

    jax.monitoring.register_event_duration_secs_listener(note)
    keys = [jax.random.key(seed) for seed in range(2)]
    result = {}
    for which, key in zip(("first", "second"), keys, strict=True):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(jax.tree.leaves(call(key, y)))
        result[f"{which}_wall"], result[f"{which}_cpu"] = time.perf_counter() - wall, time.process_time() - cpu
        counting = False
    largest = sorted(programs, key=programs.get, reverse=True)[:3]
    return {**result, **stages, "largest": ", ".join(f"{name} {programs[name]:.2f}" for name in largest)}


def main():
    results = {name: [] for name in CALLS}
    for _ in range(ROUNDS):
        for name in CALLS:
            command = [sys.executable, "-m", "benchmarks.first_calls", name]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name].append(json.loads(printed.splitlines()[-1]))

    def median(name: str, quantity: str) -> float:
        return float(np.median([result[quantity] for result in results[name]]))

    rows = []
    for name, runs in results.items():
        ratios = [run["first_cpu"] / base["first_cpu"] for run, base in zip(runs, results["NUTS"], strict=True)]
        quantities = ("first_wall", "first_cpu", "python", "xla")
        rows.append(
            (
                name,
                *(f"{median(name, quantity):.2f}" for quantity in quantities),
                f"{median(name, 'programs'):.0f}",
                f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{median(name, 'second_wall'):.2f}",
                runs[0]["largest"],
            )
        )
    header = (
        "call",
        "wall s",
        "CPU s",
        "Python s",
        "XLA s",
        "programs",
        "CPU / NUTS",
        "second s",
        "largest programs, s",
    )
    print_rows("First calls, eight schools", header, rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        print_device()
        main()
