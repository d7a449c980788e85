"""The stub of the native module says what the module has."""

import subprocess
import sys
from pathlib import Path

ALLOWED = "edgewise._native.__all__  # PyO3's own list\n"


def test_stub_matches_the_built_module(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--allowlist", str(allowed)]
    result = subprocess.run([*command, "edgewise._native"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
