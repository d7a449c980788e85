"""Build wheels that every 64-bit Linux of an architecture can install, with glibc 2.17 or musl 1.2 or later.

    python tools/make_wheels.py [--out FOLDER] [TARGET...]

TARGET is x86_64-gnu, aarch64-gnu, x86_64-musl or aarch64-musl; without any, those for glibc are built, which
`.ci/run` tests; `tools/test_musl.py` builds a Python for musl to test the wheel for x86_64-musl.
The linker is Zig's, which knows what each version of glibc has and links for ARM as well; it comes with the
Python package `ziglang`, which must be installed here. Rust's library for a target and the binutils for its
processor are installed if they are missing and that is possible.

Zig removes all symbols if asked to remove any, so it is asked for none, and debugging information is taken
out of the finished wheel. Names of functions stay in it: `tools/check_baseline.py` reads them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from check_baseline import EXTENSION, architecture_of, program
from system_tools import need_library, need_programs

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    # The platforms that maturin checks the finished library against.
    "x86_64-gnu": ("x86_64-unknown-linux-gnu", "manylinux2014"),
    "aarch64-gnu": ("aarch64-unknown-linux-gnu", "manylinux2014"),
    "x86_64-musl": ("x86_64-unknown-linux-musl", "musllinux_1_2"),
    "aarch64-musl": ("aarch64-unknown-linux-musl", "musllinux_1_2"),
}
FOR_GLIBC = ["x86_64-gnu", "aarch64-gnu"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build wheels for Linux.")
    choice = f"of {', '.join(TARGETS)}; else those for glibc"
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=choice)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where wheels go")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if importlib.util.find_spec("ziglang") is None:
        sys.exit("needs the Python package ziglang")
    names = arguments.targets or FOR_GLIBC
    for machine in {name.split("-")[0] for name in names}:
        tools = [f"{machine}-linux-gnu-{tool}" for tool in ("objdump", "as", "strip")]
        need_programs(tools, [f"binutils-{machine.replace('_', '-')}-linux-gnu"])
    for name in names:
        start = time.monotonic()
        wheel = build(*TARGETS[name], arguments.out)
        print(f"{wheel.name}: built in {time.monotonic() - start:.0f} s", flush=True)


def build(target: str, platform: str, out: Path) -> Path:
    """Build the wheel for one target into `out` and return its path."""
    need_library(target)
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "CARGO_PROFILE_RELEASE_STRIP": "none",
    }
    with tempfile.TemporaryDirectory() as scratch:
        command = [programs / "maturin", "build", "--quiet", "--release", "--zig", "--target", target]
        command += ["--compatibility", platform, "--out", scratch]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
            sys.exit(f"{target}: not built")
        [built] = Path(scratch).glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        return without_debugging(built, out / built.name)


def without_debugging(source: Path, wheel: Path) -> Path:
    """Write the wheel `source` anew to `wheel`, its extension without debugging information."""
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        library = stripped(old.read(EXTENSION))
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename == EXTENSION:
                content = library
            elif entry.filename.endswith(".dist-info/RECORD"):
                content = recorded(content.decode(), library).encode()
            new.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    return wheel


def stripped(library: bytes) -> bytes:
    """Return an ELF library without debugging information, with its symbols."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "library.so"
        file.write_bytes(library)
        subprocess.run([program("strip", architecture_of(file)), "--strip-debug", file], check=True)
        return file.read_bytes()


def recorded(record: str, library: bytes) -> str:
    """Return the wheel's list of files with the extension's new hash and size."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(library).digest()).rstrip(b"=").decode()
    lines = [line for line in record.splitlines() if not line.startswith(f"{EXTENSION},")]
    return "\n".join([f"{EXTENSION},sha256={digest},{len(library)}", *lines]) + "\n"


if __name__ == "__main__":
    main()
