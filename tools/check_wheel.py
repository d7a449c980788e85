"""Try wheels as a user would: their contents, and one of this computer's kind in an environment of its own.

    python tools/check_wheel.py FOLDER

Each wheel in FOLDER is checked for its size, its files, and instructions that not every processor has
(`tools/check_baseline.py`). The first that fits this computer is installed from files alone, as on a computer
without a network, with what the package needs and none of its extras, and has to answer.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from check_baseline import check_wheel

MODEL = "edgewise/demo/demo.safetensors"
LIMIT = 5_000_000
"""Bytes of the wheel without the model."""
NEEDED = [f"edgewise/{name}" for name in ("__init__.py", "_native.abi3.so", "_native.pyi", "py.typed")]
ANSWERS = [
    (["demo"], "Paris."),
    (["generate", "demo", "Write v q o c b in capitals.", "--no-think"], "V Q O C B"),
]
"""Commands, and what they have to say."""


def main() -> None:
    [folder] = sys.argv[1:]
    wheels = sorted(Path(folder).glob("*.whl"))
    own = [
        wheel for wheel in wheels if re.search(rf"(many|-)linux[^-]*_{platform.machine()}\.whl$", wheel.name)
    ]
    if not own:
        sys.exit(f"{folder}: no wheel for {platform.machine()} and glibc")
    for wheel in wheels:
        check_contents(wheel)
        print(f"{wheel.name}: {check_wheel(wheel)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        print(f"{own[0].name}: {check_installed(own[0].resolve(), Path(scratch))}")


def check_contents(wheel: Path) -> None:
    """Refuse a wheel for one Python only, a large one, and one with too few or too many files."""
    if "-cp310-abi3-" not in wheel.name:
        sys.exit(f"{wheel}: is not for every CPython from 3.10 on")
    with zipfile.ZipFile(wheel) as archive:
        model = archive.getinfo(MODEL).compress_size
        names = archive.namelist()
    size = wheel.stat().st_size - model
    if size > LIMIT:
        sys.exit(f"{wheel}: {size} bytes without the model, the limit is {LIMIT}")
    missing = [name for name in NEEDED if name not in names]
    foreign = [name for name in names if not name.startswith(("edgewise/", "edgewise-"))]
    if missing or foreign or not any(name.endswith("/LICENSE") for name in names):
        sys.exit(f"{wheel}: lacks {missing} or the license, or holds what does not belong there: {foreign}")
    print(f"{wheel.name}: {size / 1e6:.2f} MB and a model of {model / 1e6:.2f} MB, {len(names)} files")


def check_installed(wheel: Path, scratch: Path) -> str:
    """Install from files into a new environment, run commands there, and return what was done."""
    files, programs = scratch / "files", scratch / "venv" / "bin"
    run(scratch, sys.executable, "-m", "pip", "download", "--quiet", "--dest", files, wheel)
    venv.create(scratch / "venv", with_pip=True)
    offline = ("--no-index", "--find-links", files)
    run(scratch, programs / "python", "-m", "pip", "install", "--quiet", *offline, wheel)
    for arguments, expected in ANSWERS:
        answer = run(scratch, programs / "edgewise", *arguments)
        if expected not in answer:
            sys.exit(f"{wheel}: edgewise {' '.join(arguments)} says\n{answer}")
    count = len(list(files.glob("*.whl")))
    return f"installed from {count} files without a network, and answers"


def run(folder: Path, *command: str | Path) -> str:
    """Run a command in `folder`, without the source tree on Python's path, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet = {**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        command, check=True, cwd=folder, env=quiet, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    main()
