"""`edgewise bench`: how fast this computer runs a model, or the shapes of one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise import benchmark, checks, hub
from edgewise.benchmark import Measured, MediaShape, Plan
from edgewise.cli import bench_tables

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands

FULL_PROMPTS = (128, 512, 2048, 8192)
FULL_DEPTHS = (0, 2048, 8192)
FULL_IMAGE = MediaShape(640, 480)


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "bench",
        help="measure speed and memory",
        description=(
            "Measures opening, reading, seeing, writing, and memory, beside what the machine is capable of; "
            "medians of several rounds."
        ),
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", metavar="MODEL", nargs="?", help="folder, file, hub id or demo")
    what.add_argument(
        "--shapes", choices=benchmark.SHAPES, help="instead, random weights in the true shapes of this size"
    )
    parser.add_argument("--recipe", default="int4", help="formats of the random weights (int4)")
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="of the shapes, measure the first N layers only and estimate all: for models too large for here",
    )
    parser.add_argument("--dtype", default="auto", help="how the model is opened (auto)")
    parser.add_argument("--kv-dtype", default="auto", help="how keys and values are held (auto)")
    parser.add_argument("--threads", type=int, help="how many to compute with")
    _add_amounts(parser)
    parser.add_argument(
        "--breakdown", action="store_true", help="tell where the time goes, by kind of operation"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_amounts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt",
        type=int,
        action="append",
        metavar="N",
        help="tokens of the prompt, repeatable (512, or none beside images and videos)",
    )
    parser.add_argument(
        "--depth",
        type=int,
        action="append",
        metavar="N",
        help="tokens in the context where writing is measured, repeatable (after each prompt)",
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
    parser.add_argument(
        "--full",
        action="store_true",
        help="prompts of 128, 512, 2048 and 8192 tokens, writing after 0, 2048 and 8192, and an image",
    )
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to write (64)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each kind (3)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    plan = _plan(arguments)
    if arguments.shapes is None:
        if arguments.layers is not None:
            raise ValueError("layers: only random weights (--shapes) can be cut to some layers")
        measured = _measure(hub.resolve(arguments.model), plan, arguments.full)
    else:
        measured = _measure_shapes(arguments, plan)
    print(json.dumps(measured.to_dict(), indent=1) if arguments.json else bench_tables.text(measured))
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    media = [*map(MediaShape.image, arguments.image), *map(MediaShape.video, arguments.video)]
    usual = [] if media else [512]
    lengths = arguments.prompt or (list(FULL_PROMPTS) if arguments.full else usual)
    depths = arguments.depth or (list(FULL_DEPTHS) if arguments.full else None)
    depth = checks.Range(int, 0)
    return Plan(
        prompt_lengths=[checks.positive("prompt", length) for length in lengths],
        depths=None if depths is None else [depth.check("depth", each) for each in depths],
        media=media,
        new_tokens=checks.positive("new_tokens", arguments.new_tokens),
        rounds=checks.positive("rounds", arguments.rounds),
        dtype=arguments.dtype,
        kv_dtype=arguments.kv_dtype,
        threads=checks.threads(arguments.threads),
        breakdown=arguments.breakdown,
    )


def _measure_shapes(arguments: argparse.Namespace, plan: Plan) -> Measured:
    config, layers = benchmark.shapes(arguments.shapes), None
    if arguments.layers is not None:
        layers = benchmark.layer_count(config)
    with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as folder:
        path = Path(folder) / "random.safetensors"
        benchmark.write_random(arguments.shapes, path, arguments.recipe, arguments.layers)
        return _measure(str(path), plan, arguments.full, layers)


def _measure(path: str, plan: Plan, full: bool, layers: int | None = None) -> Measured:
    if full and not plan.media and benchmark.sees(path, plan.dtype):
        plan = dataclasses.replace(plan, media=[FULL_IMAGE])
    return benchmark.measure(path, plan, layers)
