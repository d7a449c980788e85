"""Checkpoints of random weights in the true shapes of the family."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from edgewise import _native, checks

SHAPES = ("0.8B", "2B", "4B", "9B", "35B-A3B")
"""Sizes of the family whose true shapes come with the package."""


def shapes(size: str) -> str:
    """Return the `config.json` of a size of the family."""
    return (resources.files("edgewise") / "shapes" / f"{size}.json").read_text()


def layer_count(config: str) -> int:
    """Return how many decoder layers the model of a `config.json` has."""
    return int(_text_config(json.loads(config))["num_hidden_layers"])


def with_layers(config: str, layers: int) -> str:
    """Return the `config.json` of the same model cut to its first layers.

    Raises:
        ValueError: if it has not so many, or the pattern of its kinds of layers would be cut.
    """
    parsed = json.loads(config)
    text = _text_config(parsed)
    checks.Range(int, 1, text["num_hidden_layers"]).check("layers", layers)
    period = text.get("full_attention_interval", 1)
    if layers % period:
        raise ValueError(f"layers: expected a multiple of {period}, the pattern of the layers, got {layers}")
    text["num_hidden_layers"] = layers
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:layers]
    return json.dumps(parsed, indent=1)


def write_random(size: str, destination: Path, recipe: str = "int4", layers: int | None = None) -> None:
    """Write a checkpoint of random weights in the true shapes of a size of the family, or its first layers.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if there cannot be so many layers.
    """
    config = shapes(size) if layers is None else with_layers(shapes(size), layers)
    _native.write_random(config, str(destination), recipe)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    text: dict[str, Any] = config.get("text_config", config)
    return text
