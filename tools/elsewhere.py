"""What scripts share that test edgewise on another system: commands, steps, Debian's packages, equal bits."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

Command = list[str | Path]


def step(system: str, name: str, work: Callable[[], str | None]) -> None:
    """Run `work`, tell how long it took and what it returned, in a line that starts with `system`."""
    start = time.monotonic()
    said = work()
    seconds = time.monotonic() - start
    print(f"{system}: {name}: {seconds:.0f} s{'' if said is None else f', {said}'}", flush=True)


def run(command: Command, **options) -> str:
    """Run a command and return what it printed; if it fails, print that and end."""
    options = {"cwd": ROOT, **options}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        print(done.stdout, flush=True)
        raise SystemExit(f"{' '.join(map(str, command))}: ended with {done.returncode}")
    return done.stdout


def environment(**more: str | Path) -> dict[str, str]:
    """Return this process's environment, and more."""
    return {**os.environ, **{name: str(value) for name, value in more.items()}}


def once(folder: Path, parts: object, make: Callable[[], object]) -> None:
    """Have `make` fill `folder`, unless it has done so before from the same `parts`."""
    stamp = folder.with_name(f"{folder.name}.stamp")
    wanted = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make()
    stamp.write_text(wanted)


def apt(folder: Path, architecture: str, sources: list[str]) -> Command:
    """Return the start of an `apt-get` that has its state in `folder` and leaves this system's alone.

    Each of `sources` is a kind and a suite, such as `deb bookworm`; their lists are loaded.
    """
    for name in ["lists/partial", "cache/archives/partial"]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    lines = [
        f"{kind} [signed-by={KEYRING}] {MIRROR} {suite} main\n" for kind, suite in map(str.split, sources)
    ]
    (folder / "sources.list").write_text("".join(lines))
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "5",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    run(["apt-get", "-qq", *options, "update"])
    return ["apt-get", "-qq", *options]


def unpack(command: Command, packages: list[str], root: Path) -> None:
    """Load Debian packages with a command from `apt` and unpack them into `root`."""
    loaded = root.with_name(f"{root.name}-packages")
    shutil.rmtree(loaded, ignore_errors=True)
    loaded.mkdir(parents=True)
    run([*command, "download", *packages], cwd=loaded)
    files = sorted(loaded.glob("*.deb"))
    if len(files) != len(packages):
        raise SystemExit(f"{len(packages)} packages wanted, loaded {', '.join(file.name for file in files)}")
    for file in files:
        run(["dpkg", "-x", file, root])


def every_bit(python: Command, target: Path) -> str:
    """Compute all logits with `python` into the file `target`, and return what that says."""
    return run([*python, ROOT / "tests" / "python" / "every_bit.py", target]).strip()


def need_same_bits(here: Path, there: Path) -> None:
    """End this program if two files of `every_bit` differ in a name, a shape or a bit."""
    one, other = np.load(here), np.load(there)
    if set(one.files) != set(other.files) or not one.files:
        raise SystemExit(f"{there}: other arrays than on this computer")
    for name in one.files:
        if one[name].tobytes() != other[name].tobytes() or one[name].shape != other[name].shape:
            raise SystemExit(f"{there}: {name} differs from this computer's")
