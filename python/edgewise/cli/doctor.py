"""`edgewise doctor`: what slows this computer down, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import machine
from edgewise.cli import info, terminal

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands

SLOW_GOVERNORS = ("powersave", "conservative")
NEAR = 5.0
"""Degrees below its limit at which a thermometer is worth a word."""
SMALLEST = 900_000_000
"""Bytes that the 0.8B model needs with a short text."""
TURNED_DOWN = 0.8
"""A clock allowed below this share of the highest one has been turned down by somebody."""


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "doctor",
        help="show what slows this computer down and what to do about it",
        description="Shows the processor, its clock and heat, power and memory as the system tells them, and "
        "what to do about what is not well.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print what is known and what to do."""
    facts = examine()
    print(json.dumps(facts, indent=1) if arguments.json else _text(facts))
    return 0


def examine(root: Path = Path("/")) -> dict[str, Any]:
    """Return what the system tells below `root`, with advice in `advice`."""
    held = machine.held_back(root)
    facts: dict[str, Any] = {
        **info.computer(),
        "board": machine.board(root),
        "architecture": platform.machine(),
        "processors": machine.processors(root),
        "clocks": [asdict(clock) for clock in machine.clocks(root)],
        "temperatures": [asdict(zone) for zone in machine.zones(root)],
        "slowed_by": machine.slowed(root),
        "throttle_count": machine.throttle_count(root),
        "held_back": None if held is None else {"now": sorted(held.now), "before": sorted(held.before)},
        "page_bytes": os.sysconf("SC_PAGE_SIZE") if "SC_PAGE_SIZE" in os.sysconf_names else None,
    }
    facts["advice"] = advice(facts)
    return facts


def advice(facts: dict[str, Any]) -> list[str]:
    """Return what to do, the most effective first."""
    return [*_power(facts), *_heat(facts), *_clock(facts), *_threads(facts), *_tier(facts), *_memory(facts)]


def _power(facts: dict[str, Any]) -> list[str]:
    held = facts["held_back"]
    if held is None or "voltage" not in held["before"]:
        return []
    when = "is too low now" if "voltage" in held["now"] else "was too low since the start"
    return [f"the supply voltage {when}, which lowers the clock: use the board's own power supply"]


def _heat(facts: dict[str, Any]) -> list[str]:
    held = facts["held_back"] or {"now": [], "before": []}
    if facts["slowed_by"] or {"throttled", "heat"} & set(held["now"]):
        return ["the processor is slowed down for its heat now: give it a heat sink with a fan, and air"]
    close = [
        zone for zone in facts["temperatures"] if zone["limit"] and zone["celsius"] > zone["limit"] - NEAR
    ]
    if close:
        hot = ", ".join(
            f"{zone['name']} has {zone['celsius']:.0f} of {zone['limit']:.0f} °C" for zone in close
        )
        return [f"{hot}: it will be slowed down soon; give it a heat sink with a fan, and air"]
    if {"throttled", "heat"} & set(held["before"]):
        return [
            "the processor has been slowed down for its heat since the start: a fan keeps long texts fast"
        ]
    if facts["throttle_count"]:
        return [f"cores were slowed down for their heat {facts['throttle_count']} times since the start"]
    return []


def _clock(facts: dict[str, Any]) -> list[str]:
    said = []
    for clock in facts["clocks"]:
        where = f"CPUs {clock['cpus']}"
        allowed, highest = clock["allowed"], clock["highest"]
        if allowed and highest and allowed < TURNED_DOWN * highest:
            said.append(f"{where} may run at {allowed:.2f} of {highest:.2f} GHz: raise scaling_max_freq")
        elif clock["governor"] in SLOW_GOVERNORS and not _self_governed(clock, facts):
            said.append(
                f"{where} save power ({clock['governor']}): "
                "`sudo cpupower frequency-set --governor performance` makes them fast"
            )
    return said


def _self_governed(clock: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Tell whether the processor chooses its clock itself, under a governor only named `powersave`."""
    return facts["architecture"] in ("x86_64", "AMD64") and clock["governor"] == "powersave"


def _threads(facts: dict[str, Any]) -> list[str]:
    report = facts["build"].get("thread_report")
    if report is None:
        return []
    quota, cores = report["quota"], min(report["performance_cores"], report["affinity"])
    if quota is not None and quota < cores:
        return [f"the control group allows {quota:g} CPUs of {cores} fast cores: raise its limit"]
    return []


def _tier(facts: dict[str, Any]) -> list[str]:
    best = facts["tiers"][-1]
    if facts["tier"] != best:
        return [f"EDGEWISE_ISA chooses {facts['tier']}; without it {best} would be used, which is faster"]
    if facts["tier"] == "portable":
        return ["there are no vector instructions for this processor: everything takes many times as long"]
    return []


def _memory(facts: dict[str, Any]) -> list[str]:
    free = facts["available_memory_bytes"]
    if free is not None and free < SMALLEST:
        return [
            f"{terminal.size(free)} of memory are free, Qwen3.5-0.8B needs about {terminal.size(SMALLEST)}: "
            "end other programs, or it will be read from disk again and again"
        ]
    return []


def _text(facts: dict[str, Any]) -> str:
    sizes = [(facts["memory_bytes"], "in all"), (facts["available_memory_bytes"], "free")]
    names = [f"{count} x {name}" for name, count in facts["processors"].items()]
    rows = [
        ("board", facts["board"] or "unknown"),
        ("processor", f"{', '.join(names) or 'unknown'} ({facts['architecture']})"),
        ("instructions", f"{facts['tier']} (of {', '.join(facts['tiers'])})"),
        ("threads", info.threads_text(facts)),
        ("clock", "; ".join(map(_clock_text, facts["clocks"])) or "unknown"),
        ("temperature", ", ".join(map(_zone_text, facts["temperatures"])) or "unknown"),
        ("slowed down", _slowed_text(facts)),
        (
            "memory",
            ", ".join(f"{terminal.size(n)} {word}" for n, word in sizes if n is not None) or "unknown",
        ),
        ("pages", _pages_text(facts["page_bytes"])),
    ]
    said = facts["advice"] or ["nothing: what the system tells looks well"]
    lines = [f"{name.ljust(12)}  {value}" for name, value in rows]
    return "\n".join([*lines, "", "what to do", *(f"  - {entry}" for entry in said)])


def _clock_text(clock: dict[str, Any]) -> str:
    now, highest = clock["now"], clock["highest"]
    speeds = " of ".join(f"{speed:.2f}" for speed in (now, highest) if speed is not None)
    return f"CPUs {clock['cpus']} {speeds or '?'} GHz ({clock['governor'] or 'no governor'})"


def _zone_text(zone: dict[str, Any]) -> str:
    limit = "" if zone["limit"] is None else f" (slows down at {zone['limit']:.0f})"
    return f"{zone['name']} {zone['celsius']:.0f} °C{limit}"


def _slowed_text(facts: dict[str, Any]) -> str:
    held, count = facts["held_back"], facts["throttle_count"]
    parts = [f"now by {', '.join(facts['slowed_by'])}"] if facts["slowed_by"] else []
    if held is not None and held["now"]:
        parts.append(f"now by the firmware: {', '.join(held['now'])}")
    elif held is not None and held["before"]:
        parts.append(f"since the start by the firmware: {', '.join(held['before'])}")
    if count:
        parts.append(f"{count} times since the start")
    known = held is not None or count is not None or bool(facts["temperatures"])
    return "; ".join(parts) or ("no" if known else "unknown")


def _pages_text(count: int | None) -> str:
    return "unknown" if count is None else f"{count // 1024} KiB"
