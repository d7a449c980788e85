"""What Linux tells of a computer that matters for speed: processor, clock, heat, power and memory pages.

Everything is read from files below a root, which is `/` but in tests. What a file does not tell is `None`, or
an empty list: most computers have only some of them, and none but Linux has any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ARM_CORES = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
"""Names of ARM's own cores by their part numbers."""
ARM = 0x41
"""The implementer of these parts."""

RASPBERRY_PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
"""What the firmware of a Raspberry Pi holds back, and has held back since it started, in bits."""
UNDER_VOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
BEFORE = 16
"""Bits of now, moved up this far, tell whether it has happened since the start."""


@dataclass(frozen=True)
class Zone:
    """A thermometer."""

    name: str
    celsius: float
    limit: float | None
    """From which temperature on the system slows down, if it tells."""


@dataclass(frozen=True)
class Clock:
    """Frequencies of a group of CPUs, in GHz, and who chooses them."""

    cpus: str
    governor: str | None
    now: float | None
    highest: float | None
    allowed: float | None


@dataclass(frozen=True)
class Held:
    """What the firmware of a Raspberry Pi says."""

    now: frozenset[str]
    before: frozenset[str]
    """Now, or at any time since the start."""


def board(root: Path) -> str | None:
    """Return the name of the board, such as `Raspberry Pi 5 Model B Rev 1.0`."""
    name = _read(root / "proc/device-tree/model")
    return name.strip("\0 \n") or None if name else None


def processors(root: Path) -> dict[str, int]:
    """Return how many CPUs of which name there are."""
    found: dict[str, int] = {}
    for entry in (_read(root / "proc/cpuinfo") or "").split("\n\n"):
        lines = (line.split(":", 1) for line in entry.splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines}
        if "processor" in fields:
            name = fields.get("model name") or _arm_core(fields) or "unknown"
            found[name] = found.get(name, 0) + 1
    return found


def _arm_core(fields: dict[str, str]) -> str | None:
    implementer, part = (_integer(fields.get(name, "")) for name in ("CPU implementer", "CPU part"))
    if implementer is None or part is None:
        return None
    known = ARM_CORES.get(part) if implementer == ARM else None
    return known or f"part {part:#x} of implementer {implementer:#x}"


def zones(root: Path) -> list[Zone]:
    """Return all thermometers that show a temperature."""
    found = []
    for folder in _numbered(root / "sys/class/thermal", "thermal_zone"):
        temperature = _number(folder / "temp")
        if temperature is not None:
            limit = _slow_from(folder)
            found.append(Zone((_read(folder / "type") or folder.name).strip(), temperature / 1000, limit))
    return found


def _slow_from(folder: Path) -> float | None:
    """Return the lowest temperature at which something is done against heat other than by a fan."""
    limits = []
    for kind in folder.glob("trip_point_*_type"):
        limit = _number(kind.with_name(kind.name.removesuffix("type") + "temp"))
        if (_read(kind) or "").strip() in ("passive", "hot", "critical") and limit is not None and limit > 0:
            limits.append(limit / 1000)
    return min(limits, default=None)


def clocks(root: Path) -> list[Clock]:
    """Return the clocks of all groups of CPUs that share one."""
    found = []
    for folder in _numbered(root / "sys/devices/system/cpu/cpufreq", "policy"):
        cpus = (_read(folder / "affected_cpus") or folder.name.removeprefix("policy")).strip()
        governor = (_read(folder / "scaling_governor") or "").strip() or None
        names = ("scaling_cur_freq", "cpuinfo_max_freq", "scaling_max_freq")
        found.append(Clock(cpus, governor, *(_gigahertz(folder / name) for name in names)))
    return found


def slowed(root: Path) -> list[str]:
    """Return the names of what cools by slowing CPUs down and is at work."""
    found = []
    for folder in _numbered(root / "sys/class/thermal", "cooling_device"):
        kind = (_read(folder / "type") or "").strip()
        # Fans are cooling devices too. Intel's injection of idle time has the state -1 or 0 when off.
        if re.search("cpufreq|processor|idle|powerclamp", kind, re.IGNORECASE):
            state = _number(folder / "cur_state")
            if state is not None and state > 0:
                found.append(kind)
    return found


def throttle_count(root: Path) -> int | None:
    """Return how often x86 cores have been slowed down for their heat since the start."""
    counts = [
        _number(folder / "thermal_throttle/core_throttle_count")
        for folder in _numbered(root / "sys/devices/system/cpu", "cpu")
    ]
    known = [int(count) for count in counts if count is not None]
    return sum(known) if known else None


def held_back(root: Path) -> Held | None:
    """Return what a Raspberry Pi suffers from: `voltage`, `clock`, `throttled`, `heat`."""
    bits = _read(root / RASPBERRY_PI)
    state = None if bits is None else _integer(bits.strip(), 16)
    if state is None:
        return None
    names = {UNDER_VOLTAGE: "voltage", CAPPED: "clock", THROTTLED: "throttled", SOFT_LIMIT: "heat"}
    now = frozenset(name for bit, name in names.items() if state & bit)
    before = frozenset(name for bit, name in names.items() if state & (bit | bit << BEFORE))
    return Held(now, before)


def _numbered(folder: Path, prefix: str) -> Iterator[Path]:
    """Yield `folder/prefix0` and so on, by number."""
    numbers = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    for number in sorted(int(number) for number in numbers if number.isdecimal()):
        yield folder / f"{prefix}{number}"


def _gigahertz(path: Path) -> float | None:
    kilohertz = _number(path)
    return None if kilohertz is None else kilohertz / 1e6


def _number(path: Path) -> float | None:
    """Return the number in a file; a file that cannot be read or holds something else tells nothing."""
    try:
        number = float(_read(path) or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _integer(text: str, base: int = 0) -> int | None:
    try:
        return int(text, base)
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    """Return the text of a file, `None` where it cannot be read: the kernel refuses some that are there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
