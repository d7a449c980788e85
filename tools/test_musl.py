"""Test a wheel for musl on a computer that has glibc, with a Python built for musl.

    python tools/test_musl.py [WHEEL]

Without WHEEL, the one in `dist` is tested, and built first if there is none. Works on Debian. The Python
(`tools/musl_python.py`) and packages that are loaded go to `target/musl`, and are not built or loaded twice.

What runs:

- pip of that Python installs the wheel and all it needs from files alone;
- all tests of the Python package, docstrings and README too, but those it says at the end;
- `every_bit.py` here and there: logits of all models must have the same bits.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from functools import partial
from importlib.metadata import requires
from pathlib import Path

import elsewhere
from elsewhere import ROOT, environment, every_bit, need_same_bits, once, run
from musl_python import VERSION, have_python

step = partial(elsewhere.step, "musl")

MACHINE = platform.machine()
WORK = ROOT / "target" / "musl" / MACHINE
FILES = WORK / "files"
ENVIRONMENT = WORK / "environment"
PYTHON = ENVIRONMENT / "bin" / "python"
EXTRAS = "dev,video"
LEFT_OUT = {"test_stubs.py::test_stub_matches_the_built_module": "mypy needs sqlite, which that Python lacks"}
"""Tests that cannot run there, and why."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Test a wheel for musl.")
    parser.add_argument("wheel", nargs="?", type=Path, help="else the one in dist, or a new one")
    wheel = parser.parse_args().wheel
    start = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    if wheel is None and find_wheel() is None:
        step("wheel", build_wheel)
    wheel = wheel or find_wheel()
    step("Python", lambda: run([have_python(WORK, MACHINE), "-VV"]).strip())
    step("packages", load_packages)
    step("installed", lambda: install(wheel.resolve()))
    step("bits with glibc", lambda: every_bit([sys.executable], WORK / "glibc.npz"))
    step("bits with musl", compare_bits)
    step("tests", run_tests)
    print(f"musl: all passed, {time.monotonic() - start:.0f} s")


def find_wheel() -> Path | None:
    """Return the wheel in `dist` for this processor and musl, if there is one."""
    return next((ROOT / "dist").glob(f"*-musllinux_*_{MACHINE}.whl"), None)


def build_wheel() -> str:
    """Build a wheel into `dist`."""
    return run([sys.executable, ROOT / "tools" / "make_wheels.py", f"{MACHINE}-musl"]).splitlines()[-1]


def load_packages() -> str:
    """Load wheels for musl of what the package and its tests need, and pip."""
    needed = [name.split(";")[0].strip() for name in requires("edgewise") or []]
    if not needed:
        raise SystemExit("musl: edgewise is not installed here: make install")
    platforms = [f"--platform=musllinux_{version}_{MACHINE}" for version in ("1_1", "1_2")]
    command = [
        *(
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-cache-dir",
        ),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={VERSION}", *platforms),
        *("--dest", FILES, "pip", *needed),
    ]
    once(FILES, command, lambda: run(command))
    return f"{len(list(FILES.glob('*.whl')))} files"


def install(wheel: Path) -> str:
    """Install the wheel with all extras into a new environment, from files alone, by that Python's pip."""
    run([have_python(WORK, MACHINE), "-m", "venv", "--clear", "--without-pip", ENVIRONMENT])
    [pip] = FILES.glob("pip-*.whl")
    offline = ["--quiet", "--no-index", "--find-links", FILES]
    run([PYTHON, pip / "pip", "install", *offline, f"{wheel}[{EXTRAS}]"])
    return f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB"


def compare_bits() -> str:
    """Compute all logits with musl and compare them with those of glibc."""
    said = every_bit([PYTHON], WORK / "musl.npz")
    need_same_bits(WORK / "glibc.npz", WORK / "musl.npz")
    return f"{said}, all bits as with glibc"


def run_tests() -> str:
    """Run the tests of the package as installed, and tell which did not run."""
    folder = ROOT / "tests" / "python"
    settings = ["-p", "no:cacheprovider", "-rs", "--basetemp", WORK / "tmp"]
    left_out = [f"--deselect={(folder / name).relative_to(ROOT)}" for name in LEFT_OUT]
    # The package by its name: by its path it would be the source tree's, with the extension for glibc.
    said = run(
        [PYTHON, "-m", "pytest", *settings, *left_out, folder, "--pyargs", "edgewise"],
        env=environment(HYPOTHESIS_STORAGE_DIRECTORY=WORK / "hypothesis"),
    )
    lines = said.strip().splitlines()
    not_run = [line for line in lines if line.startswith("SKIPPED")]
    not_run += [f"LEFT OUT {name}: {why}" for name, why in LEFT_OUT.items()]
    return "\n  ".join([lines[-1], *not_run])


if __name__ == "__main__":
    main()
