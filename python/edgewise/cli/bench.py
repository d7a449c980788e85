"""`edgewise bench`: how fast this computer runs a model, or the shapes of one."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise import benchmark, checks, hub
from edgewise.benchmark import Measured, MeasuredMedia, MediaShape, Plan
from edgewise.cli import terminal

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "bench",
        help="measure speed and memory",
        description="Measures opening, reading, seeing, writing, and memory; medians of several rounds.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", metavar="MODEL", nargs="?", help="folder, file, hub id or demo")
    what.add_argument(
        "--shapes", choices=benchmark.SHAPES, help="instead, random weights in the true shapes of this size"
    )
    parser.add_argument("--recipe", default="int4", help="formats of the random weights (int4)")
    parser.add_argument("--dtype", default="auto", help="how the model is opened (auto)")
    parser.add_argument("--threads", type=int, help="how many to compute with")
    parser.add_argument(
        "--prompt",
        type=int,
        action="append",
        metavar="N",
        help="tokens of the prompt, repeatable (512, or none beside images and videos)",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="WxH",
        help="pixels of an image, such as 640x480, repeatable: time to the first token, and memory",
    )
    parser.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="WxHxSECONDS",
        help="the same with a video, such as 448x448x10",
    )
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to write (64)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each kind (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    images, videos = map(MediaShape.image, arguments.image), map(MediaShape.video, arguments.video)
    media = [*images, *videos]
    lengths = arguments.prompt or ([] if media else [512])
    plan = Plan(
        prompt_lengths=[checks.positive("prompt", length) for length in lengths],
        media=media,
        new_tokens=checks.positive("new_tokens", arguments.new_tokens),
        rounds=checks.positive("rounds", arguments.rounds),
        dtype=arguments.dtype,
        threads=checks.threads(arguments.threads),
    )
    if arguments.shapes is None:
        measured = benchmark.measure(hub.resolve(arguments.model), plan)
    else:
        with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as folder:
            path = Path(folder) / "random.safetensors"
            benchmark.write_random(arguments.shapes, path, arguments.recipe)
            measured = benchmark.measure(str(path), plan)
    print(json.dumps(measured.to_dict(), indent=1) if arguments.json else _text(measured))
    return 0


def _text(measured: Measured) -> str:
    rows = [
        ["weights", terminal.size(measured.weight_bytes)],
        ["open", _milliseconds(measured.open_seconds)],
        ["open to first token", _milliseconds(measured.first_token_seconds)],
    ]
    for length, rate in measured.prefill_tokens_per_second.items():
        rows.append([f"read {length} tokens", f"{rate:.1f} tokens/s"])
    for depth, rate in measured.decode_tokens_per_second.items():
        rows.append([f"write after {depth} tokens", f"{rate:.1f} tokens/s"])
    rows += _memory(measured.peak_memory_bytes)
    for size, seen in measured.media.items():
        rows += _media_rows(size, seen)
    return f"{measured.tier}, {measured.threads} threads\n{terminal.table(rows)}"


def _media_rows(size: str, seen: MeasuredMedia) -> list[list[str]]:
    steps = {
        "prepare": seen.prepare_seconds,
        "vision": seen.vision_seconds,
        "read": seen.prefill_seconds,
        "pixels to first token": seen.first_token_seconds,
    }
    text = seen.prompt_tokens - seen.tokens
    rows = [[f"see {size}", f"{seen.tokens} + {text} tokens"]]
    rows += [[f"  {step}", _milliseconds(seconds)] for step, seconds in steps.items()]
    return rows + [[f"  {name}", size] for name, size in _memory(seen.peak_memory_bytes)]


def _memory(peak: int | None) -> list[list[str]]:
    return [] if peak is None else [["peak memory", terminal.size(peak)]]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
