"""What the paper claims, measured: `python -m benchmarks.claims` prints every figure of "The paper's claims, checked".

    python -m benchmarks.claims                  all of it, five to fifteen minutes on two cores, by how busy they are
    python -m benchmarks.claims --quick          fewer models, sizes and repetitions, and no training steps
    python -m benchmarks.claims --only modes     one of sampling, importance, modes and training

Times count as ratios within a run. `taskset -c 1` in front of it gives figures of one core, which are steadier where
one other program runs. Where several do, ratios do not hold: those of calls of milliseconds were off fourfold.
"""

import argparse
import time

from benchmarks.claims import importance, modes, sampling, training
from benchmarks.timing import print_device

SECTIONS = {part.__name__.rsplit(".", 1)[1]: part.main for part in (sampling, importance, modes, training)}


def main() -> None:
    """Print the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--quick", action="store_true", help="fewer models, sizes and repetitions")
    arguments = parser.parse_args()
    print_device()
    # Training steps take longest to compile.
    names = [name for name in SECTIONS if not (arguments.quick and name == "training")]
    for name in [arguments.only] if arguments.only else names:
        start = time.perf_counter()
        SECTIONS[name](arguments.quick)
        print(f"\n{name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
