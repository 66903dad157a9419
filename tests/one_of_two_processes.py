"""A process of a distributed run: `python one_of_two_processes.py FOLDER PROCESS NUM_PROCESSES PORT NUM_EPOCHS`.

It trains, going on from a checkpoint in the folder, and leaves what it has got there.
"""

import os
import sys

if __name__ == "__main__":
    folder, (process, num_processes, port, num_epochs) = sys.argv[1], map(int, sys.argv[2:])
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from on_eight_devices import DATA, OBJECTIVES, SAMPLERS, train

from numpyro_kaem import Checkpointing


class Share:
    """Batches of 16 rows, of which a process gives its share."""

    def __init__(self, process, num_processes):
        self.mine = slice(16 * process // num_processes, 16 * (process + 1) // num_processes)

    def __iter__(self):
        return iter([DATA[:16][self.mine], DATA[16:32][self.mine]])


def main(folder, process, num_processes, port, num_epochs):
    if num_processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes, process, initialization_timeout=120)
    assert jax.device_count() == 2 * num_processes
    mesh = jax.make_mesh((jax.device_count(),), ("data",))

    # One process is left alone with a callback that ends the run: all must stop, and together.
    ends = [lambda epoch, metrics, params: epoch == num_epochs and process == 0]
    checkpoints = Checkpointing(f"{folder}/{num_processes}", every=2)
    result = train(OBJECTIVES["langevin"], mesh, num_epochs=3, callbacks=ends, checkpoints=checkpoints)
    assert result.stop_reason == "callback"

    if num_epochs == 3:
        streamed = train(
            OBJECTIVES["importance"], mesh, Share(process, num_processes), batch_size=None, steps_per_epoch=2
        )
        np.savez(
            f"{folder}/streamed-{process}-of-{num_processes}.npz", loss=streamed.history["loss"], **streamed.params
        )
    if num_epochs == 3 and num_processes > 1:
        for name, options in {
            "data": {"data": DATA + process},
            "steps_per_epoch": {"data": Share(process, num_processes), "batch_size": None},
            "sampler of held_out data": {"held_out_sampler": SAMPLERS["smc"]},
        }.items():
            try:
                train(OBJECTIVES["importance"], mesh, **options)
            except ValueError as error:
                assert name in str(error), error
            else:
                raise AssertionError(f"no error for {name}")
    history = {name: result.history[name] for name in ("loss", "held_out_log_likelihood")}
    np.savez(f"{folder}/trained-{process}-of-{num_processes}.npz", **history, **result.params)


if __name__ == "__main__":
    main(folder, process, num_processes, port, num_epochs)
