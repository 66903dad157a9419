"""Every Python example that a reader could copy runs: README.md, docs/**/*.md and the package's docstrings.

The blocks of one Markdown file share a namespace and run in order, as a reader would run them; so do the
blocks of one docstring. A block of Markdown that cannot run here is preceded by a comment that says why:

    <!-- not run: it downloads two gigabytes -->
"""

import ast
import re
import textwrap
from pathlib import Path

import jax
import pytest
import yaml

import numpyro_kaem
from numpyro_kaem import kernels

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"(?P<comment><!-- not run: *(?P<reason>.*?) *-->\s*)?"
    r"^(?P<indent>[ \t]*)```(?:python|py|pycon)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


def blocks(text):
    """Return (line, code) of each fenced Python block that no comment excuses."""
    found = []
    for match in FENCE.finditer(text):
        if match["comment"]:
            assert match["reason"], "a block that is not run must say why"
            continue
        line = text.count("\n", 0, match.start("code"))
        found.append((line, textwrap.dedent(match["code"])))
    return found


def execute(examples, path, first_line=0):
    """Run blocks in one namespace, padded so that a traceback shows the line of the file."""
    namespace = {"__name__": "__example__"}
    for line, code in examples:
        exec(compile("\n" * (first_line + line) + code, str(path), "exec"), namespace)


def docstrings():
    """Yield (name, path, line, blocks) of every docstring in the package that shows Python."""
    for path in sorted((ROOT / "numpyro_kaem").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        stack = [(module, ast.parse(path.read_text()))]
        while stack:
            name, node = stack.pop()
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    stack.append((f"{name}.{child.name}", child))
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node)
            if text and blocks(text):
                yield name, path, node.body[0].lineno - 1, blocks(text)


MARKDOWN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(autouse=True)
def reader(monkeypatch, tmp_path):
    """Run each example in a folder of its own, and restore JAX's precision after it."""
    monkeypatch.chdir(tmp_path)
    x64 = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", x64)


@pytest.mark.parametrize(
    "path",
    [path for path in MARKDOWN if blocks(path.read_text())],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
@pytest.mark.docs
def test_markdown_blocks_run(path):
    execute(blocks(path.read_text()), path)


@pytest.mark.parametrize(
    ("path", "line", "examples"), [pytest.param(*rest, id=name) for name, *rest in sorted(docstrings())]
)
@pytest.mark.docs
def test_docstring_examples_run(path, line, examples):
    execute(examples, path, line)


NOT_AT_THE_TOP = sorted(set(kernels.__all__) - set(numpyro_kaem.__all__))


@pytest.mark.parametrize("name", [*numpyro_kaem.__all__, *(f"kernels.{name}" for name in NOT_AT_THE_TOP)])
def test_public_name_is_on_an_api_page(name):
    directive = re.compile(rf"^::: numpyro_kaem\.{name}$", re.MULTILINE)
    pages = [path.name for path in (ROOT / "docs" / "api").glob("*.md") if directive.search(path.read_text())]
    assert len(pages) == 1, f"{name} is on {pages or 'no page'}"


def test_relative_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_citation_file_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert "2506.14167" in citation["preferred-citation"]["url"]
    assert citation["preferred-citation"]["authors"]
