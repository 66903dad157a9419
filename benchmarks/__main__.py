"""Print every benchmark: `python -m benchmarks`, or one: `python -m benchmarks.u_error`."""

from benchmarks import fitting, icdf_reparam, objectives, prior_draws, samplers, training_step, u_error
from benchmarks.timing import print_device

print_device()
training_step.main()
prior_draws.main()
icdf_reparam.main()
samplers.main()
objectives.main()
fitting.main()
u_error.main()
