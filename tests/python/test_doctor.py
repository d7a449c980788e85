"""`edgewise doctor` on computers described by files below a folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewise import _native, machine
from edgewise.cli import doctor
from edgewise.cli.main import main

Captured = pytest.CaptureFixture[str]
Files = dict[str, str]

CPUINFO_PI5 = "".join(
    f"processor\t: {i}\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    for i in range(4)
)
CPUINFO_PHONE = "".join(
    f"processor\t: {i}\nCPU implementer\t: {implementer}\nCPU part\t: {part}\n\n"
    for i, (implementer, part) in enumerate(
        [("0x41", "0xd46")] * 4 + [("0x41", "0xd4d")] * 3 + [("0x51", "0x1")]
    )
)
CPUINFO_X86 = "processor\t: 0\nmodel name\t: A Fast One\n\nprocessor\t: 1\nmodel name\t: A Fast One\n\n"

THROTTLED = machine.RASPBERRY_PI
PI: Files = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/cpuinfo": CPUINFO_PI5,
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "active\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "50000\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "80000\n",
    "sys/class/thermal/thermal_zone0/trip_point_2_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_2_temp": "110000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/devices/system/cpu/cpufreq/policy0/affected_cpus": "0 1 2 3\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2400000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "2400000\n",
    THROTTLED: "0\n",
}


@pytest.fixture(autouse=True)
def build(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"affinity": 4, "quota": None, "performance_cores": 4, "chosen": 4}
    monkeypatch.setattr(_native, "build_info", lambda: {"thread_report": report})
    monkeypatch.setattr(_native, "available_threads", lambda: 4)
    monkeypatch.setattr(_native, "tiers", lambda: ["portable", "neon", "dotprod"])
    monkeypatch.setattr(_native, "active_tier", lambda: "dotprod")
    monkeypatch.setattr(_native, "available_memory", lambda: 6_000_000_000)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")


@pytest.fixture
def examined(tmp_path: Path) -> Callable[[Files], dict[str, Any]]:
    """Examines a computer with these files."""

    def examine(files: Files) -> dict[str, Any]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return doctor.examine(tmp_path)

    return examine


Examined = Callable[[Files], dict[str, Any]]


def test_a_healthy_raspberry_pi(examined: Examined) -> None:
    facts = examined(PI)
    assert facts["advice"] == []
    assert facts["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["processors"] == {"Cortex-A76": 4}
    assert facts["temperatures"] == [{"name": "cpu-thermal", "celsius": 48.25, "limit": 80.0}]
    assert facts["slowed_by"] == []
    assert facts["held_back"] == {"now": [], "before": []}
    lines = [" ".join(line.split()) for line in doctor._text(facts).splitlines()]
    assert "processor 4 x Cortex-A76 (aarch64)" in lines
    assert "clock CPUs 0 1 2 3 1.50 of 2.40 GHz (ondemand)" in lines
    assert "temperature cpu-thermal 48 °C (slows down at 80)" in lines
    assert "slowed down no" in lines
    assert "- nothing: what the system tells looks well" in lines


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({THROTTLED: "50005\n"}, ["the supply voltage is too low now", "slowed down for its heat now"]),
        ({THROTTLED: "10000\n"}, ["the supply voltage was too low since the start"]),
        ({THROTTLED: "80000\n"}, ["has been slowed down for its heat since the start"]),
        ({THROTTLED: "8\n"}, ["slowed down for its heat now"]),
        ({"sys/class/thermal/thermal_zone0/temp": "78000\n"}, ["cpu-thermal has 78 of 80 °C"]),
        (
            {
                "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
                "sys/class/thermal/cooling_device1/cur_state": "3\n",
            },
            ["slowed down for its heat now"],
        ),
        (
            {"sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n"},
            ["CPUs 0 1 2 3 save power"],
        ),
        (
            {"sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "600000\n"},
            ["CPUs 0 1 2 3 may run at 0.60 of 2.40 GHz"],
        ),
    ],
)
def test_what_ails_a_raspberry_pi(examined: Examined, files: Files, said: list[str]) -> None:
    advice = examined(PI | files)["advice"]
    assert len(advice) == len(said)
    for found, wanted in zip(advice, said, strict=True):
        assert wanted in found


def test_big_and_little_cores(examined: Examined) -> None:
    facts = examined({"proc/cpuinfo": CPUINFO_PHONE})
    assert facts["processors"] == {"Cortex-A510": 4, "Cortex-A715": 3, "part 0x1 of implementer 0x51": 1}


def test_x86(examined: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, `powersave` is the name of a governor that lets the processor choose."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    cpu = "sys/devices/system/cpu"
    files = {
        "proc/cpuinfo": CPUINFO_X86,
        f"{cpu}/cpufreq/policy0/scaling_governor": "powersave\n",
        f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "0\n",
        f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "0\n",
    }
    facts = examined(files)
    assert (facts["processors"], facts["throttle_count"], facts["advice"]) == ({"A Fast One": 2}, 0, [])
    facts = examined({f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "12\n"})
    assert facts["advice"] == ["cores were slowed down for their heat 12 times since the start"]
    assert "slowed down   12 times since the start" in doctor._text(facts)


def test_a_system_that_tells_nothing(examined: Examined) -> None:
    facts = examined({})
    assert (facts["board"], facts["processors"], facts["held_back"]) == (None, {}, None)
    assert (facts["clocks"], facts["temperatures"], facts["throttle_count"]) == ([], [], None)
    assert facts["advice"] == []
    lines = [" ".join(line.split()) for line in doctor._text(facts).splitlines()]
    for name in ("board unknown", "clock unknown", "temperature unknown", "slowed down unknown"):
        assert name in lines


@pytest.mark.parametrize("text", ["", "\n", "hot", "nan", "inf", "0xzz", "\0\0", "é"])
def test_files_with_anything_in_them(examined: Examined, text: str) -> None:
    """A file that makes no sense tells nothing and stops nobody."""
    facts = examined(dict.fromkeys(PI, text))
    assert facts["advice"] == []
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert doctor._text(facts)


def test_threads_tier_and_memory(examined: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"affinity": 4, "quota": 1.5, "performance_cores": 4, "chosen": 1}
    monkeypatch.setattr(_native, "build_info", lambda: {"thread_report": report})
    monkeypatch.setattr(_native, "active_tier", lambda: "neon")
    monkeypatch.setattr(_native, "available_memory", lambda: 300_000_000)
    quota, tier, memory = examined(PI)["advice"]
    assert "allows 1.5 CPUs of 4 fast cores" in quota
    assert "EDGEWISE_ISA chooses neon; without it dotprod" in tier
    assert "300 MB of memory are free" in memory
    monkeypatch.setattr(_native, "active_tier", lambda: "portable")
    monkeypatch.setattr(_native, "tiers", lambda: ["portable"])
    assert "no vector instructions" in examined(PI)["advice"][1]


def test_the_command_on_this_computer(capsys: Captured) -> None:
    assert main(["doctor"]) == 0
    assert "what to do\n  - " in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["page_bytes"] % 4096 == 0
    assert facts["tier"] == "dotprod"
