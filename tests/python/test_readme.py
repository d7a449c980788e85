"""What the README and docs show is what happens, and the README's file map is the tree."""

import doctest
import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
VARYING = re.compile(r"[\d.]+(?= a second| threads| s,)")
"""Numbers that another machine or run changes."""
UNMAPPED = {".gitignore", "tests", "python", "rust", "docs", "tools", ".ci"}
"""At the top and not in the map: what has no need to be explained, and folders whose parts are."""


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def transcripts() -> list[tuple[str, str]]:
    shown = [block for text in PAGES.values() for block in blocks("console", text)]
    parts = [part for block in shown for part in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts if part)]


def file_map() -> list[str]:
    """Paths of the file map, indented ones below the last one that is not."""
    paths, folder = [], ""
    for line in blocks("text", PAGES["README.md"])[-1].splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def tracked() -> list[str]:
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout, so the tree's own files cannot be told from others")
    return result.stdout.splitlines()


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks("python", text)])
def test_python_examples(page: str) -> None:
    source = "\n".join(blocks("python", PAGES[page]))
    parsed = doctest.DocTestParser().get_doctest(source, {}, page, page, 0)
    assert parsed.examples
    report: list[str] = []
    results = doctest.DocTestRunner().run(parsed, out=report.append)
    assert results.failed == 0, "".join(report)


@pytest.mark.parametrize(("command", "output"), transcripts())
def test_transcripts(command: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    program, *arguments = shlex.split(command)
    path = Path(sysconfig.get_path("scripts")) / program
    environment = {name: value for name, value in os.environ.items() if name != "EDGEWISE_ISA"}
    result = subprocess.run(
        [path, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert VARYING.sub("N", result.stdout) == VARYING.sub("N", output)


def test_file_map_names_what_is_there() -> None:
    missing = [path for path in file_map() if not (ROOT / path).exists()]
    assert not missing


def test_file_map_is_complete() -> None:
    mapped, files = set(file_map()), tracked()
    top = {file.split("/")[0] for file in files} - UNMAPPED
    assert not {name for name in top if name not in mapped and f"{name}/" not in mapped}
    assert not {file for file in files if file.startswith("docs/") and file not in mapped}
    package = {"/".join(file.split("/")[:3]) for file in files if file.startswith("python/edgewise/")}
    assert not {name for name in package if name not in mapped and f"{name}/" not in mapped}
    rust = {"/".join(file.split("/")[:2]) for file in files if file.startswith("rust/")}
    assert not {name for name in rust if name not in mapped and f"{name}/" not in mapped}
