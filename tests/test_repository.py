"""What surrounds the package: workflows, hooks, templates, and the files that pages for contributors name."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
HOW_TO = sorted(set((ROOT / "docs" / "contributing").glob("*.md")) - {ROOT / "docs" / "contributing" / "index.md"})
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "design.md", *HOW_TO]


def targets():
    """The targets of the Makefile that are no files."""
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)[1]
    return set(phony.replace("\\\n", " ").split())


def called_targets(text):
    """The targets of every `make` in a text: words in front of which there is no value."""
    calls = re.findall(r"(?:^|[\s`])make((?: +[^\s`#;|&)]+)+)", text, re.MULTILINE)
    return {word for call in calls for word in call.split() if "=" not in word and not word.startswith("-")}


def steps(path):
    """The steps of all jobs of a workflow."""
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def by_name(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def test_every_target_has_a_rule_and_a_line_of_help():
    rules = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert targets() == rules
    help_text = "\n".join(re.findall(r"^\t@echo \"(.*)\"$", MAKEFILE, re.MULTILINE))
    assert targets() - called_targets(help_text) == {"help", "docs-serve"}


@by_name(WORKFLOWS)
def test_a_workflow_runs_targets_of_the_makefile_and_nothing_else(path):
    commands = [step["run"] for step in steps(path) if "run" in step]
    assert all(re.fullmatch(r"make PYTHON=python[^\n;|&]*\n?", command) for command in commands), commands
    called = called_targets("\n".join(commands))
    assert called <= targets()
    # Of a workflow that only publishes what another has built there would be none.
    assert called


@by_name(WORKFLOWS)
def test_actions_of_a_workflow_have_a_version_and_may_write_only_where_a_job_says_so(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    assert [step["uses"] for step in steps(path) if "uses" in step and not re.search(r"@\S*v\d", step["uses"])] == []


def test_the_workflow_of_tests_runs_on_the_pythons_that_the_package_claims():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    claimed = [line.rsplit(" ", 1)[1] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == claimed
    assert PROJECT["project"]["requires-python"] == f">={claimed[0]}"


def test_a_release_is_published_by_a_job_that_has_a_token_and_no_source():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert [step["uses"].split("@")[0] for step in jobs["publish"]["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert "permissions" not in jobs["build"]
    build = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert 'RELEASE="$GITHUB_REF_NAME"' in build


@pytest.mark.parametrize(("tag", "passes"), [("v{version}", True), ("v0.0.0", False), ("{version}", False), ("", True)])
def test_a_tag_is_built_only_if_it_is_the_version(tag, passes, tmp_path):
    """The recipe of `make build`, with nothing behind the commands that come after the check."""
    recipe = re.search(r"^build:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    check = recipe[: recipe.index("fi\n") + 3]
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "Makefile").write_text(f"BIN := {Path(sys.executable).parent}\nbuild:\n{check}")
    tag = tag.format(version=PROJECT["project"]["version"])
    done = subprocess.run(["make", "build"], cwd=tmp_path, env=os.environ | {"RELEASE": tag}, capture_output=True)
    assert (done.returncode == 0) == passes, done.stderr


def test_ruff_of_the_hooks_formats_as_the_one_of_make_lint():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = next(entry["rev"] for entry in repositories if entry["repo"].endswith("ruff-pre-commit")).removeprefix("v")
    installed = importlib.metadata.version("ruff")
    # Within a minor version ruff's style stays.
    if installed.split(".")[:2] != pinned.split(".")[:2]:
        pytest.skip(f"ruff {installed} is installed, the hooks have {pinned}")
    assert PROJECT["tool"]["ruff"]["line-length"] == 120


def test_there_are_workflows_templates_and_pages():
    assert len(WORKFLOWS) == 4
    assert {path.name for path in TEMPLATES} == {"bug.yml", "feature.yml", "config.yml"}
    assert len(PAGES) == 6
    assert all(path.exists() for path in PAGES)


@by_name([path for path in TEMPLATES if path.name != "config.yml"])
def test_a_template_asks_for_versions_and_a_minimal_model(path):
    template = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(template)
    fields = {entry["id"]: entry for entry in template["body"]}
    assert "`python -m numpyro_kaem info`" in fields["info"]["attributes"]["description"]
    assert "minimal model" in " ".join(fields["model"]["attributes"].values())
    if path.name == "bug.yml":
        assert all(fields[name]["validations"] == {"required": True} for name in ("what", "model", "info"))


def test_files_that_say_what_the_package_is_go_into_the_source_distribution():
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in included if not (ROOT / name).exists()] == []
    assert {path.name for path in ROOT.glob("*.md")} <= set(included)


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "numpyro_kaem" / "py.typed").read_bytes() == b""


def test_stubs_of_the_type_check_have_every_name_that_is_taken_from_jaxtyping():
    stub = (ROOT / ".ci" / "typings" / "jaxtyping.pyi").read_text()
    stated = set(re.search(r"__all__ = \[(.*)\]", stub)[1].replace('"', "").split(", "))
    sources = [path.read_text() for path in (ROOT / "numpyro_kaem").rglob("*.py")]
    lines = [line for text in sources for line in re.findall(r"from jaxtyping import (.*)", text)]
    taken = {name for line in lines for name in line.split(", ")}
    assert stated == taken


def named_files(text):
    """Paths of Python files and folders in code spans: `posterior/kernel.py`, `energies/`."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return {span for span in spans if re.fullmatch(r"[\w./-]+(\.py|\.md|\.toml|/)", span)}


@by_name(PAGES)
def test_files_that_a_page_names_exist(path):
    """Under the repository, or under the package, whose name is left out."""
    names = named_files(path.read_text())
    assert names
    places = [ROOT, ROOT / "numpyro_kaem", path.parent]
    assert [name for name in names if not any((place / name).exists() for place in places)] == []


@by_name(PAGES)
def test_targets_that_a_page_names_exist(path):
    text = re.sub(r"make a |make one ", "", path.read_text())
    commands = re.findall(r"^make [^#\n]*", text, re.MULTILINE) + re.findall(r"`make [^`]*`", text)
    assert called_targets("\n".join(commands)) <= targets()
