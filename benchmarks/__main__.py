"""Print every benchmark: `python -m benchmarks`, or one: `python -m benchmarks.u_error`."""

from benchmarks import (
    empirical_bayes,
    explorer,
    fitting,
    generators,
    ica,
    icdf_reparam,
    kaem,
    objectives,
    patches,
    prior_draws,
    redshifts,
    samplers,
    scores,
    second_calls,
    training_step,
    u_error,
)
from benchmarks.timing import print_device

print_device()
training_step.main()
generators.main()
kaem.main()
second_calls.main()
prior_draws.main()
icdf_reparam.main()
samplers.main()
objectives.main()
fitting.main()
explorer.main()
empirical_bayes.main()
redshifts.main()
ica.main()
patches.main(["--quick"])
u_error.main()
scores.main()
