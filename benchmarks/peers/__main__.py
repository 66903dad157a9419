"""`python -m benchmarks.peers`: run what is not done yet, and print the table. `--help` tells the options."""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.peers.runs import FULL, QUICK, contestants, run_all, run_job


def main(arguments: list[str] | None = None) -> None:
    """Run all, or a job."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="digits only, seconds of training, one seed, no trials")
    parser.add_argument("--folder", type=Path, help="of the results, from which a run goes on; outputs/peers")
    parser.add_argument("--only", nargs="+", help="contestants by name")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and run nothing")
    parser.add_argument("--job", nargs=2, metavar=("TASK", "CONTESTANT"), help="run one, in this process")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    folder = options.folder or Path("outputs") / ("peers-quick" if options.quick else "peers")
    if options.job:
        run_job(folder, *options.job, effort)
        return
    passed = ["--folder", str(folder)] + (["--quick"] if options.quick else [])
    if unknown := sorted(set(options.only or ()) - set(contestants())):
        parser.error(f"--only has no contestants {unknown}; there are {list(contestants())}")
    failed = [] if options.table else run_all(folder, effort, passed, options.only)
    from benchmarks.peers.table import print_all

    print_all(folder, effort)
    if failed:
        sys.exit(f"these failed, and are tried again by the same command: {'; '.join(failed)}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(".cache/jax").absolute()))
    main()
