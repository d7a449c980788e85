"""The scripts that build and check wheels, on small files made for it."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import platform
import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
EXTENSION = "edgewise/_native.abi3.so"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script by its name."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def tool(name: str) -> ModuleType:
        return importlib.import_module(name)

    return tool


def mangled(*path: str) -> str:
    return f"_ZN{''.join(f'{len(name)}{name}' for name in path)}17h0123456789abcdefE"


FAST = {
    "x86_64": {
        mangled("edgewise", "kernels", "x86_64", "maddubs", "run"): "vpmaddubsw %ymm0, %ymm1, %ymm2",
        mangled("edgewise", "kernels", "x86_64", "vnni", "run"): "{vex} vpdpbusd %ymm0, %ymm1, %ymm2",
        mangled("edgewise", "kernels", "x86_64", "avx512", "run"): "vpdpbusd %zmm0, %zmm1, %zmm2",
    },
    "aarch64": {
        mangled("edgewise", "kernels", "aarch64", "dotprod", "run"): "sdot v0.4s, v1.16b, v2.16b",
        mangled("edgewise", "kernels", "aarch64", "i8mm", "run"): "smmla v0.4s, v1.16b, v2.16b",
    },
}
PLAIN = {
    "x86_64": "addps %xmm0, %xmm1\n rep bsf %rax, %rbx\n jmp 1b",
    "aarch64": "fadd v0.4s, v1.4s, v2.4s\n b 1b",
}
ABOVE = {"x86_64": "crc32 %rax, %rbx", "aarch64": "ldadd x0, x1, [x2]"}
OPTIONS = {"x86_64": "--64", "aarch64": "-march=armv8.6-a"}
MACHINE = platform.machine()


def library(folder: Path, check: ModuleType, functions: dict[str, str]) -> tuple[Path, Any]:
    """Assemble functions for this computer; return the file and its architecture."""
    [architecture] = [one for one in check.ARCHITECTURES.values() if one.machine == MACHINE]
    code = [
        f".globl {name}\n.type {name}, %function\n{name}:\n1: {body}\n" for name, body in functions.items()
    ]
    (folder / "code.s").write_text("".join(code))
    file = folder / "code.o"
    command = [check.program("as", architecture), OPTIONS[MACHINE], folder / "code.s", "-o", file]
    subprocess.run(command, check=True)
    assert check.architecture_of(file) is architecture
    return file, architecture


def test_the_assembler_tells_what_is_above_the_baseline(tools: Any, tmp_path: Path) -> None:
    check = tools("check_baseline")
    plain, above = mangled("edgewise", "plain"), mangled("edgewise", "above")
    functions = {**FAST[MACHINE], plain: PLAIN[MACHINE]}
    file, architecture = library(tmp_path, check, functions)
    found = check.above_baseline(check.disassemble(file, architecture), architecture)
    assert set(found) == {name for name in found if "::kernels::" in name}
    assert len(found) == len(FAST[MACHINE])
    assert "no others" in check.judge(found, architecture)

    file, architecture = library(tmp_path, check, {**functions, above: ABOVE[MACHINE]})
    found = check.above_baseline(check.disassemble(file, architecture), architecture)
    with pytest.raises(SystemExit, match=r"edgewise::above: .*not support"):
        check.judge(found, architecture)


def test_a_library_without_symbols_is_refused(tools: Any, tmp_path: Path) -> None:
    check = tools("check_baseline")
    file, architecture = library(tmp_path, check, {"main": ABOVE[MACHINE]})
    with pytest.raises(SystemExit, match="no symbols"):
        check.above_baseline(check.disassemble(file, architecture), architecture)


def test_a_check_that_sees_no_tier_fails(tools: Any) -> None:
    check = tools("check_baseline")
    for architecture in check.ARCHITECTURES.values():
        refused = {f"{tier}run": Counter(["no"]) for tier in architecture.tiers}
        assert "no others" in check.judge(refused, architecture)
        refused.popitem()
        with pytest.raises(SystemExit, match=architecture.tiers[-1]):
            check.judge(refused, architecture)


def test_functions_of_libraries_are_guarded_by_name(tools: Any) -> None:
    check = tools("check_baseline")
    arm = check.ARCHITECTURES[183]
    refused = {f"{tier}run": Counter(["no"]) for tier in arm.tiers}
    assert " 1 guarded" in check.judge({**refused, "__aarch64_cas8_acq": Counter(["no"])}, arm)
    with pytest.raises(SystemExit, match="my__aarch64_cas8_acq"):
        check.judge({**refused, "my__aarch64_cas8_acq": Counter(["no"])}, arm)


def test_instructions_as_an_assembler_reads_them(tools: Any) -> None:
    check = tools("check_baseline")
    x86, arm = check.ARCHITECTURES[62], check.ARCHITECTURES[183]
    lines = [
        "Disassembly of section .text:",
        "0000000000001000 <edgewise::f>:",
        "    1000:\tjmp    1008 <edgewise::f+0x8>",
        "    1002:\tlea    0x2f(%rip),%rax        # 1038 <edgewise::g>",
        "    1009:\ttzcnt  %rax,%rbx",
    ]
    assert check.functions(lines, x86) == {
        "edgewise::f": Counter(["jmp    .", "lea    0x2f(%rip),%rax", "rep bsf  %rax,%rbx"])
    }
    assert check.readable("sub\tsp, sp, #0x10", arm) == "sub\tsp, sp, #0x10"
    assert check.readable("b.ne\t8d21c <f+0x10>  // b.any", arm) == "b.ne\t."


def wheel(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def test_a_wheel_without_debugging_information(tools: Any, tmp_path: Path) -> None:
    make, check = tools("make_wheels"), tools("check_baseline")
    (tmp_path / "code.c").write_text("int edgewise_answer(void) { return 42; }")
    built = tmp_path / "built.so"
    subprocess.run(["cc", "-g", "-shared", "-fPIC", tmp_path / "code.c", "-o", built], check=True)
    record = f"{EXTENSION},sha256=old,1\nedgewise/__init__.py,sha256=kept,2\n"
    names = {
        EXTENSION: built.read_bytes(),
        "edgewise/__init__.py": b"# ",
        "e.dist-info/RECORD": record.encode(),
    }
    new = make.without_debugging(wheel(tmp_path / "old.whl", names), tmp_path / "new.whl")
    with zipfile.ZipFile(new) as archive:
        assert archive.namelist() == list(names)
        library = archive.read(EXTENSION)
        lines = archive.read("e.dist-info/RECORD").decode().splitlines()
    digest = base64.urlsafe_b64encode(hashlib.sha256(library).digest()).decode().rstrip("=")
    assert lines == [f"{EXTENSION},sha256={digest},{len(library)}", "edgewise/__init__.py,sha256=kept,2"]
    built.write_bytes(library)
    sections = subprocess.run(
        [check.program("objdump", check.architecture_of(built)), "-h", "-t", built],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert ".debug" not in sections
    assert "edgewise_answer" in sections


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("edgewise-1-cp310-cp310-linux_x86_64.whl", {}, "every CPython"),
        ("edgewise-1-cp310-abi3-linux_x86_64.whl", {"edgewise/large": os.urandom(2000)}, "the limit is 1500"),
        ("edgewise-1-cp310-abi3-linux_x86_64.whl", {"tests/a.py": b""}, "does not belong"),
        ("edgewise-1-cp310-abi3-linux_x86_64.whl", {EXTENSION: None}, "lacks"),
    ],
)
def test_wheels_that_must_not_be(
    name: str, more: dict[str, Any], said: str, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = tools("check_wheel")
    monkeypatch.setattr(check, "LIMIT", 1500)
    needed = {
        **dict.fromkeys([*check.NEEDED, "edgewise-1.dist-info/LICENSE"], b""),
        check.MODEL: os.urandom(9000),
    }
    good = wheel(tmp_path / "edgewise-1-cp310-abi3-linux_x86_64.whl", needed)
    check.check_contents(good)
    contents = {name: content for name, content in {**needed, **more}.items() if content is not None}
    with pytest.raises(SystemExit, match=said):
        check.check_contents(wheel(tmp_path / name, contents))


def fake(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def computer(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of a computer whose compiler has no library for ARM yet."""
    (tmp_path / "lib").mkdir()
    fake(tmp_path, "rustc", f"echo {tmp_path}/lib")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(tools("system_tools").os, "geteuid", lambda: 0)
    return tmp_path


ARM = "aarch64-unknown-linux-gnu"


def test_library_from_rustup(tools: Any, computer: Path) -> None:
    fake(computer, "dpkg-query", "exit 1")
    fake(computer, "rustup", f'echo "$@" > {computer}/said; touch {computer}/lib/libstd-1.rlib')
    tools("system_tools").need_library(ARM)
    assert (computer / "said").read_text() == f"target add {ARM}\n"


def test_library_from_debian(tools: Any, computer: Path) -> None:
    fake(computer, "dpkg-query", "echo rustc-web: /usr/bin/rustc")
    fake(computer, "dpkg", f'echo "$@" > {computer}/said')
    fake(computer, "apt-get", f'echo "$@" >> {computer}/said; touch {computer}/lib/libstd-1.rlib')
    tools("system_tools").need_library(ARM)
    said = (computer / "said").read_text().splitlines()
    assert said[0] == "--add-architecture arm64"
    assert said[-1].endswith(" libstd-rust-web-dev:arm64")


def test_library_from_nowhere(tools: Any, computer: Path) -> None:
    fake(computer, "dpkg-query", "echo rustc-web: /usr/bin/rustc")
    fake(computer, "dpkg", "exit 0")
    fake(computer, "apt-get", "exit 0")
    with pytest.raises(SystemExit, match=f"Rust's library for {ARM}"):
        tools("system_tools").need_library(ARM)
