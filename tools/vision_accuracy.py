"""Print how many fresh questions about pictures and clips are answered exactly: a table of docs/pictures.md.

    make install && .venv/bin/python tools/vision_accuracy.py

The questions and the original code's answers are those of `tests/python/test_vision_accuracy.py`.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from edgewise import Model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "python"))

from accuracy import CHECKPOINT, RECORDED, Score, score, total

HEADER = ["question", "asked", "original code, float32", "edgewise, float32", "edgewise, demo file (INT4)"]


def row(name: str, exact: Score, quantised: Score) -> list[str]:
    counts = [exact.reference, exact.right, quantised.right]
    return [name, str(exact.asked), *(f"{count / exact.asked:.1%}" for count in counts)]


def table(rows: Iterable[list[str]]) -> str:
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    models = [Model.from_pretrained(CHECKPOINT, dtype="f32"), Model.from_pretrained("demo")]
    exact, quantised = ([score(model, kind) for kind in RECORDED] for model in models)
    rows = [row(*cells) for cells in zip(RECORDED, exact, quantised, strict=True)]
    print(table([*rows, row("all", total(exact), total(quantised))]))


if __name__ == "__main__":
    main()
