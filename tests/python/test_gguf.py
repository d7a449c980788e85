"""GGUF files opened, beside the checkpoints they were made from."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors import safe_open

import edgewise
import gguf_files
import golden
from edgewise import CheckpointError, Tokenizer, _native
from edgewise.cli import main
from edgewise.options import PromptArguments
from gguf_files import Array, Checkpoint, Types

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
SEEING = ["deepstack_qwen3_vl", "moe_image"]
IDS = [3, 141, 59, 26, 5, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71, 69, 39, 93]
CLOSE = 2e-5
"""Of a logit: -e^A_log is rounded when it is stored, and again when its logarithm is taken."""


def golden_checkpoint(case: str) -> Checkpoint:
    return Checkpoint(golden.FOLDER / case)


@cache
def original_logits(case: str) -> Array:
    return edgewise.Model.from_pretrained(golden.FOLDER / case, dtype="f32").logits(IDS)


def logits(path: Path, dtype: edgewise.model.DType = "f32") -> Array:
    return edgewise.Model.from_pretrained(path, dtype=dtype).logits(IDS)


def write(tmp_path: Path, case: str, kind: Types = Types.F32) -> Path:
    return gguf_files.write(golden_checkpoint(case), tmp_path / "model.gguf", kind)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        edgewise.Model.from_pretrained(path)
    return str(caught.value)


class TestLogits:
    @pytest.mark.parametrize("case", golden.TEXT_CASES + SEEING)
    def test_those_of_the_checkpoint(self, case: str, tmp_path: Path) -> None:
        got, want = logits(write(tmp_path, case)), original_logits(case)
        np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE * np.abs(want).max())

    @pytest.mark.parametrize("case", ["dense_text", "moe_text", "qwen3_next_text"])
    @pytest.mark.parametrize("kind", [Types.F16, Types.BF16])
    def test_half_precision_is_held_as_it_is(self, case: str, kind: Types, tmp_path: Path) -> None:
        path = write(tmp_path, case, kind)
        model = edgewise.Model.from_pretrained(path)
        assert {kind.name.lower(), "f32"} == set(model.info()["formats"])
        want = original_logits(case)
        assert np.sqrt(((model.logits(IDS) - want) ** 2).mean()) < 0.03 * want.std()

    @pytest.mark.parametrize("kind", [Types.Q4_0, Types.Q4_1, Types.Q5_0, Types.Q5_1, Types.Q8_0])
    @pytest.mark.parametrize("case", ["dense_text", "dense_text_d128", "qwen3_next_text", "moe_text"])
    def test_blocks_widened_are_what_the_gguf_package_reads(
        self, case: str, kind: Types, tmp_path: Path
    ) -> None:
        got = logits(write(tmp_path, case, kind))
        widened = tmp_path / "widened.gguf"
        _rewrite(tmp_path / "model.gguf", widened)
        np.testing.assert_array_equal(got, logits(widened))

    @pytest.mark.parametrize("kind", [Types.Q4_K, Types.Q5_K, Types.Q6_K, Types.IQ4_XS, Types.IQ4_NL])
    def test_types_that_the_package_only_reads(self, kind: Types, tmp_path: Path) -> None:
        """Random blocks in a model whose rows are 256 wide, among them those that are moved by columns."""
        path, widened = tmp_path / "model.gguf", tmp_path / "widened.gguf"
        _write_random(path, kind)
        _rewrite(path, widened)
        want = logits(widened)
        np.testing.assert_array_equal(logits(path), want)
        # INT8 beside rounded activations; the state of f32 is the same.
        error = logits(path, "auto") - want
        assert 0 < np.sqrt((error**2).mean()) < 0.08 * want.std()

    def test_a_mixture_of_types(self, tmp_path: Path) -> None:
        """As in Q4_K_M: matrices that one product takes together are of two types."""
        path, widened = tmp_path / "model.gguf", tmp_path / "widened.gguf"
        _write_random(path, Types.Q4_K, Types.Q6_K)
        _rewrite(path, widened)
        want = logits(widened)
        np.testing.assert_array_equal(logits(path), want)
        model = edgewise.Model.from_pretrained(path)
        assert set(model.info()["formats"]) == {"int4_asym", "int8", "f32"}
        error = model.logits(IDS) - want
        assert 0 < np.sqrt((error**2).mean()) < 0.08 * want.std()


class TestLlamaCpp:
    """Optional: only where the package `llama-cpp-python` is installed, of a version that knows `qwen35`."""

    def test_logits_and_ids_are_those_of_llama_cpp(self, tmp_path: Path) -> None:
        llama_cpp = pytest.importorskip("llama_cpp")
        path = gguf_files.write(Checkpoint(DEMO), tmp_path / "demo.gguf")
        other = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
        other.eval(IDS)
        model = edgewise.Model.from_pretrained(path, dtype="f32")
        # Its KV cache is f16.
        want = np.array(other.scores[: len(IDS)])
        np.testing.assert_allclose(model.logits(IDS), want, rtol=0, atol=2e-3 * np.abs(want).max())
        text = "<|im_start|>user\nRepeat: coins, 12 apples' <think>\n"
        assert model.tokenizer.encode(text) == other.tokenize(text.encode(), add_bos=False, special=True)

    def test_llama(self, tmp_path: Path) -> None:
        llama_cpp = pytest.importorskip("llama_cpp")
        path = tmp_path / "t.gguf"
        _write_with_tokenizer(path, DEMO, 640, {"tokenizer.ggml.pre": "smollm"}, "llama")
        other = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
        other.eval(IDS)
        model = edgewise.Model.from_pretrained(path, dtype="f32")
        want = np.array(other.scores[: len(IDS)])
        # It rounds activations to 8 bits where weights are blocks.
        assert np.sqrt(((model.logits(IDS) - want) ** 2).mean()) < 0.02 * want.std()
        for row in golden.read_json("tokenizer/case.json")["rows"]:
            wanted = other.tokenize(row["text"].encode(), add_bos=False, special=True)
            assert model.tokenizer.encode(row["text"]) == wanted, row["text"]


class TestFormats:
    def test_q4_0_is_int4_of_the_same_numbers(self, tmp_path: Path) -> None:
        path = write(tmp_path, "dense_text", Types.Q4_0)
        model = edgewise.Model.from_pretrained(path)
        assert set(model.info()["formats"]) == {"int4", "f32"}
        assert model.info()["converted_from"] == "GGUF"
        exact = edgewise.Model.from_pretrained(path, dtype="f32")
        np.testing.assert_array_equal(model.trace(IDS)["embed"], exact.trace(IDS)["embed"])

    def test_q4_1_keeps_4_bits_and_a_minimum(self, tmp_path: Path) -> None:
        path = write(tmp_path, "dense_text", Types.Q4_1)
        model = edgewise.Model.from_pretrained(path)
        assert set(model.info()["formats"]) == {"int4_asym", "f32"}
        exact = edgewise.Model.from_pretrained(path, dtype="f32").trace(IDS)["embed"]
        np.testing.assert_allclose(model.trace(IDS)["embed"], exact, rtol=0, atol=1e-3 * np.abs(exact).max())

    @pytest.mark.parametrize("kind", [Types.Q8_0, Types.Q5_0, Types.Q5_1])
    def test_others_are_int8(self, kind: Types, tmp_path: Path) -> None:
        model = edgewise.Model.from_pretrained(write(tmp_path, "dense_text", kind))
        assert set(model.info()["formats"]) == {"int8", "f32"}

    def test_q4_0_keeps_its_scales_where_4_bits_are_asked_for(self, tmp_path: Path) -> None:
        path, target = write(tmp_path, "dense_text", Types.Q4_0), tmp_path / "converted.safetensors"
        _native.quantize(str(path), str(target), "int4")
        kept = edgewise.Model.from_pretrained(path)
        for model in (
            edgewise.Model.from_pretrained(path, dtype="int4"),
            edgewise.Model.from_pretrained(target),
        ):
            formats = model.info()["formats"]
            assert "int4" in formats
            assert "int4_s8" not in formats
            np.testing.assert_array_equal(model.trace(IDS)["embed"], kept.trace(IDS)["embed"])

    def test_a_recipe_decides(self, tmp_path: Path) -> None:
        path = write(tmp_path, "dense_text", Types.Q8_0)
        formats = edgewise.Model.from_pretrained(path, dtype="int4").info()["formats"]
        assert set(formats) == {"int4_s8", "int8", "f32"}
        assert set(edgewise.Model.from_pretrained(path, dtype="bf16").info()["formats"]) == {"bf16", "f32"}

    def test_kept_between_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
        path = write(tmp_path, "dense_text", Types.Q4_0)
        kept = edgewise.Model.from_pretrained(path, cache=True)
        assert kept.info()["converted_from"] is None
        np.testing.assert_array_equal(kept.logits(IDS), logits(path, "auto"))

    def test_opening_says_what_it_does(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(tmp_path, "dense_text", Types.Q4_0)
        assert main(["info", str(path)]) == 0
        assert "(GGUF, converted in memory; `edgewise convert` writes it once)" in capsys.readouterr().out


class TestConvert:
    @pytest.mark.parametrize("kind", [Types.Q4_0, Types.Q8_0, Types.Q4_1, Types.F16])
    def test_the_file_is_what_is_opened(
        self, kind: Types, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = gguf_files.write(Checkpoint(DEMO), tmp_path / "demo.gguf", kind)
        destination = tmp_path / "demo.safetensors"
        assert main(["convert", str(path), str(destination)]) == 0
        out = capsys.readouterr().out
        assert "demo.safetensors: " in out
        lost = dict(line.split() for line in out.splitlines() if len(line.split()) == 2)
        name = {Types.Q4_0: "int4", Types.Q4_1: "int4_asym", Types.F16: "f16"}.get(kind, "int8")
        assert (lost[name] == "nothing") == (kind != Types.Q4_1), out
        direct, written = (edgewise.Model.from_pretrained(file) for file in (path, destination))
        np.testing.assert_array_equal(written.logits(IDS), direct.logits(IDS))
        assert written.tokenizer.encode("a red circle") == direct.tokenizer.encode("a red circle")
        assert written.eos_token_ids == direct.eos_token_ids
        assert written.chat_template is not None

    def test_what_is_lost_is_told(self, tmp_path: Path) -> None:
        for kind, name, limit in [
            (Types.Q4_0, "int4", 0),
            (Types.Q8_0, "int8", 0),
            (Types.Q5_0, "int8", 0),
            (Types.Q4_1, "int4_asym", 1e-7),
            (Types.Q5_1, "int8", 5e-5),
        ]:
            path = write(tmp_path, "dense_text_d128", kind)
            report = _native.quantize(str(path), str(tmp_path / "out.safetensors"), "keep")
            error = report["formats"][name]["relative_squared_error"]
            assert error <= limit, kind
            assert (error > 0) == (limit > 0), kind

    def test_progress_counts_the_bytes_of_the_file(self, tmp_path: Path) -> None:
        path = write(tmp_path, "moe_text", Types.Q4_0)
        calls: list[tuple[int, int]] = []
        _native.quantize(
            str(path),
            str(tmp_path / "o.safetensors"),
            "keep",
            1,
            lambda done, total, _: calls.append((done, total)),
        )
        reader = gguf.GGUFReader(path)
        assert calls[-1] == (calls[-1][1], sum(int(tensor.n_bytes) for tensor in reader.tensors))
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)

    def test_a_layer_that_predicts_further_tokens_is_kept(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(DEMO)
        path = gguf_files.write(checkpoint, tmp_path / "demo.gguf")
        destination = tmp_path / "out.safetensors"
        _native.quantize(str(path), str(destination), "keep")
        with safe_open(destination, "numpy") as file:
            names = {name for name in file.keys() if name.startswith("mtp.")}  # noqa: SIM118
            assert names == {name for name in checkpoint.arrays if name.startswith("mtp.")}
            for name in names:
                original = checkpoint.arrays[name]
                np.testing.assert_allclose(file.get_tensor(name), original, rtol=0, atol=1e-6, err_msg=name)


class TestText:
    def test_ids_are_those_of_the_tokenizer_it_was_made_from(self, tmp_path: Path) -> None:
        path = tmp_path / "t.gguf"
        _write_with_tokenizer(path, golden.FOLDER / "tokenizer", 248_320)
        model = edgewise.Model.from_pretrained(path)
        original = Tokenizer((golden.FOLDER / "tokenizer" / "tokenizer.json").read_bytes())
        assert len(model.tokenizer) == len(original)
        for row in golden.read_json("tokenizer/case.json")["rows"]:
            assert model.tokenizer.encode(row["text"]) == row["ids"], row["text"]
            assert model.tokenizer.decode(row["ids"]) == row["decoded"]
        assert model.eos_token_ids == (248046, 248044)

    def test_every_digit_is_a_word_of_its_own_in_smollm(self, tmp_path: Path) -> None:
        """Its parts as the original's `tokenizer.json` names them, around the demo's vocabulary."""
        path = tmp_path / "t.gguf"
        _write_with_tokenizer(path, DEMO, 640, {"tokenizer.ggml.pre": "smollm"})
        tokenizer = edgewise.Model.from_pretrained(path).tokenizer
        original = json.loads((DEMO / "tokenizer.json").read_text())
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        digits = {"type": "Digits", "individual_digits": True}
        original["normalizer"] = None
        original["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
        wanted = Tokenizer(json.dumps(original).encode())
        texts = [row["text"] for row in golden.read_json("tokenizer/case.json")["rows"]]
        texts += [
            "12,345.60 and 007",
            "x1 y22\n\n  333",
            "I'M it's 4'll",
            "\u0664\u0662 \u00bd \u2163",
            "e\u0301",
        ]
        for text in texts:
            assert tokenizer.encode(text) == wanted.encode(text), text
        # The other rules take the space before a digit, or compose letters.
        assert any(
            tokenizer.encode(text) != Tokenizer((DEMO / "tokenizer.json").read_bytes()).encode(text)
            for text in texts
        )

    def test_the_demo_answers(self, tmp_path: Path) -> None:
        path = gguf_files.write(Checkpoint(DEMO), tmp_path / "demo.gguf", Types.Q8_0)
        model = edgewise.Model.from_pretrained(path)
        want = edgewise.Model.from_pretrained(DEMO, dtype="f32")
        question = "What is the capital of France?"
        assert model.generate(question, enable_thinking=False, temperature=0).text == "Paris."
        messages = [{"role": "user", "content": question}]
        assert model.prepare(messages).token_ids == want.prepare(messages).token_ids
        assert model.eos_token_ids == want.eos_token_ids

    def test_sampling_settings_are_defaults(self, tmp_path: Path) -> None:
        path = tmp_path / "t.gguf"
        _write_with_tokenizer(path, DEMO, 640, {"general.sampling.top_p": 0.95, "general.sampling.temp": 0.6})
        config = edgewise.Model.from_pretrained(path).generation_config
        assert (config["top_p"], config["temperature"], config["do_sample"]) == (0.95, 0.6, True)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"tokenizer.ggml.pre": "llama-bpe"},
                "'llama-bpe' is not supported; known: qwen2, qwen35, smollm",
            ),
            ({"tokenizer.ggml.model": "llama"}, "'llama' is not supported; known: gpt2"),
            ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token': true is not supported"),
        ],
    )
    def test_other_tokenizers_are_refused(
        self, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "t.gguf"
        _write_with_tokenizer(path, DEMO, 640, changes)
        model = edgewise.Model.from_pretrained(path)
        with pytest.raises(CheckpointError, match=message):
            model.tokenizer.encode("a")
        assert model.logits([1, 2]).shape == (2, 640)

    def test_without_a_tokenizer_ids_can_be_used(self, tmp_path: Path) -> None:
        model = edgewise.Model.from_pretrained(write(tmp_path, "dense_text"))
        with pytest.raises(CheckpointError, match="only token ids can be used"):
            model.tokenizer.encode("a")


class TestSeveralFiles:
    @pytest.mark.parametrize("opened", [0, 1, 2])
    def test_any_part_may_be_given(self, opened: int, tmp_path: Path) -> None:
        parts = gguf_files.split(write(tmp_path, "moe_text"), 3)
        np.testing.assert_array_equal(logits(parts[opened]), logits(tmp_path / "model.gguf"))

    def test_a_missing_part(self, tmp_path: Path) -> None:
        parts = gguf_files.split(write(tmp_path, "dense_text"), 3)
        parts[2].unlink()
        with pytest.raises(FileNotFoundError, match=r"model-00003-of-00003\.gguf"):
            edgewise.Model.from_pretrained(parts[0])

    def test_parts_in_a_circle(self, tmp_path: Path) -> None:
        parts = gguf_files.split(write(tmp_path, "dense_text"), 3)
        parts[1].unlink()
        parts[1].symlink_to(parts[0])
        assert "'split.no': 0, counted from 0, is not what the file's name says: part 2 of 3" in refusal(
            parts[0]
        )

    def test_a_name_that_is_none_of_a_part(self, tmp_path: Path) -> None:
        parts = gguf_files.split(write(tmp_path, "dense_text"), 2)
        moved = parts[0].rename(tmp_path / "other.gguf")
        assert "is a part of 2 files, but 'other.gguf' is not named like one" in refusal(moved)
        moved = moved.rename(tmp_path / "other-00001-of-00003.gguf")
        assert "is a part of 2 files" in refusal(moved)

    def test_parts_of_different_models(self, tmp_path: Path) -> None:
        parts = gguf_files.split(write(tmp_path, "dense_text"), 2)
        others = gguf_files.split(gguf_files.write(golden_checkpoint("dense_text"), tmp_path / "o.gguf"), 3)
        others[1].replace(parts[1])
        assert "'split.count': is not 2, as the other parts say" in refusal(parts[0])


class TestVision:
    """The tower stands in a file of its own beside the model."""

    @pytest.mark.parametrize("case", ["image", "deepstack_qwen3_vl"])
    def test_pictures_are_seen_as_by_the_checkpoint(self, case: str, tmp_path: Path) -> None:
        folder = golden.FOLDER / case
        gguf_files.write_vision(folder, tmp_path / "mmproj-model-f32.gguf")
        path = write(tmp_path, case)
        destination = tmp_path / "out.safetensors"
        _native.quantize(str(path), str(destination), "keep")
        want = edgewise.Model.from_pretrained(folder, dtype="f32")
        picture = str(next(folder.glob("img0*.png")))
        content = [{"type": "image", "path": picture}, {"type": "text", "text": "a"}]
        messages = [{"role": "user", "content": content}]
        # The limits of sizes are no part of a GGUF file.
        limits: PromptArguments = {"min_pixels": 4096, "max_pixels": 65536}
        expected = want.logits(want.prepare(messages, **limits))
        for file in (path, destination):
            model = edgewise.Model.from_pretrained(file, dtype="f32")
            got = model.logits(model.prepare(messages, **limits))
            np.testing.assert_allclose(got, expected, rtol=0, atol=CLOSE * np.abs(expected).max())

    def test_two_of_them_are_none(self, tmp_path: Path) -> None:
        for name in ("mmproj-a.gguf", "mmproj-b.gguf"):
            gguf_files.write_vision(golden.FOLDER / "image", tmp_path / name)
        model = edgewise.Model.from_pretrained(write(tmp_path, "image"))
        with pytest.raises(ValueError, match="reads text only"):
            model.prepare("a", images=next((golden.FOLDER / "image").glob("img0*.png")))

    def test_text_models_do_not_look_for_it(self, tmp_path: Path) -> None:
        (tmp_path / "mmproj.gguf").write_bytes(b"GGUF")
        assert logits(write(tmp_path, "qwen3")).shape == (len(IDS), 384)

    @pytest.mark.parametrize(
        ("projector", "message"),
        [
            ("gemma3", "'gemma3' is not supported; known: qwen3vl_merger"),
            ("qwen3vl_merger", "out_hidden_size"),
        ],
    )
    def test_that_of_another_model(self, projector: str, message: str, tmp_path: Path) -> None:
        gguf_files.write_vision(golden.FOLDER / "image", tmp_path / "mmproj.gguf", projector)
        checkpoint = Checkpoint(DEMO)
        assert message in refusal(gguf_files.write(checkpoint, tmp_path / "model.gguf"))

    def test_its_tensors_are_checked(self, tmp_path: Path) -> None:
        vision = gguf_files.write_vision(golden.FOLDER / "image", tmp_path / "mmproj.gguf")
        data = vision.read_bytes()
        path = write(tmp_path, "image")
        for was, becomes, message in [
            ("v.patch_embd.weight.1", "v.patch_embd.weight.2", "is none that a vision tower"),
            ("mm.0.weight", "mm.1.weight", "tensor 'mm.1.weight': is none that a vision tower"),
            ("v.position_embd.weight", "v.positionxembd.weight", "'v.position_embd.weight': is missing"),
            ("clip.vision.block_count", "clip.vision.block_counx", "'clip.vision.block_count': is missing"),
        ]:
            (at,) = gguf_files.strings_at(data, was)
            vision.write_bytes(data[: at + 8] + becomes.encode() + data[at + 8 + len(was) :])
            assert message in refusal(path)


class TestHostile:
    def test_every_truncation_of_the_header_is_named(self, tmp_path: Path) -> None:
        data = write(tmp_path, "qwen3").read_bytes()
        end = gguf.GGUFReader(tmp_path / "model.gguf").data_offset
        path = tmp_path / "short.gguf"
        for length in range(4, end, 7):
            path.write_bytes(data[:length])
            assert "short.gguf: " in refusal(path)

    def test_a_truncated_end_names_the_tensor(self, tmp_path: Path) -> None:
        path = write(tmp_path, "qwen3")
        os.truncate(path, path.stat().st_size - 40)
        message = refusal(path)
        assert "tensor '" in message
        assert "truncated or damaged" in message

    @pytest.mark.parametrize("seed", range(30))
    def test_damage_in_the_header_is_survived(self, seed: int, tmp_path: Path) -> None:
        random = np.random.default_rng(seed)
        path = write(tmp_path, "dense_text_kv_groups/v2x_tied")
        end = gguf.GGUFReader(path).data_offset
        data = path.read_bytes()
        for _ in range(20):
            damaged = bytearray(data)
            for _ in range(random.integers(1, 4)):
                damaged[random.integers(4, end)] = random.integers(0, 256)
            path.write_bytes(damaged)
            try:
                edgewise.Model.from_pretrained(path, dtype="f32")
            except (CheckpointError, MemoryError):
                continue

    def test_opening_allocates_nothing_by_what_the_header_claims(self, tmp_path: Path) -> None:
        """A sparse file of 20 GB whose one tensor takes it all: refused in the blink of an eye."""
        path = tmp_path / "large.gguf"
        writer = gguf.GGUFWriter(path, "qwen3")
        rows = 20 * 10**9 // 4 // 64
        writer.add_tensor_info("token_embd.weight", (rows, 64), np.dtype(np.float32), rows * 64 * 4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        os.truncate(path, path.stat().st_size + 20 * 10**9 + 4096)
        assert refusal(path).endswith("metadata 'qwen3.block_count': is missing")

    @pytest.mark.parametrize(
        ("architecture", "message"),
        [
            (
                "gemma3",
                "is not supported; known: qwen35, qwen35moe, qwen3next, qwen3, qwen3moe, qwen3vl, llama",
            ),
            ("clip", "this file holds a vision tower and no language model"),
        ],
    )
    def test_other_architectures(self, architecture: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_tensor("t", np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert f"m.gguf: metadata 'general.architecture': '{architecture}'" in refusal(path)
        assert message in refusal(path)

    def test_types_that_are_not_read_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        _write_random(path, Types.Q3_K)
        assert "m.gguf: tensor 'token_embd.weight': its type Q3_K is not supported" in refusal(path)

    @pytest.mark.parametrize(
        ("was", "becomes", "message"),
        [
            ("blk.0.attn_q.weight", "blk.0.attn_x.weight", "is none that this architecture is known to have"),
            ("blk.0.attn_q.weight", "blk.9.attn_q.weight", "is none that this architecture is known to have"),
            ("token_embd.weight", "token_embx.weight", "tensor 'token_embd.weight': is missing"),
            ("qwen3.block_count", "qwen3.block_counx", "metadata 'qwen3.block_count': is missing"),
        ],
    )
    def test_names(self, was: str, becomes: str, message: str, tmp_path: Path) -> None:
        path = write(tmp_path, "qwen3")
        data = path.read_bytes()
        (at,) = gguf_files.strings_at(data, was)
        path.write_bytes(data[: at + 8] + becomes.encode() + data[at + 8 + len(was) :])
        assert message in refusal(path)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("expert_count", 8, "'llama.expert_count': 8 is not supported; known: 0"),
            ("attention.sliding_window", 4096, "'llama.attention.sliding_window': 4096 is not supported"),
            ("rope.dimension_count", 8, "'llama.rope.dimension_count': 8 of 16 channels is not supported"),
            ("rope.scaling.type", "linear", "'llama.rope.scaling.type': 'linear' is not supported"),
            ("rope.scaling.factor", 8.0, "'llama.rope.scaling.factor': 8 without a rope.scaling.type"),
            ("rope.scale_linear", 2.0, "'llama.rope.scale_linear': 2 without a rope.scaling.type"),
        ],
    )
    def test_other_models_by_the_name_of_llama(
        self, key: str, value: int | str | float, message: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "m.gguf"
        gguf_files.write(golden_checkpoint("llama"), path, more={f"llama.{key}": value})
        assert f"m.gguf: metadata {message}" in refusal(path)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("blk.0.attn_q.bias", "is none that this architecture is known to have"),
            ("rope_freqs.weight", "is not supported: frequencies that are changed one by one"),
        ],
    )
    def test_tensors_that_plain_llamas_lack(self, name: str, message: str, tmp_path: Path) -> None:
        checkpoint, path = golden_checkpoint("llama"), tmp_path / "m.gguf"
        gguf_files.write(checkpoint, path, more_tensors={name: np.ones(8, np.float32)})
        assert f"tensor '{name}': {message}" in refusal(path)

    def test_a_shape_that_does_not_fit_the_metadata(self, tmp_path: Path) -> None:
        checkpoint = golden_checkpoint("dense_text")
        checkpoint.arrays["model.layers.0.mlp.up_proj.weight"] = np.zeros((96, 64), np.float32)
        message = refusal(gguf_files.write(checkpoint, tmp_path / "m.gguf"))
        assert "tensor 'blk.0.ffn_up.weight': has shape [96, 64], the model needs [128, 64]" in message


def _rewrite(source: Path, destination: Path) -> None:
    """The same file with all tensors in f32, read by the package `gguf`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(destination, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], *field.types[1:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


RANDOM = {
    "model_type": "qwen3_5_text",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "full_attention_interval": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.25, "mrope_section": [4, 2, 2]},
}


def _write_random(path: Path, kind: Types, finer: Types | None = None) -> None:
    """A model of `qwen35` with random matrices of type `kind`; `ssm_out` has heads of 64 in rows of 256.

    Those that llama.cpp's mixtures such as Q4_K_M hold finer are of type `finer`, if it is given.
    """
    checkpoint = Checkpoint.of_text("qwen35", RANDOM)
    writer = gguf.GGUFWriter(path, "qwen35")
    gguf_files.add_config(writer, checkpoint)
    random = np.random.default_rng(1)

    def matrix(name: str, rows: int, cols: int) -> None:
        is_finer = any(part in name for part in ("token_embd", "attn_v", "ffn_down"))
        chosen = finer if finer is not None and is_finer else kind
        block, size = gguf.GGML_QUANT_SIZES[chosen]
        if chosen in (Types.Q3_K,):
            blocks = np.zeros((rows, cols // block * size), np.uint8)
        else:
            blocks = _blocks(random, chosen, rows * cols // block).reshape(rows, -1)
        writer.add_tensor(name, blocks, raw_dtype=chosen)

    def vector(name: str, *shape: int, low: float = 0.5, high: float = 1.5) -> None:
        writer.add_tensor(name, random.uniform(low, high, shape).astype(np.float32))

    matrix("token_embd.weight", 256, 256)
    vector("output_norm.weight", 256)
    for i in range(4):
        layer = f"blk.{i}."
        vector(f"{layer}attn_norm.weight", 256)
        vector(f"{layer}post_attention_norm.weight", 256)
        matrix(f"{layer}ffn_gate.weight", 512, 256)
        matrix(f"{layer}ffn_up.weight", 512, 256)
        matrix(f"{layer}ffn_down.weight", 256, 512)
        if i == 3:
            matrix(f"{layer}attn_q.weight", 512, 256)
            matrix(f"{layer}attn_k.weight", 128, 256)
            matrix(f"{layer}attn_v.weight", 128, 256)
            matrix(f"{layer}attn_output.weight", 256, 256)
            vector(f"{layer}attn_q_norm.weight", 64)
            vector(f"{layer}attn_k_norm.weight", 64)
            continue
        matrix(f"{layer}attn_qkv.weight", 512, 256)
        matrix(f"{layer}attn_gate.weight", 256, 256)
        matrix(f"{layer}ssm_alpha.weight", 4, 256)
        matrix(f"{layer}ssm_beta.weight", 4, 256)
        vector(f"{layer}ssm_conv1d.weight", 512, 4, low=-0.5)
        vector(f"{layer}ssm_dt.bias", 4)
        vector(f"{layer}ssm_a", 4, low=-1.5, high=-0.5)
        vector(f"{layer}ssm_norm.weight", 64)
        matrix(f"{layer}ssm_out.weight", 256, 256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(random: np.random.Generator, kind: Types, count: int) -> Array:
    """Random blocks `[count, bytes]` of weights of about 1/16 around 0."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = random.integers(0, 256, (count, size), np.uint8)
    # The middle level is 0: of 32 scales of 6 bits, 64 levels of IQ4, 128 scales of Q6_K.
    scales = {"Q4_K": (2e-4, 1.5e-3), "Q5_K": (1e-4, 1.5e-3), "Q6_K": (5e-5, None), "IQ4_XS": (5e-5, None)}
    scale, minimum = scales.get(kind.name, (1e-3, None))
    halves = {0: scale, 2: minimum} if minimum else {208 if kind is Types.Q6_K else 0: scale}
    for at, value in halves.items():
        blocks[:, at : at + 2] = np.full((count, 1), value, "<f2").view(np.uint8)
    return blocks


def _write_with_tokenizer(
    path: Path,
    folder: Path,
    vocabulary: int,
    changes: dict[str, Any] | None = None,
    architecture: str = "qwen3",
) -> None:
    """A model of one layer, 32 wide, with the tokenizer of a folder."""
    writer = gguf.GGUFWriter(path, architecture)
    config = json.loads((golden.FOLDER / architecture / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    checkpoint = Checkpoint.of_text(architecture, config)
    gguf_files.add_config(writer, checkpoint)
    gguf_files.add_tokenizer(writer, folder, vocabulary)
    for key, value in (changes or {}).items():
        writer.kv_data[0].pop(key, None)
        adders: dict[type, Any] = {
            bool: writer.add_bool,
            float: writer.add_float32,
            str: writer.add_string,
        }
        adders[type(value)](key, value)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (vocabulary, 32),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (32, 32),
        "blk.0.ffn_up.weight": (32, 32),
        "blk.0.ffn_down.weight": (32, 32),
    }
    for name, shape in shapes.items():
        array = gguf.quantize(random.normal(0, 0.2, shape).astype(np.float32), Types.Q4_0)
        writer.add_tensor(name, array, raw_dtype=Types.Q4_0)
    norms = {"output_norm.weight": 32, "blk.0.attn_norm.weight": 32, "blk.0.ffn_norm.weight": 32}
    if architecture == "qwen3":
        norms |= {"blk.0.attn_q_norm.weight": 16, "blk.0.attn_k_norm.weight": 16}
    for name, width in norms.items():
        writer.add_tensor(name, np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
