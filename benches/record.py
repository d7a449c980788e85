"""Measures with `edgewise bench` and writes records: speeds, and where the time goes.

    python benches/record.py zen5-2vcpu --shapes 0.8B --shapes 2B

Two files appear in `benches/record/MACHINE`: `DATE.csv` and `DATE-breakdown.csv`. Options behind `--` go to
every `edgewise bench`, such as `-- --full` or `-- --rounds 5`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import provenance

RECORD = Path(__file__).parent / "record"
Row = dict[str, Any]


def measure(shapes: str, layers: int | None, options: list[str]) -> Row:
    """What `edgewise bench` found."""
    command = [
        sys.executable,
        "-m",
        "edgewise",
        "bench",
        "--shapes",
        shapes,
        "--breakdown",
        "--json",
        *options,
    ]
    command += [] if layers is None else ["--layers", str(layers)]
    found: Row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def speeds(found: Row) -> Iterator[Row]:
    """A line for each figure; `share` is the part of the machine's limit that was reached."""
    yield {"what": "weights_mb", "value": found["weight_bytes"] / 1e6}
    yield {"what": "open_ms", "value": 1e3 * found["open_seconds"]}
    yield {"what": "open_to_first_token_ms", "value": 1e3 * found["first_token_seconds"]}
    for what in ("prefill", "decode"):
        for tokens, rate in found[f"{what}_tokens_per_second"].items():
            share = found[f"{what}_shares"].get(tokens, {}).get("share")
            yield {"what": f"{what}_tokens_per_s", "tokens": tokens, "value": rate, "share": share}
        if found["estimate"] is not None:
            for tokens, rate in found["estimate"][f"{what}_tokens_per_second"].items():
                yield {
                    "what": f"{what}_tokens_per_s_estimated_for_all_layers",
                    "tokens": tokens,
                    "value": rate,
                }
    for size, seen in found["media"].items():
        yield {"what": f"{size}_to_first_token_ms", "tokens": seen["prompt_tokens"]} | {
            "value": 1e3 * seen["first_token_seconds"]
        }
    if found["peak_memory_bytes"] is not None:
        yield {"what": "peak_memory_mb", "value": found["peak_memory_bytes"] / 1e6}
    for name, unit in (
        ("memory_bytes", "GB"),
        ("mapped_bytes", "GB"),
        ("int8_operations", "G"),
        ("f32_operations", "G"),
    ):
        limit = found["limits"][f"{name}_per_second"]
        if limit is not None:
            yield {"what": f"limit_{name.split('_')[0]}_{unit}_per_s", "value": limit / 1e9}


def breakdown(found: Row) -> Iterator[Row]:
    """A line for each kind of operation."""
    for what, whole in found["breakdown"].items():
        for operation, spent in whole["operations"].items():
            yield {
                "pass": what,
                "tokens": whole["tokens"],
                "operation": operation,
                "share": spent["share"],
                "ms": 1e3 * spent["seconds"],
                "mb": spent["bytes"] / 1e6,
                "gop": spent["operations"] / 1e9,
            }


def write(path: Path, head: list[str], rows: list[Row], load: float) -> None:
    with path.open("w", newline="") as file:
        file.write(provenance.comment(load))
        writer = csv.DictWriter(file, head, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{x:.4g}" if isinstance(x, float) else x for key, x in row.items()})
    print(path)


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Arguments before and behind the first `--`."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("machine", help="the folder below benches/record")
    parser.add_argument(
        "--shapes", action="append", required=True, help="0.8B, 2B, ..., or SIZE:N for its first N layers"
    )
    parser.add_argument("--folder", type=Path, default=RECORD, help="instead of benches/record")
    own, options = split(sys.argv[1:])
    arguments = parser.parse_args(own)
    load, folder = os.getloadavg()[0], arguments.folder / arguments.machine
    figures, parts = [], []
    for shapes in arguments.shapes:
        size, _, layers = shapes.partition(":")
        found = measure(size, int(layers) if layers else None, options)
        about = {
            "shapes": size,
            "layers": layers or "all",
            "tier": found["tier"],
            "threads": found["threads"],
        }
        figures += [{**about, **row} for row in speeds(found)]
        parts += [{**about, **row} for row in breakdown(found)]
    folder.mkdir(parents=True, exist_ok=True)
    about_head, date = ["shapes", "layers", "tier", "threads"], datetime.date.today()
    write(folder / f"{date}.csv", [*about_head, "what", "tokens", "value", "share"], figures, load)
    head = [*about_head, "pass", "tokens", "operation", "share", "ms", "mb", "gop"]
    write(folder / f"{date}-breakdown.csv", head, parts, load)


if __name__ == "__main__":
    main()
