"""What a training step costs each device of a mesh, against the number of data, latents, rungs and devices.

Forced host devices share the cores of one machine, so that no wall time can fall by them. What is read off instead is
the program that XLA compiles for one device: its floating-point operations, its memory, and the bytes that it exchanges
with the others. A loop's body is counted once, so operations are those of one move of the chains and of the gradients.
"""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI

from benchmarks.timing import print_rows
from numpyro_kaem import (
    MALA,
    MLP,
    BSpline,
    ImportanceMLE,
    KAPrior,
    Ladder,
    LangevinMLE,
    ThermodynamicMLE,
    UnivariateEnergy,
)
from numpyro_kaem._numerics.sharding import spreading

FLAG = "--xla_force_host_platform_device_count=8"
PIXELS, HIDDEN, DRAWS = 784, 128, 512
COLLECTIVE = re.compile(r"= ([^=]*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\(")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "bf16": 2, "pred": 1}


def main() -> None:
    """Print the table, in a process of its own that has eight devices."""
    environment = os.environ | {"XLA_FLAGS": f"{FLAG} --xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-m", "benchmarks.devices"], env=environment, check=True)


def measure() -> None:
    """Compile the steps and print what they cost."""
    step = MALA(step_size=0.01)
    by_rungs = {rungs: ThermodynamicMLE(Ladder.power(rungs - 1), step, num_steps=20) for rungs in (6, 12)}
    thermodynamic, langevin, importance = by_rungs[6], LangevinMLE(step, num_steps=20), ImportanceMLE(DRAWS)
    cases = [("ThermodynamicMLE, 6 rungs", thermodynamic, 256, 16, devices) for devices in (1, 2, 4, 8)]
    cases += [
        ("ThermodynamicMLE, 6 rungs", thermodynamic, 1024, 16, 8),
        ("ThermodynamicMLE, 6 rungs", thermodynamic, 256, 64, 8),
        ("ThermodynamicMLE, 12 rungs", by_rungs[12], 256, 16, 8),
        *(("LangevinMLE", langevin, 256, 16, devices) for devices in (1, 8)),
        *((f"ImportanceMLE, {DRAWS} draws", importance, 256, 16, devices) for devices in (1, 8)),
    ]
    rows = []
    for name, objective, batch_size, latents, devices in cases:
        compiled = compile_step(objective, batch_size, latents, devices)
        memory = compiled.memory_analysis()
        rows.append(
            (
                name,
                f"{batch_size:,}",
                f"{latents}",
                f"{devices}",
                f"{compiled.cost_analysis()['flops'] / 1e6:,.0f}",
                f"{memory.temp_size_in_bytes / 1e6:,.1f}",
                f"{exchanged(compiled.as_text()) / 1e6:,.2f}",
            )
        )
    title = f"A training step for each device, MLP latents-{HIDDEN}-{PIXELS}, batches divided"
    header = ("objective", "batch", "latents", "devices", "Mflop", "working memory, MB", "exchanged, MB")
    print_rows(title, header, rows)


def compile_step(objective, batch_size: int, latents: int, devices: int):
    """The step of NumPyro's SVI, its batch divided among devices and its state on all of them."""
    energy = UnivariateEnergy.init(jax.random.key(0), (latents,), basis=BSpline(20, 3, (-3.0, 3.0)))
    decoder = MLP(jax.random.key(1), latents, PIXELS, hidden_sizes=(HIDDEN,))

    def model(x):
        f, g = eqx_module("energy", energy), eqx_module("decoder", decoder)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", KAPrior(f, dist.Normal(0.0, 1.0)).to_event(1))
            numpyro.sample("x", dist.Normal(g(z), 0.3).to_event(1), obs=x)

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    svi = SVI(model, lambda *args: None, optax.adam(1e-3), objective)
    x = jnp.zeros((batch_size, PIXELS))
    state = jax.device_put(svi.init(jax.random.key(2), x), NamedSharding(mesh, PartitionSpec()))
    by_datum = NamedSharding(mesh, PartitionSpec("data"))

    def update(state, x):
        with spreading(by_datum):
            return svi.update(state, x)

    return jax.jit(update).lower(state, jax.device_put(x, by_datum)).compile()


def exchanged(program: str) -> int:
    """Bytes of the results of all collective operations in the text of a compiled program."""
    total = 0
    # Comments number the elements of long tuples.
    for results in COLLECTIVE.findall(re.sub(r"/\*.*?\*/", "", program)):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            total += BYTES[kind] * int(np.prod([int(size) for size in shape.split(",") if size] or [1]))
    return total


if __name__ == "__main__":
    if FLAG in os.environ.get("XLA_FLAGS", ""):
        measure()
    else:
        main()
