"""Writes GGUF files of small checkpoints, ordered as llama.cpp's converter orders them.

Source: `qwen.py`, `llama.py` and `base.py` in `conversion` of llama.cpp, written anew with NumPy.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[Any]
Types = gguf.GGMLQuantizationType

ARCHITECTURES = {
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_next": "qwen3next",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "qwen3_vl_text": "qwen3vl",
    "llama": "llama",
}
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_ba.weight": "ssm_ba.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.down_proj.weight": "ffn_down_exps.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
NEXTN = {
    "mtp.fc.weight": "nextn.eh_proj.weight",
    "mtp.pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "mtp.norm.weight": "nextn.shared_head_norm.weight",
}
TOKEN_NORMAL, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED = 1, 3, 4, 5


class Checkpoint:
    """The text model of a folder as Hugging Face lays it out."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.folder = folder
        self.text: dict[str, Any] = config.get("text_config", config)
        self.architecture = ARCHITECTURES[self.text["model_type"]]
        arrays = _load(folder / "model.safetensors")
        self.arrays = {
            name.replace("model.language_model.", "model."): array.astype(np.float32)
            for name, array in arrays.items()
            if ".visual." not in name
        }

    @classmethod
    def of_text(cls, architecture: str, text: dict[str, Any]) -> Checkpoint:
        """A configuration without tensors."""
        checkpoint = cls.__new__(cls)
        checkpoint.architecture, checkpoint.text, checkpoint.arrays = architecture, text, {}
        return checkpoint

    @property
    def extra_layers(self) -> int:
        """Layers that predict further tokens."""
        return int("mtp.fc.weight" in self.arrays)

    @property
    def hybrid(self) -> bool:
        return self.architecture in ("qwen35", "qwen35moe", "qwen3next")


def _load(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file; NumPy has no bfloat16, which becomes float32."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    if not any(entry["dtype"] == "BF16" for entry in header.values()):
        return load_file(path)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        part = data[8 + length + begin : 8 + length + end]
        if entry["dtype"] == "BF16":
            numbers = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            numbers = np.frombuffer(part, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        out[name] = numbers.reshape(entry["shape"])
    return out


def tensors(checkpoint: Checkpoint) -> dict[str, Array]:
    """All tensors as the converter names and orders them, in f32."""
    out = {}
    for name, array in _stacked(_separate(checkpoint)).items():
        array = _values_tiled(name, array, checkpoint)
        if checkpoint.architecture == "llama":
            array = _paired(name, array, checkpoint.text)
        if name.endswith(".A_log"):
            array = -np.exp(array)
        elif "conv1d" in name or "shared_expert_gate" in name:
            array = array.squeeze()
        elif checkpoint.hybrid and _is_norm(name):
            array = array + 1
        out[_gguf_name(name, checkpoint)] = np.ascontiguousarray(array, np.float32)
    return out


def _is_norm(name: str) -> bool:
    """Whether the converter adds 1: it looks at names that it has changed before, such as `enorm`."""
    return (name.endswith("norm.weight") or "pre_fc_norm" in name) and "linear_attn" not in name


def _gguf_name(name: str, checkpoint: Checkpoint) -> str:
    if name in TOP:
        return TOP[name]
    layers = checkpoint.text["num_hidden_layers"]
    if name in NEXTN:
        return f"blk.{layers}.{NEXTN[name]}"
    if name.startswith("mtp.layers."):
        number, _, rest = name.removeprefix("mtp.layers.").partition(".")
        name = f"model.layers.{layers + int(number)}.{rest}"
    _, _, layer, rest = name.split(".", 3)
    if rest == "post_attention_layernorm.weight":
        return f"blk.{layer}." + ("post_attention_norm.weight" if checkpoint.hybrid else "ffn_norm.weight")
    return f"blk.{layer}.{LAYER[rest]}"


def _separate(checkpoint: Checkpoint) -> dict[str, Array]:
    """With Qwen3-Next's `in_proj_qkvz` in two, and stacked experts' gate and up projections apart."""
    out = {}
    text = checkpoint.text
    for name, array in checkpoint.arrays.items():
        if name.endswith("in_proj_qkvz.weight"):
            heads, key = text["linear_num_key_heads"], text["linear_key_head_dim"]
            value = text["linear_num_value_heads"] // heads * text["linear_value_head_dim"]
            parts = np.split(array.reshape(heads, -1, array.shape[1]), np.cumsum([key, key, value]), axis=1)
            q, k, v, z = (part.reshape(-1, array.shape[1]) for part in parts)
            out[name.replace("qkvz", "qkv")] = np.concatenate([q, k, v])
            out[name.replace("qkvz", "z")] = z
        elif name.endswith("experts.gate_up_proj"):
            gate, up = np.split(array, 2, axis=1)
            out[name.replace("gate_up_proj", "gate_proj.weight")] = gate
            out[name.replace("gate_up_proj", "up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            out[f"{name}.weight"] = array
        else:
            out[name] = array
    return out


def _stacked(arrays: dict[str, Array]) -> dict[str, Array]:
    """With experts that are tensors of their own put into stacks."""
    out: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    for name, array in arrays.items():
        before, found, after = name.partition(".experts.")
        number, _, rest = after.partition(".")
        if found and number.isdecimal():
            stacks.setdefault(f"{before}.experts.{rest}", {})[int(number)] = array
        else:
            out[name] = array
    return out | {name: np.stack([stack[i] for i in range(len(stack))]) for name, stack in stacks.items()}


def _values_tiled(name: str, array: Array, checkpoint: Checkpoint) -> Array:
    """With value heads in the order of `qwen35`: head j of key head k at place j K + k."""
    text = checkpoint.text
    if checkpoint.architecture not in ("qwen35", "qwen35moe") or "linear_attn." not in name:
        return array
    keys, values = text["linear_num_key_heads"], text["linear_num_value_heads"]
    before = 2 * keys * text["linear_key_head_dim"]

    def tiled(part: Array, axis: int) -> Array:
        shape = part.shape
        split = (*shape[:axis], keys, values // keys, shape[axis] // values, *shape[axis + 1 :])
        return part.reshape(split).swapaxes(axis, axis + 1).reshape(shape)

    if "in_proj_qkv." in name or ".conv1d." in name:
        return np.concatenate([array[:before], tiled(array[before:], 0)])
    if any(part in name for part in ("in_proj_z.", "in_proj_a.", "in_proj_b.", "A_log", "dt_bias")):
        return tiled(array, 0)
    return tiled(array, 1) if "out_proj." in name else array


def _paired(name: str, array: Array, text: dict[str, Any]) -> Array:
    """With the rows of queries and keys that turn together beside each other."""
    key = {"self_attn.q_proj.weight": "num_attention_heads", "self_attn.k_proj.weight": "num_key_value_heads"}
    heads = next((text[key[end]] for end in key if name.endswith(end)), None)
    if heads is None:
        return array
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def add_config(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    text = checkpoint.text
    writer.add_block_count(text["num_hidden_layers"] + checkpoint.extra_layers)
    if checkpoint.extra_layers:
        writer.add_nextn_predict_layers(checkpoint.extra_layers)
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    if "intermediate_size" in text:
        writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    rope = text["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if "mrope_section" in rope:
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if checkpoint.hybrid:
        writer.add_rope_dimension_count(int(text["head_dim"] * rope["partial_rotary_factor"]))
        writer.add_full_attention_interval(text.get("full_attention_interval", 4))
        writer.add_ssm_conv_kernel(text["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(text["linear_key_head_dim"])
        writer.add_ssm_group_count(text["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(text["linear_num_value_heads"])
        writer.add_ssm_inner_size(text["linear_num_value_heads"] * text["linear_value_head_dim"])
    if "num_experts_per_tok" in text:
        writer.add_expert_count(text.get("num_experts") or text["num_local_experts"])
        writer.add_expert_used_count(text["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(text["moe_intermediate_size"])
        if "shared_expert_intermediate_size" in text:
            writer.add_expert_shared_feed_forward_length(text["shared_expert_intermediate_size"])


def vocabulary(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens by id and their types, filled up to `size`."""
    tokens = {token_id: (text, TOKEN_NORMAL) for text, token_id in tokenizer["model"]["vocab"].items()}
    for added in tokenizer["added_tokens"]:
        text = added["content"]
        control = added["special"] or (text.startswith("<|") and text.endswith("|>"))
        tokens[added["id"]] = (text, TOKEN_CONTROL if control else TOKEN_USER_DEFINED)
    listed = [tokens.get(i, (f"[PAD{i}]", TOKEN_UNUSED)) for i in range(size)]
    return [text for text, _ in listed], [kind for _, kind in listed]


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int, cut: str = "qwen35") -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens, kinds = vocabulary(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    ids = {text: i for i, text in enumerate(tokens)}
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())


def write(
    checkpoint: Checkpoint,
    path: Path,
    kind: Types = Types.F32,
    more: dict[str, int | float | str] | None = None,
    more_tensors: dict[str, Array] | None = None,
) -> Path:
    """Write the model with matrices of type `kind`, where their rows are whole blocks; the rest in f32.

    Metadata and tensors of `more` and `more_tensors` are added as they are.
    """
    writer = gguf.GGUFWriter(path, checkpoint.architecture)
    add_config(writer, checkpoint)
    if (checkpoint.folder / "tokenizer.json").exists():
        add_tokenizer(writer, checkpoint.folder, checkpoint.text["vocab_size"])
    adders: dict[type, Any] = {
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in (more or {}).items():
        adders[type(value)](key, value)
    for name, array in {**tensors(checkpoint), **(more_tensors or {})}.items():
        chosen = kind if is_matrix(name, array, kind) else Types.F32
        writer.add_tensor(name, gguf.quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VISION_TOP = {
    "patch_embed.proj.bias": "v.patch_embd.bias",
    "pos_embed.weight": "v.position_embd.weight",
    "merger.norm.": "v.post_ln.",
    "merger.linear_fc1.": "mm.0.",
    "merger.linear_fc2.": "mm.2.",
}
VISION_BLOCK = {
    "norm1.": "ln1.",
    "norm2.": "ln2.",
    "attn.qkv.": "attn_qkv.",
    "attn.proj.": "attn_out.",
    "mlp.linear_fc1.": "ffn_up.",
    "mlp.linear_fc2.": "ffn_down.",
    "norm.": "norm.",
    "linear_fc1.": "fc1.",
    "linear_fc2.": "fc2.",
}


def vision_tensors(folder: Path, deepstack: list[int]) -> Iterator[tuple[str, Array]]:
    """The tensors of a checkpoint's vision tower as the converter names them."""
    for name, array in _load(folder / "model.safetensors").items():
        before, found, rest = name.partition("visual.")
        if not found or before not in ("", "model."):
            continue
        if rest == "patch_embed.proj.weight":
            yield "v.patch_embd.weight", array[:, :, 0]
            yield "v.patch_embd.weight.1", array[:, :, 1]
            continue
        kind, number, inner = (*rest.split(".", 2), "", "")[:3]
        if kind in ("blocks", "deepstack_merger_list"):
            index = int(number) if kind == "blocks" else deepstack[int(number)]
            prefix = f"v.blk.{index}." if kind == "blocks" else f"v.deepstack.{index}."
            table = VISION_BLOCK
        else:
            prefix, inner, table = "", rest, VISION_TOP
        (start,) = (start for start in table if inner.startswith(start))
        yield prefix + table[start] + inner.removeprefix(start), array


def write_vision(folder: Path, path: Path, projector: str = "qwen3vl_merger") -> Path:
    """Write the vision tower of a folder in f32."""
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    deepstack = vision.get("deepstack_visual_indexes", [])
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(int(vision["num_position_embeddings"] ** 0.5) * vision["patch_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_is_deepstack_layers([i in deepstack for i in range(vision["depth"])])
    for name, array in vision_tensors(folder, deepstack):
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def is_matrix(name: str, array: Array, kind: Types) -> bool:
    """Whether the converter would store a tensor in a type other than f32."""
    whole = array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
    return array.ndim > 1 and whole and not any(part in name for part in ("ssm_conv1d", "gate_inp"))


def split(path: Path, parts: int) -> list[Path]:
    """Write a file anew as several, as `llama-gguf-split` names them."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    names = [path.with_name(f"{path.stem}-{i + 1:05}-of-{parts:05}.gguf") for i in range(parts)]
    groups = np.array_split(np.arange(len(reader.tensors)), parts)
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        writer = gguf.GGUFWriter(name, architecture)
        for key, field in reader.fields.items():
            if i == 0 and not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), field.types[0], *field.types[1:2])
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for index in group:
            tensor = reader.tensors[index]
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names


def strings_at(data: bytes, text: str) -> Iterator[int]:
    """Where a string of the format, with its length before it, begins in `data`."""
    wanted = struct.pack("<Q", len(text)) + text.encode()
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)
