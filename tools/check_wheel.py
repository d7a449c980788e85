"""Try the wheel as a user would: its size and contents, then `edgewise demo` in an environment of its own.

    python tools/check_wheel.py FOLDER

FOLDER holds one wheel.
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

MODEL = "edgewise/demo/demo.safetensors"
LIMIT = 5_000_000
"""Bytes of the wheel without the model."""
NEEDED = [f"edgewise/{name}" for name in ("__init__.py", "_native.abi3.so", "_native.pyi", "py.typed")]


def main() -> None:
    [folder] = sys.argv[1:]
    [wheel] = Path(folder).glob("*.whl")
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as scratch:
        answer = run_demo(wheel.resolve(), Path(scratch))
    if "Paris." not in answer:
        sys.exit(f"{wheel}: edgewise demo says\n{answer}")
    print(f"{wheel.name}: installed, edgewise demo answers")


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


def run_demo(wheel: Path, scratch: Path) -> str:
    """Install into a new environment and return what the command prints, run outside the source tree."""
    venv.create(scratch / "venv", with_pip=True)
    programs = scratch / "venv" / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel], check=True, cwd=scratch)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [programs / "edgewise", "demo"]
    return subprocess.run(
        command, check=True, cwd=scratch, env=environment, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    main()
