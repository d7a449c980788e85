"""Build edgewise for 64-bit ARM and run it under emulation, on a computer with another processor.

    python tools/emulate_arm.py [--wheel WHEEL]

WHEEL is one for ARM; without it, one is built that is quicker to build. Works on Debian and takes from there
a cross linker, the emulator (installed if they are missing and that is possible) and an ARM Python. What is
loaded goes to `target/arm` and is not loaded a second time.

What runs:

- clippy;
- Rust tests of the kernels on processors of three kinds, which have different tiers;
- tests of the Python package: results against the recordings; on one of them, seeing and the demo too;
- `every_bit.py` on this computer and on each of the three: logits of all models must have the same bits.

What does not: tests that say nothing about a processor (files, texts, errors, command line), and those that
take too long under emulation; they run on this computer.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import requires
from pathlib import Path

import elsewhere
from elsewhere import ROOT, apt, environment, every_bit, need_same_bits, once, run, unpack
from system_tools import need_library, need_programs

step = partial(elsewhere.step, "ARM")

WORK = ROOT / "target" / "arm"
TARGET = "aarch64-unknown-linux-gnu"
PROFILE = "emulated"
LINKER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64-static"
PACKAGES = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"]

TIERS = {
    "cortex-a53": ["portable", "neon"],
    "cortex-a76": ["portable", "neon", "dotprod"],
    "max": ["portable", "neon", "dotprod", "i8mm"],
}
"""Processors to emulate (Raspberry Pi 3, Raspberry Pi 5, one with all there is), and their tiers."""

CARGO_TEST = ["cargo", "test", "--target", TARGET, "--profile", PROFILE, "--test", "rust"]
RUST_TESTS = {
    "cortex-a53": ["kernels::lanes", "kernels::linear", "kernels::asymmetric", "kernels::int4_s8"],
    "cortex-a76": ["kernels::lanes", "kernels::linear", "kernels::asymmetric", "kernels::int4_s8"],
    "max": ["kernels::"],
}
"""Filters of the Rust tests: all kernels where all tiers are, elsewhere what each tier does itself."""
LEFT_OUT = ["any_layer", "f16_sizes", "each_matrix_in_a_format_of_its_own"]
"""Rust tests that take minutes under emulation: of experts; models with experts have their bits compared."""
ENGINE = ["test_reference.py", "test_vision_reference.py"]
PYTHON_TESTS = {
    "cortex-a53": ENGINE,
    "cortex-a76": [*ENGINE, "test_delta_rule_reference.py", "test_seeing.py", "test_cli_demo.py"],
    "max": ENGINE,
}
NOT_RUN = (
    "Rust tests of other things than kernels; on cortex-a53 and cortex-a76 those of kernels other than lanes "
    f"and products; on all {', '.join(LEFT_OUT)}; other files of Python tests than named"
)

SUITE = "bookworm"
PYTHON = "python3.11"
PYTHON_PACKAGES = [
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libexpat1",
    "zlib1g",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
    "libcrypt1",
]
"""What the ARM Python consists of."""
TEST_TOOLS = ["pytest", "pytest-timeout", "hypothesis"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build for 64-bit ARM and test under emulation.")
    parser.add_argument("--build-only", action="store_true", help="stop before the tests")
    parser.add_argument("--wheel", type=Path, help="test this wheel in place of one built for it")
    arguments = parser.parse_args()
    start = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    step("cross tools", install_tools)
    step("ARM Python", load_python)
    step("ARM packages", load_requirements)
    step("lints", check_lints)
    step("package", lambda: install_package(arguments.wheel or build_wheel()))
    step("Rust tests, built", build_tests)
    if arguments.build_only:
        return
    step("bits on this computer", lambda: every_bit([sys.executable], WORK / "here.npz"))
    # The longest first.
    jobs = [(f"Python tests on {cpu}", lambda cpu=cpu: test_python(cpu)) for cpu in ("cortex-a76", "max")]
    jobs += [(f"Rust tests on {cpu}", lambda cpu=cpu: test_rust(cpu)) for cpu in reversed(TIERS)]
    jobs += [("Python tests on cortex-a53", lambda: test_python("cortex-a53"))]
    jobs += [(f"bits on {cpu}", lambda cpu=cpu: compare_bits(cpu)) for cpu in TIERS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in [pool.submit(step, *job) for job in jobs]:
            result.result()
    print(f"ARM: not run: {NOT_RUN}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, cpu_seconds = time.monotonic() - start, used.ru_utime + used.ru_stime
    print(f"ARM: all passed, {seconds:.0f} s, {cpu_seconds:.0f} s of processor time")


def install_tools() -> None:
    """Find the cross linker, the emulator and Rust's ARM library, or install them."""
    need_programs([LINKER, EMULATOR], PACKAGES)
    need_library(TARGET)


def load_python() -> None:
    """Unpack an ARM Python and the libraries it needs into `target/arm/root`."""
    root, sources = WORK / "root", [f"deb {SUITE}"]
    once(
        root,
        [sources, PYTHON_PACKAGES],
        lambda: unpack(apt(WORK / "apt", "arm64", sources), PYTHON_PACKAGES, root),
    )


def load_requirements() -> None:
    """Install ARM wheels of what the package and its tests need into `target/arm/site`."""
    needed = [name for name in requires("edgewise") or [] if "extra ==" not in name]
    if not needed:
        raise SystemExit("ARM: edgewise is not installed here: make install")
    needed += TEST_TOOLS
    site = WORK / "site"
    versions = ("2014", "_2_17", "_2_28", "_2_34")
    platforms = [f"--platform=manylinux{version}_aarch64" for version in versions]
    once(site, needed, lambda: run([*pip_for_arm(*platforms), "--target", site, *needed]))


def cargo_environment() -> dict[str, str]:
    """Return an environment in which cargo links for ARM."""
    name = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}_LINKER"
    return environment(**{name: LINKER})


def check_lints() -> None:
    """Run clippy over what is compiled for ARM alone, with all else."""
    run(["cargo", "clippy", "--quiet", "--all-targets", "--target", TARGET, "--", "-D", "warnings"])


def build_wheel() -> Path:
    """Build a wheel that is quick to build, for this computer's glibc, and return its path."""
    wheels = WORK / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    maturin = Path(sys.executable).parent / "maturin"
    build = [maturin, "build", "--quiet", "--profile", PROFILE, "--target", TARGET]
    run([*build, "--compatibility", "linux", "--out", wheels], env=cargo_environment())
    [wheel] = wheels.glob("*.whl")
    return wheel


def install_package(wheel: Path) -> str:
    """Install a wheel into `target/arm/package`, from files alone."""
    package = WORK / "package"
    shutil.rmtree(package, ignore_errors=True)
    platforms = [f"--platform={name}_aarch64" for name in ("manylinux2014", "linux")]
    run([*pip_for_arm(*platforms), "--no-index", "--no-deps", "--target", package, wheel.resolve()])
    return f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB"


def pip_for_arm(*platforms: str) -> list[str]:
    """Return the start of a command that installs packages for the ARM Python and `platforms`."""
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"),
        *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", *platforms),
    ]


def build_tests() -> None:
    """Build the Rust tests."""
    run([*CARGO_TEST, "--quiet", "--no-run"], env=cargo_environment())


def test_rust(cpu: str) -> str:
    """Run the Rust tests on an emulated processor."""
    runner = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}_RUNNER"
    emulator = f"{EMULATOR} -cpu {cpu} -L {WORK / 'root'}"
    options = {**cargo_environment(), runner: emulator}
    skipped = [part for name in LEFT_OUT for part in ("--skip", name)]
    said = run([*CARGO_TEST, "--", *RUST_TESTS[cpu], *skipped], env=options)
    tiers = f"kernel tests run on the tiers: {', '.join(TIERS[cpu])}\n"
    if tiers not in said:
        raise SystemExit(f"ARM: {cpu} should have the tiers {', '.join(TIERS[cpu])}\n{said}")
    [result] = [line for line in said.splitlines() if line.startswith("test result:")]
    return f"{result} (filters {', '.join(RUST_TESTS[cpu])}, without {', '.join(LEFT_OUT)})"


def emulated_python(cpu: str) -> Path:
    """Return a program that is an ARM Python. It starts itself, so that tests may start `sys.executable`."""
    program = WORK / f"python-{cpu}"
    home = WORK / "root" / "usr"
    paths = os.pathsep.join(map(str, [WORK / "package", WORK / "site", ROOT / "tests" / "python"]))
    program.write_text(
        "#!/bin/sh\n"
        f"export PYTHONHOME='{home}' PYTHONDONTWRITEBYTECODE=1\n"
        f"export PYTHONPATH='{paths}'\"${{PYTHONPATH:+:$PYTHONPATH}}\"\n"
        f"exec {EMULATOR} -cpu {cpu} -L '{WORK / 'root'}' -0 '{program}' '{home / 'bin' / PYTHON}' \"$@\"\n"
    )
    program.chmod(0o755)
    return program


def test_python(cpu: str) -> str:
    """Run tests of the package on an emulated processor."""
    tests = [ROOT / "tests" / "python" / name for name in PYTHON_TESTS[cpu]]
    settings = ["-p", "no:cacheprovider", "-o", "timeout=600", "--basetemp", WORK / f"tmp-{cpu}"]
    said = run(
        [emulated_python(cpu), "-m", "pytest", *settings, *tests],
        env=environment(HYPOTHESIS_STORAGE_DIRECTORY=WORK / "hypothesis"),
    )
    return f"{said.strip().splitlines()[-1]} ({', '.join(PYTHON_TESTS[cpu])})"


def compare_bits(cpu: str) -> str:
    """Compute all logits on an emulated processor and compare them with those of this computer."""
    said = every_bit([emulated_python(cpu)], WORK / f"{cpu}.npz")
    if not said.startswith(f"{TIERS[cpu][-1]}: "):
        raise SystemExit(f"ARM: {cpu} should run the tier {TIERS[cpu][-1]}, not {said}")
    need_same_bits(WORK / "here.npz", WORK / f"{cpu}.npz")
    return f"{said}, all bits as on this computer"


if __name__ == "__main__":
    main()
