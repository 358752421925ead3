"""What holds the shape of the project: who imports whom, what the core may do, how long a loop may get."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("specdec", "drafters", "verifiers", "experiments")
MAY_IMPORT = {
    "specdec": {"specdec"},
    "drafters": {"specdec", "drafters"},
    "verifiers": {"specdec", "verifiers"},
    "experiments": {"specdec", "drafters", "verifiers", "experiments"},
}
SCREEN = 40  # lines


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.split(".")[0]


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            yield node, node.end_lineno - node.lineno + 1 - len(docstring.splitlines())


@pytest.mark.parametrize("package", PACKAGES)
def test_import_direction(package):
    for path in files(package):
        wrong = set(imports(path)) & {*PACKAGES, "conf", "tests"} - MAY_IMPORT[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize(
    ("library", "home"), [("transformers", "specdec/runtime/huggingface"), ("hydra", "experiments/")]
)
def test_who_knows_the_library(library, home):
    knowing = [path for package in PACKAGES for path in files(package) if library in set(imports(path))]
    assert knowing, f"nobody imports {library}: is this test still right?"
    for path in knowing:
        assert str(path.relative_to(ROOT)).startswith(home)


def test_the_core_neither_prints_nor_reads_the_environment_nor_waits_for_a_device():
    for package in ("specdec", "drafters", "verifiers"):
        for path in files(package):
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            attributes = {
                node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            }
            wrong = (names & {"print", "breakpoint"}) | (attributes & {"environ", "getenv", "synchronize"})
            assert not wrong, f"{path.relative_to(ROOT)} uses {wrong}"


def test_no_generator_of_random_numbers_but_our_own():
    for package in ("specdec", "drafters", "verifiers"):
        for path in files(package):
            attributes = {
                node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            }
            assert not attributes & {"rand", "randn", "randint", "multinomial", "manual_seed", "random"}, path


@pytest.mark.parametrize(
    "path", [ROOT / "specdec/loop.py", *files("specdec/acceptance")], ids=lambda path: path.stem
)
def test_the_loop_and_every_rule_fit_one_screen(path):
    for node, lines in functions(path):
        assert lines <= SCREEN, f"{node.name} has {lines} lines"


def test_the_loop_speaks_of_no_caches_devices_or_clocks():
    source = ast.parse((ROOT / "specdec/loop.py").read_text())
    words = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    words |= {node.id for node in ast.walk(source) if isinstance(node, ast.Name)}
    assert not words & {"cache", "device", "cuda", "time", "perf_counter", "print", "log", "to", "cpu"}


def test_functions_are_short():
    sizes = sorted(lines for package in PACKAGES for path in files(package) for _, lines in functions(path))
    assert sizes[len(sizes) // 2] <= 10
    assert sizes[int(0.9 * len(sizes))] <= 30
    assert sizes[-1] <= 60


def test_files_are_small():
    for package in PACKAGES:
        for path in files(package):
            assert len(path.read_text().splitlines()) <= 250, path.relative_to(ROOT)


def test_public_functions_and_classes_have_docstrings():
    for package in PACKAGES:
        for path in files(package):
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), path.relative_to(ROOT)
            for node in tree.body:
                public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
                assert not public or ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name}"
