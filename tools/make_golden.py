"""Make `tests/golden` from recordings of the original model code.

    python tools/make_golden.py SOURCE [--out tests/golden]

SOURCE holds three folders: `reference/` (recordings of transformers 5.23.0: one folder per case, with
`config.json`, `model.safetensors`, `case.safetensors`, `case.json`), `qwen3.5/` (the real tokenizer and chat
template) and `demo/` (the trained demo checkpoint with `samples/samples.json`). The same SOURCE gives the
same bytes.

Left out: `greedy_logits`, the states of one single-token prompt, rows before the last eight of hidden states
longer than 60 tokens, all hidden states of the text model in the cases with images, and in the delta rule
some cases, some value channels and the chunked form's results. Pixel values are kept as 8-bit levels.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import prune_tokenizer

Arrays = dict[str, NDArray[Any]]

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
]
# Hidden states of sequences longer than LONG keep their last TAIL rows: logits and caches cover the rest.
LONG = 60
TAIL = 8
# The first prompt has one token: its states of 128 x 128 say little that the last prompt's do not.
DROPPED_STATES = {"dense_text_d128": "seq0."}

# case -> value channels kept
DELTA_RULE_CASES = {
    "len1": 32,
    "len2": 32,
    "len2_no_l2norm": 32,
    "len63": 32,
    "len64": 32,
    "len65": 128,
    "len65_g_very_negative": 32,
    "len200_mixed_extremes": 32,
}

CASE_KEYS = [
    "case",
    "description",
    "lengths",
    "min_greedy_margin",
    "observed_hf_noise",
    "tolerances",
    "versions",
]
# Only the case `yarn` has these.
YARN_KEYS = ["attention_scaling", "inv_freq_table"]

IMAGE_CASES = ["image", "image_pos64", "multi_image_multi_video", "deepstack_qwen3_vl"]
CHECKPOINT_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
}
IMAGE_KINDS = {
    "greedy",
    "greedy_margin",
    "image_grid_thw",
    "input_ids",
    "logits",
    "position_ids",
    "resized_u8_pil_hv",
    "resized_u8_torchvision",
    "rope_delta",
    "torchvision_greedy",
    "video_grid_thw",
}
IMAGE_CASE_KEYS = [
    "case",
    "description",
    "images",
    "real_limit_images",
    "prompts",
    "special_ids",
    "min_greedy_margin",
    "observed_hf_noise",
    "tolerances",
    "versions",
]
VIDEO_CASE_KEYS = [
    "case",
    "description",
    "videos",
    "special_ids",
    "min_greedy_margin",
    "observed_hf_noise",
    "tolerances",
    "versions",
]
# Of the one image at the real size limits every eighth row is kept.
REAL_LIMIT_ROWS = 8

QWEN_FILES = ["chat_template.jinja", "tokenizer_config.json", "generation_config.json"]


def trim_text(case: str, arrays: Arrays) -> Arrays:
    """Drop what no test reads; keep the last rows of the hidden states of long sequences."""
    kept: Arrays = {}
    for name, array in arrays.items():
        if name.endswith("greedy_logits"):
            continue
        if name.endswith("_state") and name.startswith(DROPPED_STATES.get(case, "\0")):
            continue
        per_token = name.endswith((".hidden", ".embed", ".final_norm"))
        if per_token and len(array) > LONG:
            kept[f"{name}_tail"] = array[-TAIL:]
        else:
            kept[name] = array
    return kept


def trim_delta_rule(arrays: Arrays) -> Arrays:
    """Keep some cases, one result each, and the first value channels.

    Each value channel has its own column of the state, which no other channel reads: leaving channels out
    changes nothing in the others. The chunked form's results are dropped, they differ by less than 2e-5.
    """
    kept: Arrays = {}
    for case, channels in DELTA_RULE_CASES.items():
        for name in ["q", "k", "g", "beta"]:
            kept[f"{case}.{name}"] = arrays[f"{case}.{name}"]
        kept[f"{case}.v"] = arrays[f"{case}.v"][..., :channels]
        kept[f"{case}.out"] = arrays[f"{case}.out_recurrent"][..., :channels]
        kept[f"{case}.state"] = arrays[f"{case}.state_recurrent"][..., :channels]
        if f"{case}.initial_state" in arrays:
            kept[f"{case}.initial_state"] = arrays[f"{case}.initial_state"][..., :channels]
    return kept


def write_arrays(arrays: Arrays, path: Path) -> None:
    save_file({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, path)


def write_json(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_text_case(source: Path, case: str, out: Path) -> None:
    folder = out / case
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / case / "config.json", folder / "config.json")
    shutil.copyfile(source / case / "model.safetensors", folder / "model.safetensors")
    write_arrays(trim_text(case, load_file(source / case / "case.safetensors")), folder / "case.safetensors")
    record = json.loads((source / case / "case.json").read_text(encoding="utf-8"))
    keys = CASE_KEYS + [key for key in YARN_KEYS if key in record]
    write_json({key: record[key] for key in keys}, folder / "case.json")


def copy_delta_rule(source: Path, out: Path) -> None:
    folder = out / "delta_rule"
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(
        trim_delta_rule(load_file(source / "delta_rule" / "case.safetensors")), folder / "case.safetensors"
    )
    record = json.loads((source / "delta_rule" / "case.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in record["cases"]}
    keys = ["name", "T", "k_heads", "v_heads", "g", "beta", "use_qk_l2norm"]
    cases = [
        {key: rows[case][key] for key in keys} | {"k_dim": 128, "v_dim": channels}
        for case, channels in DELTA_RULE_CASES.items()
    ]
    write_json(
        {"cases": cases} | {key: record[key] for key in ["tolerances", "versions"]}, folder / "case.json"
    )


def copy_routing(source: Path, out: Path) -> None:
    """Keep what the routers of one prompt of the case with experts saw and chose."""
    folder = out / "routing"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = load_file(source / "moe_text" / "case.safetensors")
    kinds = ("router_logits", "router_weights", "selected_experts")
    kept = {
        name: array for name, array in arrays.items() if name.startswith("seq1.") and name.endswith(kinds)
    }
    write_arrays(kept, folder / "case.safetensors")
    record = json.loads((source / "moe_text" / "case.json").read_text(encoding="utf-8"))
    config = json.loads((source / "moe_text" / "config.json").read_text(encoding="utf-8"))
    write_json(
        {"layers": config["num_hidden_layers"]}
        | {key: config[key] for key in ["num_experts", "num_experts_per_tok"]}
        | {key: record[key] for key in ["min_router_margin", "versions"]},
        folder / "case.json",
    )


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the recorded strings and templates, and cut the tokenizer down to what they reach."""
    for case in ["tokenizer", "chat_template"]:
        (out / case).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "reference" / case / "case.json", out / case / "case.json")
    for name in QWEN_FILES:
        shutil.copyfile(source / "qwen3.5" / name, out / "tokenizer" / name)
    prune_tokenizer.prune(source / "qwen3.5" / "tokenizer.json", out, out / "tokenizer" / "tokenizer.json")


def copy_demo_samples(source: Path, out: Path) -> None:
    """Keep ids, answers and truth of each sample, and its picture or frames."""
    samples = json.loads((source / "samples" / "samples.json").read_text(encoding="utf-8"))
    text_keys = ["kind", "question", "truth", "input_ids", "greedy", "text"]
    kept = [
        {key: sample[key] for key in text_keys} if sample["kind"] == "text" else sample for sample in samples
    ]
    lines = ",\n".join(json.dumps(sample, ensure_ascii=False) for sample in kept)
    (out / "demo_samples.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    pictures = out / "demo_samples"
    pictures.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        for file in sample.get("files", [sample["file"]] if "file" in sample else []):
            shutil.copyfile(source / "samples" / file, pictures / file)


def copy_image_case(source: Path, case: str, out: Path) -> None:
    """Copy a whole checkpoint that sees, its pictures and the arrays that tests read."""
    folder = out / case
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((source / case).iterdir()):
        if file.name in CHECKPOINT_FILES or file.suffix == ".png":
            shutil.copyfile(file, folder / file.name)
    write_arrays(trim_image(load_file(source / case / "case.safetensors")), folder / "case.safetensors")
    record = json.loads((source / case / "case.json").read_text(encoding="utf-8"))
    write_json({key: record[key] for key in IMAGE_CASE_KEYS if key in record}, folder / "case.json")


def trim_image(arrays: Arrays) -> Arrays:
    """Drop what no test reads, and keep pixel values as the 8-bit levels they were made from."""
    kept: Arrays = {}
    for name, array in arrays.items():
        kind = name.rpartition(".")[2]
        if kind.startswith("pixel_values"):
            kept[name.replace("pixel_values", "pixel_levels")] = pixel_levels(name, array)
        elif name == "reallimits0.resized_u8_pil":
            kept[f"{name}_rows"] = array[::REAL_LIMIT_ROWS]
        elif kind.removesuffix("_tail") in IMAGE_KINDS or ".vis." in name:
            kept[name] = array
    return kept


def pixel_levels(name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return what was normalised with mean and deviation 0.5; they must give the values back."""
    levels = np.rint(values.astype(np.float64) * 127.5 + 127.5)
    if levels.min() < 0 or levels.max() > 255 or np.abs(levels / 127.5 - 1 - values).max() > 1e-6:
        raise SystemExit(f"{name}: these are not normalised 8-bit levels")
    return levels.astype(np.uint8)


def copy_smart_resize(source: Path, out: Path) -> None:
    """Copy the table of sizes, one row a line."""
    record = json.loads((source / "smart_resize" / "case.json").read_text(encoding="utf-8"))
    (out / "smart_resize").mkdir(parents=True, exist_ok=True)
    tables = [
        f'"{table}": [\n' + ",\n".join(json.dumps(row) for row in record[table]) + "\n]"
        for table in ["rows", "video_rows"]
    ]
    head = [f'"{key}": {json.dumps(record[key])}' for key in ["description", "versions"]]
    (out / "smart_resize" / "case.json").write_text(
        "{\n" + ",\n".join(head + tables) + "\n}\n", encoding="utf-8"
    )


def copy_video_case(source: Path, out: Path) -> None:
    """Copy the checkpoint that sees, the frames of four videos and the arrays that tests read."""
    folder = out / "video"
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((source / "video").iterdir()):
        if file.name in CHECKPOINT_FILES or file.suffix == ".png":
            shutil.copyfile(file, folder / file.name)
    arrays = load_file(source / "video" / "case.safetensors")
    kept = trim_image({name: array for name, array in arrays.items() if "resized_u8" not in name})
    write_arrays(kept, folder / "case.safetensors")
    record = json.loads((source / "video" / "case.json").read_text(encoding="utf-8"))
    write_json({key: record[key] for key in VIDEO_CASE_KEYS}, folder / "case.json")


def copy_frame_sampling(source: Path, out: Path) -> None:
    """Copy the table of sampled frames, one row a line."""
    record = json.loads((source / "frame_sampling" / "case.json").read_text(encoding="utf-8"))
    (out / "frame_sampling").mkdir(parents=True, exist_ok=True)
    head = [f'"{key}": {json.dumps(record[key])}' for key in ["description", "versions"]]
    rows = '"rows": [\n' + ",\n".join(json.dumps(row) for row in record["rows"]) + "\n]"
    (out / "frame_sampling" / "case.json").write_text(
        "{\n" + ",\n".join([*head, rows]) + "\n}\n", encoding="utf-8"
    )


def report(out: Path) -> None:
    files = [path for path in out.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with reference/, qwen3.5/ and demo/")
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    options = parser.parse_args()

    steps: list[Callable[[], None]] = [
        *(
            lambda case=case: copy_text_case(options.source / "reference", case, options.out)
            for case in TEXT_CASES
        ),
        *(
            lambda case=case: copy_image_case(options.source / "reference", case, options.out)
            for case in IMAGE_CASES
        ),
        lambda: copy_smart_resize(options.source / "reference", options.out),
        lambda: copy_video_case(options.source / "reference", options.out),
        lambda: copy_frame_sampling(options.source / "reference", options.out),
        lambda: copy_delta_rule(options.source / "reference", options.out),
        lambda: copy_routing(options.source / "reference", options.out),
        lambda: copy_tokenizer(options.source, options.out),
        lambda: copy_demo_samples(options.source / "demo", options.out),
    ]
    for step in steps:
        step()
    report(options.out)


if __name__ == "__main__":
    main()
