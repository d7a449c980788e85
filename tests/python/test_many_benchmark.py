"""`benches/many.py`, run once and tiny."""

from __future__ import annotations

import csv
from pathlib import Path

from test_benches import run, small

__all__ = ["small"]


def test_every_figure(small: Path) -> None:
    tiny = ["--rounds", "1", "--tokens", "8", "--prompt", "20", "--long", "300", "--threads", "2", "--csv"]
    done = run("many.py", "--shapes", str(small), *tiny)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert "python benches/many.py --shapes config.json" in comments[1]
    figures = {row["what"]: float(row["figure"]) for row in csv.DictReader(lines[len(comments) :])}
    assert len(figures) == 2 * 4 + 4 + 4
    assert all(figure > 0 for figure in figures.values())
    assert figures["write_1_ratio"] == 1
    firsts = [figures[f"first_token_of_8_{which}_ms"] for which in ("first", "median", "last")]
    assert firsts == sorted(firsts)
