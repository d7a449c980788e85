"""The stub of the native module against the module itself."""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

from edgewise import Model, _native, ops

STUB = ast.parse(Path(_native.__file__).with_name("_native.pyi").read_text(encoding="utf-8"))
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
METHODS = {
    (name, method.name): method
    for name, node in CLASSES.items()
    for method in node.body
    if isinstance(method, ast.FunctionDef)
}


def stub_parameters(function: ast.FunctionDef) -> list[tuple[str, bool]]:
    """Names of the parameters without `self`, and whether each may be left out."""
    arguments = function.args
    required = len(arguments.args) - len(arguments.defaults)
    found = [(argument.arg, i >= required) for i, argument in enumerate(arguments.args)]
    found += [
        (argument.arg, default is not None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return [(name, optional) for name, optional in found if name not in ("self", "cls")]


def real_parameters(function: Any) -> list[tuple[str, bool]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default is not p.empty) for p in parameters if p.name not in ("self", "cls")]


def public(owner: object) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_the_stub_lists_everything() -> None:
    assert public(_native) == FUNCTIONS.keys() | CLASSES.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_what_the_stub_says(name: str) -> None:
    assert real_parameters(getattr(_native, name)) == stub_parameters(FUNCTIONS[name])


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_what_the_stub_says(name: str) -> None:
    real = getattr(_native, name)
    listed = {method for owner, method in METHODS if owner == name}
    assert public(real) == {method for method in listed if not method.startswith("_")}
    assert all(hasattr(real, method) for method in listed)


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_methods_take_what_the_stub_says(owner: str, name: str) -> None:
    real = getattr(_native, owner)
    stub = METHODS[owner, name]
    function = real if name in ("__init__", "__new__") else getattr(real, name)
    if inspect.isgetsetdescriptor(function):
        assert [d.id for d in stub.decorator_list if isinstance(d, ast.Name)] == ["property"]
    else:
        assert real_parameters(function) == stub_parameters(stub)


@pytest.mark.parametrize("name", ops.__all__)
def test_operations_have_the_docstring_of_the_stub(name: str) -> None:
    stub = ast.get_docstring(FUNCTIONS[name])
    assert stub is not None
    assert inspect.getdoc(getattr(ops, name)) == stub


@pytest.mark.parametrize("name", ops.__all__)
def test_examples_of_operations(name: str) -> None:
    [example] = doctest.DocTestFinder().find(getattr(ops, name), name, module=False, globs={})
    assert example.examples
    result = doctest.DocTestRunner().run(example)
    assert result.failed == 0


def test_operations_are_those_listed() -> None:
    assert public(ops) - {"annotations"} == set(ops.__all__)
    assert sorted(ops.__all__) == ops.__all__


def test_exceptions_can_be_caught_as_what_they_are() -> None:
    assert issubclass(_native.CheckpointError, ValueError)
    assert issubclass(_native.ContextError, ValueError)
    assert issubclass(_native.NonFiniteError, ArithmeticError)
    assert {_native.CheckpointError.__module__, _native.NonFiniteError.__module__} == {"edgewise"}


def test_build_info() -> None:
    info = _native.build_info()
    assert info["version"].count(".") == 2
    assert info["thread_report"]["chosen"] == _native.available_threads() >= 1
    assert _native.active_tier() in _native.tiers()
    assert _native.tiers()[0] == "portable"


@pytest.mark.parametrize("ids", ["ab", None, [1.5], [None]])
def test_what_is_not_token_ids_is_a_type_error(ids: Any) -> None:
    sequence = Model.from_pretrained("demo")._engine.sequence()
    with pytest.raises(TypeError, match=r"^ids: expected token ids"):
        sequence.append(ids)


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_token_ids_out_of_range(ids: list[int]) -> None:
    sequence = Model.from_pretrained("demo")._engine.sequence()
    with pytest.raises(ValueError, match=r"^ids: expected whole numbers"):
        sequence.append(ids)


def test_converting_needs_a_thread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^threads: at least one"):
        _native.quantize(str(tmp_path), str(tmp_path / "out"), threads=0)
