"""`python -m numpyro_kaem info`, which the issue template asks for."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version

import pytest

import numpyro_kaem
from numpyro_kaem import __main__ as command


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "numpyro_kaem", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def as_lines(text):
    return dict(line.split(":", 1) for line in text.splitlines())


def test_info_prints_the_versions_devices_and_precision_of_the_process():
    done = run("info", JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1", XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert done.returncode == 0, done.stderr
    lines = {name: value.strip() for name, value in as_lines(done.stdout).items()}
    assert lines.pop("numpyro_kaem") == numpyro_kaem.__version__
    assert lines.pop("Python").split() == [platform.python_implementation(), platform.python_version()]
    assert lines.pop("platform")
    assert (lines.pop("backend"), lines.pop("devices"), lines.pop("float64")) == ("cpu", "3 x cpu", "on")
    assert lines == {package: version(package) for package in command.PACKAGES}


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "more"]])
def test_anything_else_ends_in_the_usage_and_exit_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m numpyro_kaem" in capsys.readouterr().err


def test_a_platform_that_does_not_start_is_reported_rather_than_raised(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda':\n no device")

    monkeypatch.setattr("jax.default_backend", fail)
    lines = as_lines(command.info())
    assert lines["backend"].strip() == "does not start: Unable to initialize backend 'cuda': no device"
    assert "float64" in lines


def test_a_package_that_is_missing_is_reported_rather_than_raised(monkeypatch):
    monkeypatch.setattr(command, "PACKAGES", ("no-such-package-anywhere",))
    assert as_lines(command.info())["no-such-package-anywhere"].strip() == "not installed"
