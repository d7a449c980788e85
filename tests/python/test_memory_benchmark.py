"""`benches/cache_memory.py` runs, and the cache stays within its bytes."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benches" / "cache_memory.py"
LIMIT = 4 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing tells the memory of a process")
def test_the_cache_fills_and_stays_within_its_bytes() -> None:
    arguments = ["--requests", "60", "--cache-mib", "4", "--steps", "6", "--csv"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [int(row["requests"]) for row in rows] == [10, 20, 30, 40, 50, 60]
    held = [int(row["cache_bytes"]) for row in rows]
    assert max(held) <= LIMIT
    assert held[-1] > LIMIT // 2
    grown = int(rows[-1]["resident_bytes"]) - int(rows[2]["resident_bytes"])
    assert grown < LIMIT, "what is evicted is freed"
