"""Record small models of the original code: qwen3, qwen3_moe, llama and moe_image of `tests/golden`.

    pip install torch transformers safetensors
    python tools/record_siblings.py [--out tests/golden]

Random weights in float32 on the CPU. Seeds are tried until the greedy continuation is clear (gap of the two
best logits) and so is the choice of experts, so that rounding cannot change either.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import make_golden

Arrays = dict[str, NDArray[Any]]

CASES = ["qwen3", "qwen3_moe", "llama", "moe_image"]
GREEDY = 32
LENGTHS = [5, 70]
GREEDY_MARGIN = 3e-3
ROUTER_MARGIN = 5e-5
DEVIATION = 0.3
"""Of the weights: logits then have a deviation of about 2, as in the other cases."""

SHAPES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def build(case: str, seed: int) -> PreTrainedModel:
    """Return the model of a case with the weights of a seed."""
    torch.manual_seed(seed)
    model: PreTrainedModel
    if case == "qwen3":
        rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
        config = Qwen3Config(**SHAPES, intermediate_size=96, rope_parameters=rope, tie_word_embeddings=True)
        model = Qwen3ForCausalLM(config)
    elif case == "llama":
        shapes = SHAPES | {"head_dim": None}  # hidden_size / num_attention_heads, as its files leave it
        rope = {"rope_type": "default", "rope_theta": 100_000.0}
        llama_config = LlamaConfig(**shapes, intermediate_size=96, rope_parameters=rope, rms_norm_eps=1e-5)
        model = LlamaForCausalLM(llama_config)
    else:
        moe_config = Qwen3MoeConfig(
            **SHAPES,
            intermediate_size=96,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000_000.0},
            moe_intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            mlp_only_layers=[1],
        )
        model = Qwen3MoeForCausalLM(moe_config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=DEVIATION)
    return model.float().eval()


@contextmanager
def watched(model: PreTrainedModel, kept: Arrays) -> Iterator[None]:
    """Keep what passes between the modules."""

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            kept[name] = value[0].numpy().copy()

        return hook

    def keep_routes(prefix: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            logits, weights, experts = output
            kept[f"{prefix}.router_logits"] = logits.numpy().copy()
            kept[f"{prefix}.router_weights"] = weights.numpy().copy()
            kept[f"{prefix}.selected_experts"] = experts.numpy().copy()

        return hook

    inner = model.model
    handles = [
        inner.embed_tokens.register_forward_hook(keep("embed")),
        inner.norm.register_forward_hook(keep("final_norm")),
    ]
    for i, layer in enumerate(inner.layers):
        handles.append(layer.register_forward_hook(keep(f"layer{i}.hidden")))
        if hasattr(layer.mlp, "gate"):
            handles.append(layer.mlp.gate.register_forward_hook(keep_routes(f"layer{i}")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(model: PreTrainedModel, ids: list[int]) -> Arrays:
    """Return everything of one prompt and its greedy continuation."""
    kept: Arrays = {"input_ids": np.array(ids)}
    cache = DynamicCache(config=model.config)
    with watched(model, kept):
        logits = model(torch.tensor([ids]), past_key_values=cache).logits[0]
    kept["logits"] = logits.numpy().copy()
    for i in range(model.config.num_hidden_layers):
        kept[f"layer{i}.k_cache"] = cache.layers[i].keys[0].numpy().copy()
        kept[f"layer{i}.v_cache"] = cache.layers[i].values[0].numpy().copy()
    last, greedy, margins = logits[-1], [], []
    for _ in range(GREEDY):
        best = last.topk(2).values
        margins.append(float(best[0] - best[1]))
        greedy.append(int(last.argmax()))
        last = model(torch.tensor([[greedy[-1]]]), past_key_values=cache).logits[0, -1]
    kept["greedy"] = np.array(greedy)
    kept["greedy_margin"] = np.array(margins, np.float32)
    return kept


@torch.no_grad()
def noise(model: PreTrainedModel, ids: list[int]) -> float:
    """Return how far the code is from itself when it reads token by token."""
    at_once = model(torch.tensor([ids])).logits[0]
    cache = DynamicCache(config=model.config)
    steps = [model(torch.tensor([[i]]), past_key_values=cache).logits[0, -1] for i in ids]
    return float((torch.stack(steps) - at_once).abs().max())


def router_margin(arrays: Arrays, chosen: int) -> float:
    """Return the smallest gap of probabilities between the last expert chosen and the next."""
    gaps = [np.inf]
    for name, logits in arrays.items():
        if name.endswith("router_logits"):
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            sorted_weights = np.sort(weights / weights.sum(axis=-1, keepdims=True), axis=-1)[:, ::-1]
            gaps.append(float((sorted_weights[:, chosen - 1] - sorted_weights[:, chosen]).min()))
    return min(gaps)


def find(case: str) -> tuple[int, PreTrainedModel, list[Arrays], list[list[int]]]:
    """Return the first seed whose choices are clear, and all of it."""
    for seed in range(2000):
        model = build(case, seed)
        generator = torch.Generator().manual_seed(seed)
        prompts = [
            torch.randint(0, SHAPES["vocab_size"], (length,), generator=generator).tolist()
            for length in LENGTHS
        ]
        runs = [record(model, ids) for ids in prompts]
        chosen = getattr(model.config, "num_experts_per_tok", 1)
        greedy_clear = all(run["greedy_margin"].min() >= GREEDY_MARGIN for run in runs)
        lively = all(len(set(run["greedy"].tolist())) >= GREEDY // 2 for run in runs)
        if greedy_clear and lively and all(router_margin(run, chosen) >= ROUTER_MARGIN for run in runs):
            return seed, model, runs, prompts
    raise SystemExit(f"{case}: no seed gives clear choices")


def write(case: str, out: Path) -> None:
    seed, model, runs, prompts = find(case)
    folder = out / case
    model.save_pretrained(folder)
    arrays = {f"seq{i}.{name}": array for i, run in enumerate(runs) for name, array in run.items()}
    make_golden.write_arrays(make_golden.trim_text(case, arrays), folder / "case.safetensors")
    (folder / "generation_config.json").unlink(missing_ok=True)
    tolerance = {"logits": 1e-3, "hidden": 1e-3, "states": 1e-3}
    record = {
        "case": case,
        "description": f"{type(model).__name__}, 4 layers, vocabulary 384, random weights",
        "seed": seed,
        "lengths": LENGTHS,
        "min_greedy_margin": min(float(run["greedy_margin"].min()) for run in runs),
        "observed_hf_noise": {"token_by_token_vs_prefill_logits": noise(model, prompts[-1])},
        "tolerances": tolerance,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    make_golden.write_json(record, folder / "case.json")
    print(json.dumps(record, indent=1), f"deviation {runs[-1]['logits'].std():.2f}")


GRID = (6, 10)
"""Rows and columns of the image's patches; four patches are a token."""
SEEING_NOISE = 2e-4
"""How far the original code in float32 may be from itself in float64."""
BEFORE, AFTER = 7, 12
"""Tokens of text around the image."""


def build_seeing(seed: int) -> PreTrainedModel:
    """Return a Qwen3.5 with experts and the tower of the case `image`."""
    torch.manual_seed(seed)
    golden = Path(__file__).parents[1] / "tests" / "golden"
    text = json.loads((golden / "moe_text" / "config.json").read_text())
    image = json.loads((golden / "image" / "config.json").read_text())
    vision = image["vision_config"] | {"out_hidden_size": text["hidden_size"], "depth": 2}
    vision["model_type"] = "qwen3_5_moe_vision"
    tokens = {key: image[key] for key in image if key.endswith("_token_id") and image[key] is not None}
    config = Qwen3_5MoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    model = Qwen3_5MoeForConditionalGeneration(config)
    model.set_experts_implementation("eager")  # the grouped products know no float64
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            torch.nn.init.uniform_(parameter, 0.0, 1.5)
        elif "norm" in name and name.endswith("weight"):
            centre = 1.0 if ".visual." in name or ".linear_attn." in name else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
        else:
            torch.nn.init.normal_(parameter, std=min(DEVIATION, 2 / parameter.shape[-1] ** 0.5))
    return model.float().eval()


@torch.no_grad()
def record_seeing(model: PreTrainedModel, seed: int) -> Arrays:
    """Return one prompt with an image, its logits and its greedy continuation."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    rows, columns = GRID
    patch = 3 * 2 * config.vision_config.patch_size**2
    levels = torch.randint(0, 256, (rows * columns, patch), generator=generator, dtype=torch.uint8)
    pixels = (levels.float() / 127.5 - 1).to(model.dtype)
    words = torch.randint(0, 240, (BEFORE + AFTER,), generator=generator).tolist()
    image = [config.image_token_id] * (rows * columns // 4)
    ids = words[:BEFORE] + image + words[BEFORE:]
    grid = torch.tensor([[1, rows, columns]])
    kinds = torch.tensor([[int(i == config.image_token_id) for i in ids]])
    cache = DynamicCache(config=config.text_config)
    first = model(
        input_ids=torch.tensor([ids]),
        pixel_values=pixels,
        image_grid_thw=grid,
        mm_token_type_ids=kinds,
        past_key_values=cache,
    )
    last, greedy, margins = first.logits[0, -1], [], []
    position = int(model.model.rope_deltas[0]) + len(ids)
    for step in range(GREEDY):
        best = last.topk(2).values
        margins.append(float(best[0] - best[1]))
        greedy.append(int(last.argmax()))
        last = model(
            input_ids=torch.tensor([[greedy[-1]]]),
            position_ids=torch.full((3, 1, 1), position + step),
            past_key_values=cache,
        ).logits[0, -1]
    return {
        "input_ids": np.array(ids),
        "image_grid_thw": grid.numpy(),
        "pixel_levels": levels.numpy(),
        "logits": first.logits[0].numpy().copy(),
        "greedy": np.array(greedy),
        "greedy_margin": np.array(margins, np.float32),
    }


def write_seeing(out: Path) -> None:
    for seed in range(2000):
        model = build_seeing(seed)
        arrays = record_seeing(model, seed)
        distinct = len(set(arrays["greedy"].tolist()))
        if arrays["greedy_margin"].min() >= GREEDY_MARGIN and distinct >= GREEDY // 2:
            exact = record_seeing(build_seeing(seed).double(), seed)
            rounding = float(np.abs(exact["logits"] - arrays["logits"]).max())
            if rounding <= SEEING_NOISE:
                break
    else:
        raise SystemExit("moe_image: no seed gives clear choices")
    folder = out / "moe_image"
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    make_golden.write_arrays(arrays, folder / "case.safetensors")
    record = {
        "case": "moe_image",
        "description": "Qwen3.5 with experts and a tower of 2 blocks, random weights; one image of noise",
        "seed": seed,
        "min_greedy_margin": float(arrays["greedy_margin"].min()),
        "observed_hf_noise": {"float32_vs_float64_logits": rounding},
        "tolerances": {"logits": 1e-3},
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    make_golden.write_json(record, folder / "case.json")
    print(json.dumps(record, indent=1), f"deviation {arrays['logits'].std():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    options = parser.parse_args()
    for case in options.cases:
        if case == "moe_image":
            write_seeing(options.out)
        else:
            write(case, options.out)


if __name__ == "__main__":
    main()
