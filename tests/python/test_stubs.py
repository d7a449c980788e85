"""The stub of the native module says what the module has, and its examples are true."""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import edgewise

STUB = Path(edgewise.__file__).with_name("_native.pyi")
ALLOWED = "edgewise._native.__all__  # PyO3's own list\n"


def examples() -> list[doctest.DocTest]:
    """Docstrings with examples; doctest itself does not read stubs."""
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    documented = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
    ]
    parser, found = doctest.DocTestParser(), []
    for node in documented:
        name = getattr(node, "name", "module")
        test = parser.get_doctest(ast.get_docstring(node) or "", {}, name, str(STUB), None)
        found += [test] if test.examples else []
    return found


def test_stub_matches_the_built_module(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--allowlist", str(allowed)]
    result = subprocess.run([*command, "edgewise._native"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_examples(test: doctest.DocTest) -> None:
    report: list[str] = []
    results = doctest.DocTestRunner().run(test, out=report.append)
    assert results.failed == 0, "".join(report)
