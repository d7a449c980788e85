"""The recordings under `tests/golden`: where they are, how they are read and compared."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

FOLDER = Path(__file__).parents[1] / "golden"

TEXT_CASES = [
    "dense_text",
    "dense_text_d128",
    "dense_text_kv_groups/v2x_tied",
    "dense_text_kv_groups/v2x_untied",
    "dense_text_kv_groups/veq_tied",
    "dense_text_kv_groups/veq_untied",
    "yarn",
    "moe_text",
    "qwen3_next_text",
    "qwen3",
    "qwen3_moe",
    "llama",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Prompt:
    """What the original code computed for one prompt of T tokens."""

    ids: list[int]
    greedy: list[int]
    greedy_margin: Array
    """Gap between the two best logits where each greedy token was chosen."""
    trace: dict[str, Array]
    """Arrays by the names `Model.trace` gives them; with `_tail` appended, the last rows only."""


@cache
def read_json(name: str) -> Any:
    """A JSON file under the golden folder."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@cache
def arrays(case: str) -> dict[str, Array]:
    """All arrays of a case, as recorded."""
    return load_file(FOLDER / case / "case.safetensors")


def prompt(case: str, index: int) -> Prompt:
    """One prompt of a model case."""
    prefix = f"seq{index}."
    recorded = {
        name.removeprefix(prefix): array for name, array in arrays(case).items() if name.startswith(prefix)
    }
    ids, greedy, margin = (recorded.pop(name) for name in ["input_ids", "greedy", "greedy_margin"])
    return Prompt(ids=ids.tolist(), greedy=greedy.tolist(), greedy_margin=margin, trace=recorded)


def prompts() -> list[tuple[str, int]]:
    """Every (case, prompt index) of the model cases."""
    return [
        (case, index)
        for case in TEXT_CASES
        for index in range(len(read_json(f"{case}/case.json")["lengths"]))
    ]


def tolerance(case: str, array: str) -> float:
    """The absolute tolerance of a case for one of its arrays."""
    kind = array.removesuffix("_tail").rpartition(".")[2]
    groups = {"logits": "logits", "embed": "hidden", "hidden": "hidden", "final_norm": "hidden"}
    return float(read_json(f"{case}/case.json")["tolerances"][groups.get(kind, "states")])


def difference(name: str, got: Array, want: Array, tolerance: float) -> str | None:
    """Say how `got` differs from `want`, or None if it agrees. NaN and infinities differ."""
    if got.shape != want.shape:
        return f"{name}: shape {got.shape}, recorded {want.shape}"
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    wrong = ~(error <= tolerance)
    if not wrong.any():
        return None
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{name}: {wrong.sum()} of {wrong.size} values off by more than {tolerance:g} "
        f"(worst {error.max():.3g}), first at {first}: {got[first]:.6g}, recorded {want[first]:.6g}"
    )
