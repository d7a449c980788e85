"""Compute logits of the recorded models and of the demo, with all between, and write them to a file.

    python tests/python/every_bit.py FILE

Another processor's file must hold the same bits: `tools/emulate_arm.py` compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

import golden
import test_vision_reference as vision
from edgewise import Model, _native
from golden import Array

TEXT = [
    ("demo", "auto", "auto", 150),
    ("demo", "auto", "int8", 100),
    *[(case, "f32", "auto", 80) for case in golden.TEXT_CASES],
    ("dense_text_d128", "int4", "auto", 150),
    ("dense_text_d128", "int8", "int8", 150),
    ("dense_text_kv_groups/v2x_untied", "int4", "auto", 80),
    ("dense_text", "bf16", "auto", 80),
    ("moe_text", "int4", "auto", 100),
    ("dense_text_d128", "int4_asym", "auto", 50),
    ("qwen3_next_text", "int8", "int8", 70),
    ("qwen3_moe", "int4", "f16", 70),
]
"""Model, dtype or name of a recipe beside `tests/golden`, kv_dtype and number of tokens."""
STEP = 7
"""Tokens read at a time, in the second reading."""
PICTURES = [("image", "img0"), ("image_pos64", "img1"), ("deepstack_qwen3_vl", "img0"), ("moe_image", "img0")]


def main() -> None:
    [target] = sys.argv[1:]
    found: dict[str, Array] = {}
    for name, dtype, kv_dtype, tokens in TEXT:
        add(found, f"{name} {dtype} {kv_dtype}", text(name, dtype, kv_dtype, tokens))
    for case, picture in PICTURES:
        add(found, f"{case} {picture}", seen(case, picture))
    np.savez(target, allow_pickle=False, **found)
    print(f"{_native.active_tier()}: {len(found)} arrays, {sum(a.size for a in found.values())} numbers")


def add(found: dict[str, Array], prefix: str, arrays: Iterator[tuple[str, Array]]) -> None:
    """Keep `arrays` under names of their own."""
    for name, array in arrays:
        found[f"{prefix}: {name}".replace("/", "_")] = array


def text(name: str, dtype: str, kv_dtype: str, tokens: int) -> Iterator[tuple[str, Array]]:
    """Yield all layers of a text read at once, the logits when it is read in pieces, and a sampled answer."""
    path = name if name == "demo" else str(golden.FOLDER / name)
    recipe = golden.FOLDER.with_name(f"{dtype}.json")
    options = {"recipe": str(recipe)} if recipe.exists() else {"dtype": dtype}
    model = Model.from_pretrained(path, kv_dtype=kv_dtype, threads=2, **options)  # type: ignore[arg-type]
    ids = [(i * 7919 + i * i) % model.vocab_size for i in range(tokens)]
    yield from model.trace(ids).items()
    sequence = model.sequence()
    for start in range(0, tokens, STEP):
        sequence.append(ids[start : start + STEP])
        yield f"logits after {min(start + STEP, tokens)}", sequence.logits()
    sampled = model.generate(ids[:10], temperature=0.8, top_k=20, top_p=0.9, seed=3, max_new_tokens=20)
    yield "sampled", np.array(sampled.token_ids)


def seen(case: str, picture: str) -> Iterator[tuple[str, Array]]:
    """Yield the features of a recorded picture."""
    engine = vision.engine(case)
    for i, group in enumerate(vision.groups_of(case, picture)):
        features = engine.encode(group.pixel_values, group.grid_hw)
        for j, array in enumerate([features.embeddings, *features.deepstack]):
            yield f"group {i}, features {j}", array


if __name__ == "__main__":
    main()
