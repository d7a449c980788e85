"""Arguments that several commands share: how to open a model, and how to generate."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from edgewise.model import Model
from edgewise.options import PromptArguments

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """What a command adds its parser to."""

_NUMBERS: list[tuple[str, type, str]] = [
    ("--max-new-tokens", int, "the most tokens to generate"),
    ("--temperature", float, "divides the logits; 0 takes the likeliest token each time"),
    ("--top-k", int, "only the so many likeliest tokens; 0 for all"),
    ("--top-p", float, "only the likeliest tokens that together have this probability"),
    ("--min-p", float, "only tokens at least this fraction as likely as the likeliest"),
    ("--repetition-penalty", float, "makes tokens seen before less likely when above 1"),
    ("--presence-penalty", float, "subtracted from the logit of tokens of the answer"),
    ("--frequency-penalty", float, "the same, times how often they occurred"),
    ("--seed", int, "for the same random numbers again"),
]


_MEDIA: list[tuple[str, type, str]] = [
    ("--min-pixels", int, "enlarge images and videos to so many pixels"),
    ("--max-pixels", int, "reduce them to so many; 1024 pixels of an image are a token"),
    ("--fps", float, "frames taken of each second of a video"),
    ("--num-frames", int, "frames taken of a video in all, in place of --fps"),
    ("--max-frames", int, "the most frames taken of a video"),
    ("--source-fps", float, "frames a second of a video that does not tell, such as several pictures"),
]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and how to open it."""
    parser.add_argument(
        "model", metavar="MODEL", help="folder, file, hub id such as Qwen/Qwen3.5-0.8B, or demo"
    )
    add_opening(parser)


def add_opening(parser: argparse.ArgumentParser) -> None:
    """Add how to open a model."""
    group = parser.add_argument_group("opening the model")
    group.add_argument(
        "--dtype",
        choices=["auto", "f32", "bf16", "int8", "int4"],
        default="auto",
        help="how the large matrices are held (default: int4, or as 'edgewise quantize' stored them)",
    )
    group.add_argument(
        "--kv-dtype",
        choices=["auto", "f32", "bf16", "f16", "int8"],
        default="auto",
        help="how keys and values of past tokens are held (default: f32 beside --dtype f32, else bf16)",
    )
    group.add_argument("--recipe", help="name or file: which tensors get which format")
    group.add_argument(
        "--yarn-factor",
        type=float,
        metavar="X",
        help="extend the context to so many times its length (YaRN); no more than needed",
    )
    group.add_argument("--revision", help="branch, tag or commit of a repository on the hub")
    group.add_argument("--threads", type=int, help="how many to compute with (default: see 'edgewise info')")
    group.add_argument(
        "--large-pages",
        action=argparse.BooleanOptionalAction,
        help="move weights into large pages at once, or never (default: little by little, if there is room)",
    )
    group.add_argument("--cache", action="store_true", help="keep converted weights for the next time")


def open_model(arguments: argparse.Namespace) -> Model:
    """Open the model that the arguments name, with a progress bar where that takes long."""
    return Model.from_pretrained(
        arguments.model,
        arguments.dtype,
        arguments.threads,
        kv_dtype=arguments.kv_dtype,
        recipe=arguments.recipe,
        progress=True,
        cache=arguments.cache,
        yarn_factor=arguments.yarn_factor,
        revision=arguments.revision,
        large_pages=arguments.large_pages,
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `Model.generate` that make sense in a shell."""
    group = parser.add_argument_group(
        "generation", "An argument left out takes the checkpoint's own value, where it has one."
    )
    for flag, kind, text in _NUMBERS:
        group.add_argument(flag, type=kind, help=text, metavar="N" if kind is int else "X")
    group.add_argument("--stop", action="append", metavar="TEXT", help="ends the answer; may be given again")
    group.add_argument(
        "--stop-token-id",
        action="append",
        type=int,
        metavar="ID",
        dest="stop_token_ids",
        help="the same, by id",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", default=None, help="go on after the model's own end"
    )
    group.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        dest="enable_thinking",
        help="whether to think before answering (default: up to the chat template)",
    )
    group.add_argument(
        "--on-full",
        choices=["error", "shift"],
        help="what happens at the end of the context; 'shift' drops the oldest turns (default: error)",
    )
    group.add_argument(
        "--keep-first",
        type=int,
        metavar="N",
        help="messages that a shift never drops (default: the system's)",
    )
    group.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")


def add_media(parser: argparse.ArgumentParser) -> None:
    """Add images and videos, and how to read them."""
    group = parser.add_argument_group("images and videos")
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        dest="images",
        help="shown before the question; may be given again",
    )
    group.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        dest="videos",
        help="the same, after images; several of .png, .jpg and the like are the frames of one video",
    )
    for flag, kind, text in _MEDIA:
        group.add_argument(flag, type=kind, help=text, metavar="N" if kind is int else "X")


def generation_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments for `Model.generate`, those not given left out."""
    names = [flag.removeprefix("--").replace("-", "_") for flag, _, _ in _NUMBERS + _MEDIA]
    names += ["stop", "stop_token_ids", "ignore_eos", "enable_thinking", "on_full", "keep_first"]
    values = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    return given | {"progress": sys.stderr.isatty()}


def prompt_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return those among keyword arguments for `Model.generate` that `Model.prepare` takes too."""
    return {name: value for name, value in options.items() if name in PromptArguments.__annotations__}
