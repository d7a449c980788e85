"""Links between the pages lead somewhere: to a file of the tree, and to a heading that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its blocks of code, in which `#` begins a comment."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What may follow `#` in a link to the page, by GitHub's rule; of headings with one name, the first."""
    headings = HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The links to files and headings that are not there, as they are written."""
    found = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Here, and `there`\n[a](#here-and-there) [b](page.md#here-and-there) ![c](page.md) [d](https://a.b/c)\n"
        "```sh\n# comment\n[e](in-code)\n```\n[f](#comment) [g](none.md) ![h](none.svg)\n[i](page.md#none)\n"
    )
    assert broken(page) == ["#comment", "none.md", "none.svg", "page.md#none"]
