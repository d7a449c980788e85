"""How much memory the process took at most."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")


def forget_peak() -> None:
    """Let the peak begin anew with the memory in use now, where the system allows that."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def peak() -> int | None:
    """Return the most bytes of memory this process held at once, `None` where the system does not tell."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
