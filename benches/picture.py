"""Draws a record of `compare.py` as bars.

    python benches/picture.py benches/record/zen4-2vcpu/2026-11-27-llama.cpp-neighbours.csv docs/speed.svg

Each measure is a pair of bars, edgewise above llama.cpp, as long as how good it is: of the two, the better
one fills the width. So more tokens a second make a longer bar, and so do fewer milliseconds or megabytes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

LABELS = {
    "prefill_512_tokens_per_s": ("read 512 tokens", "{:.0f} tokens/s", True),
    "decode_at_0_tokens_per_s": ("write", "{:.0f} tokens/s", True),
    "open_to_first_token_ms": ("open to first token", "{:.0f} ms", False),
    "peak_memory_mb": ("peak memory", "{:.0f} MB", False),
}
"""Of each measure: its name, how a figure is written, and whether more is better."""
ENGINES = {"edgewise": "#2a7f9e", "llama.cpp": "#9a9a9a"}
LEFT, BAR, GAP, WIDTH, FULL = 150, 18, 14, 640, 360


def rows(record: Path) -> Iterator[tuple[str, dict[str, tuple[float, str]]]]:
    """Of each measure its name, and for each engine its share of the better one and its figure in words."""
    with record.open() as lines:
        table = {row["what"]: row for row in csv.DictReader(line for line in lines if line[0] != "#")}
    for what, (name, form, more) in LABELS.items():
        row = table.get(what, {})
        if not all(row.get(engine) for engine in ENGINES):
            continue
        values = {engine: float(row[engine]) for engine in ENGINES}
        best = max(values.values()) if more else min(values.values())
        share = {engine: value / best if more else best / value for engine, value in values.items()}
        yield name, {engine: (share[engine], form.format(values[engine])) for engine in ENGINES}


def draw(record: Path) -> str:
    """The picture as SVG.

    Raises:
        ValueError: the record has no measure of both engines.
    """
    measures = list(rows(record))
    if not measures:
        raise ValueError(f"{record}: no measure of both engines")
    parts, y = [], GAP
    for name, engines in measures:
        parts.append(f'<text x="{LEFT - 10}" y="{y + BAR + 5}" text-anchor="end">{escape(name)}</text>')
        for engine, (share, figure) in engines.items():
            width = max(1, round(FULL * share))
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width}" height="{BAR - 2}" fill="{ENGINES[engine]}"/>'
            )
            text = escape(f"{engine} {figure}")
            parts.append(f'<text x="{LEFT + width + 6}" y="{y + BAR - 5}">{text}</text>')
            y += BAR
        y += GAP
    style = "text{font:13px sans-serif;fill:#555}@media(prefers-color-scheme:dark){text{fill:#ccc}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" role="img">'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    options.picture.write_text(draw(options.record))


if __name__ == "__main__":
    main()
