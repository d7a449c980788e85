"""From a model cut to its first layers to all of it.

All layers of a kind are alike and the kinds repeat, so the time of the layers grows with their number; head
and sampler come once. The last layer leaves a part of a prompt's work out, in a short model as in a long one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from edgewise.benchmark.results import Estimate
from edgewise.benchmark.text import Speeds


def estimate(
    speeds: Speeds, costs: Mapping[str, Any], weight_bytes: int, measured_layers: int, layers: int
) -> Estimate:
    """Return the speeds of `layers` layers from those of `measured_layers`.

    Args:
        speeds: what was measured.
        costs: `Engine.costs()` of the model that was measured.
        weight_bytes: of that model.
        measured_layers: how many it has.
        layers: how many the whole model has.
    """
    skipped = sum(costs["skipped_operations"].values())
    whole = sum(costs["prefill_operations"].values()) + skipped
    skipped_layers = measured_layers * skipped / whole
    reading = {
        length: statistics.median(seconds) / length / (measured_layers - skipped_layers)
        for length, seconds in speeds.reading.items()
    }
    writing = {
        depth: statistics.median(one.appending / one.tokens for one in rounds) / measured_layers
        for depth, rounds in speeds.writing.items()
    }
    choosing = {
        depth: statistics.median(one.choosing / one.tokens for one in rounds)
        for depth, rounds in speeds.writing.items()
    }
    more = (layers - measured_layers) / measured_layers
    return Estimate(
        measured_layers=measured_layers,
        layers=layers,
        weight_bytes=weight_bytes + round(more * costs["layer_bytes"]),
        prefill_seconds_per_layer=reading,
        decode_seconds_per_layer=writing,
        prefill_tokens_per_second={
            length: 1 / (seconds * (layers - skipped_layers)) for length, seconds in reading.items()
        },
        decode_tokens_per_second={
            depth: 1 / (seconds * layers + choosing[depth]) for depth, seconds in writing.items()
        },
    )
