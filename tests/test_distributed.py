"""Two processes of two devices each, on one machine: they train as one, stop, and go on from their checkpoint."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import one_of_two_processes
import pytest

pytestmark = pytest.mark.slow
SECONDS = 600


def run(folder, num_processes, num_epochs):
    """Run the program in some processes at once; none of them outlives the others' failure, or the time limit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(one_of_two_processes.__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    logs = [folder / f"log-{num_processes}-{num_epochs}-{process}" for process in range(num_processes)]
    processes = []
    try:
        for process, log in enumerate(logs):
            arguments = [str(value) for value in (program, folder, process, num_processes, port, num_epochs)]
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output, env=environment)
                )
        codes = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * num_processes, "\n".join(log.read_text() for log in logs)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every process of two, and the only one of a run without others, has got by the name of the run."""
    folder = tmp_path_factory.mktemp("distributed")
    run(folder, 1, 3)
    run(folder, 2, 1)
    stopped = {process: dict(np.load(folder / f"trained-{process}-of-2.npz")) for process in (0, 1)}
    run(folder, 2, 3)

    def load(name):
        return {
            "alone": dict(np.load(folder / f"{name}-0-of-1.npz")),
            **{process: dict(np.load(folder / f"{name}-{process}-of-2.npz")) for process in (0, 1)},
        }

    return {"stopped": stopped, "trained": load("trained"), "streamed": load("streamed")}


def test_processes_stop_together_when_one_wants_to(results):
    assert [len(results["stopped"][process]["loss"]) for process in (0, 1)] == [3, 3]


def test_resumed_processes_go_on_where_they_stopped(results):
    for process in (0, 1):
        losses = results["trained"][process]["loss"]
        assert len(losses) == 9
        np.testing.assert_array_equal(losses[:3], results["stopped"][process]["loss"])


@pytest.mark.parametrize("kind", ["trained", "streamed"])
def test_two_processes_get_what_one_gets(results, kind):
    alone, first, second = (results[kind][who] for who in ("alone", 0, 1))
    for name, value in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
