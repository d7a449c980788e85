"""Where a record comes from: machine, commit, command, date, and how busy the machine was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def comment(load: float) -> str:
    """The first lines of a record. `load` is how many programs were running before it began."""
    return (
        f"# {machine()}\n"
        f"# {datetime.date.today()}, commit {commit()}; {command()}\n"
        f"# load before {load:.1f}, at the end {os.getloadavg()[0]:.1f}\n"
    )


def machine() -> str:
    """The processor, memory and system."""
    model = re.search(r"model name\s*: (.*)", _text("/proc/cpuinfo"))
    family = re.search(r"cpu family\s*: (\d+)\nmodel\s*: (\d+)", _text("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+) kB", _text("/proc/meminfo"))
    parts = [
        (model[1] if model else platform.processor() or "unknown processor")
        + (f" (family {family[1]} model {family[2]})" if family else ""),
        f"{os.cpu_count()} CPUs",
        f"{round(int(memory[1]) / 2**20)} GB" if memory else "",
    ]
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{', '.join(part for part in parts if part)}; {system}"


def commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def command() -> str:
    """How this run was started; of paths only their last part."""
    return shlex.join(
        ["python", f"benches/{Path(sys.argv[0]).name}", *(Path(word).name for word in sys.argv[1:])]
    )


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
