"""Build a Python that runs on musl, on a Debian computer, which has glibc.

musl and its headers are Debian's; the compiler is gcc with musl's specs file, its paths changed to
those of a folder, so nothing is installed on this computer. CPython and the libraries it needs are built from
Debian's sources. All comes through apt, which checks signatures.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

from elsewhere import Command, apt, environment, once, run, unpack
from system_tools import need_programs

SUITES = ["deb trixie", "deb-src trixie", "deb-src bookworm"]
"""bookworm's musl is too old: before 1.2.4 it cannot read the relocations (RELR) in NumPy's wheels."""
PACKAGES = ["musl", "musl-dev", "linux-libc-dev"]
SOURCES = ["zlib/bookworm", "libffi/bookworm", "openssl/bookworm", "python3.13/trixie"]
VERSION = "3.13"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def have_python(work: Path, machine: str) -> Path:
    """Return a Python that stands in `work`; build it if it does not yet."""
    compiler = f"{machine}-linux-gnu-gcc"
    packages = [f"gcc-{machine.replace('_', '-')}-linux-gnu", "make", "perl", "xz-utils"]
    need_programs([compiler, "make", "perl", "xz"], packages)
    root = work / "root"
    made_of = [SUITES, PACKAGES, SOURCES, recipes(root / "usr", machine)]
    once(root, made_of, lambda: build(work, root, machine))
    return root / "usr" / "bin" / f"python{VERSION}"


def build(work: Path, root: Path, machine: str) -> None:
    """Build all into `root`."""
    apt_get = apt(work / "apt", ARCHITECTURES[machine], SUITES)
    unpack(apt_get, PACKAGES, root)
    settings = environment(CC=make_compiler(root, machine), PKG_CONFIG_LIBDIR="/nowhere")
    sources = work / "sources"
    shutil.rmtree(sources, ignore_errors=True)
    sources.mkdir()
    run([*apt_get, "source", "--download-only", "--tar-only", *SOURCES], cwd=sources)
    for archive in list(sources.iterdir()):
        run(["tar", "-xf", archive], cwd=sources)
    for name, commands in recipes(root / "usr", machine).items():
        [folder] = [path for path in sources.glob(f"{name}-*") if path.is_dir()]
        for command in commands:
            run(command, cwd=folder, env=settings)
    shutil.rmtree(sources)


def make_compiler(root: Path, machine: str) -> Path:
    """Return a program that is gcc for the musl in `root`, and have that musl find libraries there alone."""
    usr = root / "usr"
    specs = (usr / "lib" / f"{machine}-linux-musl" / "musl-gcc.specs").read_text()
    specs = re.sub("(?<=[ :L])(/usr)?/(?=include/|lib/)", f"{usr}/", specs)
    (root / "specs").write_text(specs)
    command = [f"{machine}-linux-gnu-gcc", "-specs", root / "specs", "-L", usr / "lib"]
    for headers in [usr / "include", usr / "include" / f"{machine}-linux-gnu"]:
        command += ["-idirafter", headers]
    program = root / "cc"
    program.write_text(
        "#!/bin/sh\n"
        # CPython's configure compares this with what it finds itself.
        f'[ "$1" = --print-multiarch ] && exec echo {machine}-linux-musl\n'
        f'exec {shlex.join(map(str, command))} "$@"\n'
    )
    program.chmod(0o755)
    (usr / "etc").mkdir()
    (usr / "etc" / f"ld-musl-{machine}.path").write_text(f"{usr / 'lib'}\n")
    return program


def recipes(prefix: Path, machine: str) -> dict[str, list[Command]]:
    """Return the commands that build each source and install it."""
    make = ["make", "-s", f"-j{os.cpu_count()}"]
    configure: Command = ["./configure", f"--prefix={prefix}"]
    autoconf = [*configure, "--quiet", f"--build={machine}-linux-musl"]
    no = ["no-shared", "no-tests", "no-module", "no-legacy", "no-engine"]
    libraries = ["LIBFFI_CFLAGS= ", "LIBFFI_LIBS=-lffi", "ZLIB_CFLAGS= ", "ZLIB_LIBS=-lz"]
    python = ["--without-ensurepip", "--disable-test-modules", f"--with-openssl={prefix}", *libraries]
    return {
        # Shared: wheels of others take it from the system.
        "zlib": [configure, [*make, "install"]],
        "libffi": [
            [*autoconf, "--disable-shared", "--disable-docs", "CFLAGS=-O1 -fPIC"],
            [*make, "install"],
        ],
        "openssl": [
            [
                "perl",
                "Configure",
                f"linux-{machine}",
                f"--prefix={prefix}",
                "--libdir=lib",
                *no,
                "-O1",
                "-fPIC",
            ],
            [*make, "build_libs"],
            [*make, "install_dev"],
        ],
        "Python": [
            [*autoconf, *python, "OPT=-O1 -DNDEBUG"],
            make,
            # Not Python itself: it would compile the whole library three times over.
            [*make, "commoninstall", "PYTHON_FOR_BUILD=true"],
        ],
    }
