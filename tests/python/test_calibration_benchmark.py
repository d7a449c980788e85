"""`benches/calibration.py` runs on texts that `benches/calibration_texts.py` writes."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

BENCHES = Path(__file__).parents[2] / "benches"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHES / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_calibrated_levels_lose_less_on_other_questions(tmp_path: Path) -> None:
    assert run("calibration_texts.py", tmp_path).returncode == 0
    seen, judge = (tmp_path / f"questions-{i}.txt" for i in (1, 2))
    assert len((tmp_path / "python.txt").read_text()) > 100_000
    assert seen.read_text() != judge.read_text()
    done = run("calibration.py", "demo", "--calibrate", seen, "--judge", judge, "--csv")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    rows = {(row["format"], row["levels"]): row for row in csv.DictReader(lines)}
    divergence = {key: float(row["divergence"]) for key, row in rows.items()}
    assert divergence["f32", "exact"] == 0
    for name in ("int4_s8", "int4", "int4_asym"):
        assert 0 < divergence[name, "calibrated"] < divergence[name, "plain"]
        assert rows[name, "calibrated"]["file_bytes"] == rows[name, "plain"]["file_bytes"]
    assert 0 < divergence["int8", "plain"] < divergence["int4_asym", "calibrated"]


def test_the_text_that_calibrates_does_not_judge(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("a")
    done = run("calibration.py", "demo", "--calibrate", text, "--judge", text)
    assert done.returncode == 2
    assert "must be other texts" in done.stderr
