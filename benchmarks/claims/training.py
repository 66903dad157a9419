"""Time of a training step against the number of temperatures, the model of `benchmarks.samplers`."""

from benchmarks.objectives import _megabytes, make_step
from benchmarks.samplers import STEPS, make_problem
from benchmarks.timing import alternate, print_rows
from numpyro_kaem import MALA, ImportanceMLE, Ladder, LangevinMLE, ThermodynamicMLE

# Milliseconds of a step of the author's programs on a graphics card, as published, over that of unadjusted Langevin.
AUTHOR = {"importance": 25 / 63, "1": 1.0, "2": 149 / 63, "20": 1386 / 63}


def main(quick: bool = False) -> None:
    """Print what a step takes, and holds in memory, over one of `LangevinMLE`."""
    model, _, x, _ = make_problem(16 if quick else 64)
    rungs = (2,) if quick else (2, 4, 8, 16)
    objectives = {"`LangevinMLE`": LangevinMLE(MALA(step_size=1e-3), STEPS)}
    for number in (100,) if quick else (100, 1_000):
        objectives[f"`ImportanceMLE({number:,})`"] = ImportanceMLE(number)
    for number in rungs:
        ladder = Ladder.power(number - 1, 3.0)
        objectives[f"`ThermodynamicMLE`, {number} rungs"] = ThermodynamicMLE(ladder, MALA(step_size=1e-3), STEPS)
    functions, memory = {}, {}
    for name, objective in objectives.items():
        functions[name], _, compiled = make_step(model, x, objective)
        memory[name] = _megabytes(compiled)
    seconds = alternate(functions, runs=2)
    base, held = seconds["`LangevinMLE`"], memory["`LangevinMLE`"]
    rows = []
    for name, values in seconds.items():
        over = f"{values.min() / base.min():.2f}"
        rows.append((name, f"{1e3 * values.min():.0f}", over, f"{memory[name] / held:.2f}"))
    header = ("objective", "ms", "time over `LangevinMLE`'s", "memory over its")
    print_rows(f"Training steps, {len(x)} images of 32 x 32 x 3, {STEPS} moves", header, rows)
    published = [(name, f"{ratio:.2f}") for name, ratio in AUTHOR.items()]
    print_rows("The author's, published", ("temperatures", "time over his Langevin's"), published)
