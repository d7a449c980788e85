"""Programs and libraries for other targets than this computer: found, or installed where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

DEBIAN = {
    # Debian's package of the compiler, and that of the library with the same version.
    "rustc": "libstd-rust-dev",
    "rustc-web": "libstd-rust-web-dev",
}
DEBIAN_ARCHITECTURES = {"aarch64-unknown-linux-gnu": "arm64", "x86_64-unknown-linux-gnu": "amd64"}


def need_programs(programs: list[str], packages: list[str]) -> None:
    """Have all `programs`, from Debian's `packages` if one is missing, or end this program."""
    missing = [name for name in programs if not shutil.which(name)]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SystemExit(f"needs {', '.join(missing)}: install {', '.join(packages)}")
    install_packages(*packages)


def install_packages(*packages: str) -> None:
    """Install Debian packages."""
    retry = ["-o", "Acquire::Retries=5"]
    run("apt-get", "update", "-qq", *retry)
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    run(*quiet, "apt-get", "install", "-qq", "--no-install-recommends", *retry, *packages)


def need_library(target: str) -> None:
    """Have Rust's library for `target`, from rustup or, for Debian's compiler, from Debian.

    Ends the program if it is missing and neither has it.
    """
    if has_library(target):
        return
    compiler = debian_compiler()
    if shutil.which("rustup") and compiler is None:
        run("rustup", "target", "add", target)
    elif compiler in DEBIAN and target in DEBIAN_ARCHITECTURES:
        from_debian(DEBIAN[compiler], DEBIAN_ARCHITECTURES[target])
    if not has_library(target):
        raise SystemExit(
            f"needs Rust's library for {target}: 'rustup target add {target}', or on Debian the package "
            f"{' or '.join(DEBIAN.values())} of that architecture, in the compiler's version"
        )


def has_library(target: str) -> bool:
    """Tell whether the compiler finds the library."""
    folder = run("rustc", "--print", "target-libdir", "--target", target).strip()
    return any(Path(folder).glob("libstd-*.rlib"))


def debian_compiler() -> str | None:
    """Return the Debian package that the compiler in use comes from."""
    path = shutil.which("rustc")
    if path is None or not shutil.which("dpkg-query"):
        return None
    owner = subprocess.run(["dpkg-query", "--search", path], capture_output=True, text=True)
    return owner.stdout.split(":")[0] if owner.returncode == 0 else None


def from_debian(package: str, architecture: str) -> None:
    """Install `package` for another architecture beside what is there."""
    if os.geteuid() != 0:
        raise SystemExit(f"needs {package}:{architecture}, which only root can install")
    run("dpkg", "--add-architecture", architecture)
    install_packages(f"{package}:{architecture}")


def run(*command: str) -> str:
    """Return what a command prints; end the program if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
