"""Training, posterior samplers and prior draws on eight devices do what they do on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import on_eight_devices
import pytest

PROGRAM = Path(on_eight_devices.__file__)


@pytest.fixture(scope="module")
def outcomes():
    # JAX takes its number of devices once, when it starts: eight of them need a process of their own.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=1200, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", on_eight_devices.NO_LAYOUT)
def test_what_makes_no_layout_is_named(case):
    on_eight_devices.assert_is_named(*on_eight_devices.NO_LAYOUT[case])


@pytest.mark.slow
@pytest.mark.parametrize("check", on_eight_devices.CHECKS)
def test_on_eight_devices(outcomes, check):
    assert outcomes[check] == "passed", outcomes[check]
