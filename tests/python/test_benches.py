"""The scripts in `benches`, each run once and tiny."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from edgewise import _native, benchmark, hub
from edgewise.benchmark import Plan

BENCHES = Path(__file__).parents[2] / "benches"
LLAMA_PYTHON = "EDGEWISE_LLAMA_PYTHON"
"""Names the Python that has llama-cpp-python, for the tests that need it."""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script by its name."""
    monkeypatch.syspath_prepend(str(BENCHES))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The `config.json` of a very small model of the family, without a tower."""
    config = json.loads(benchmark.with_layers(benchmark.shapes("0.8B"), 4))
    del config["vision_config"]
    config["text_config"] |= {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    }
    config["text_config"]["rope_parameters"]["mrope_section"] = [3, 3, 2]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def seeing(small: Path) -> Path:
    """The same with a tower."""
    config = json.loads(small.read_text())
    config |= {"image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302}
    config |= {"vision_end_token_id": 303}
    config["vision_config"] = json.loads(benchmark.shapes("0.8B"))["vision_config"] | {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "num_position_embeddings": 64,
        "out_hidden_size": 64,
    }
    small.write_text(json.dumps(config))
    return small


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class TestRandomGguf:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        self.gguf: Any = pytest.importorskip("gguf", reason="the package gguf is not installed")

    def tensors(self, config: Path, *options: str) -> dict[str, Any]:
        destination = config.with_name("random.gguf")
        done = run("random_gguf.py", str(config), str(destination), *options)
        assert done.returncode == 0, done.stderr
        return {tensor.name: tensor for tensor in self.gguf.GGUFReader(destination).tensors}

    def bytes_of(self, tensors: dict[str, Any], kind: str) -> int:
        return sum(int(t.n_bytes) for t in tensors.values() if t.tensor_type.name == kind)

    def test_the_bits_are_those_of_edgewise(self, small: Path) -> None:
        """Of the recipe int4, with scales of 16 bits in place of 8: then INT4 has as many bytes as Q4_0."""
        tensors = self.tensors(small)
        path = str(small.with_name("random.safetensors"))
        recipe = json.loads(_native.default_recipe("int4"))
        assert recipe["rules"].pop() == ["*", "int4_s8"]
        halves = small.with_name("halves.json")
        halves.write_text(json.dumps(recipe | {"rules": [*recipe["rules"], ["*", "int4"]]}))
        _native.write_random(small.read_text(), path, str(halves))
        formats = _native.Engine.open(path, threads=1).info()["formats"]
        assert self.bytes_of(tensors, "Q4_0") == formats["int4"]["bytes"]
        # Gates of two rows stand in panels of 16 here, and alone there.
        assert 8 * self.bytes_of(tensors, "Q8_0") == formats["int8"]["bytes"]
        assert self.bytes_of(tensors, "F32") == formats["f32"]["bytes"]

    def test_the_head_is_the_embedding_if_it_is_tied(self, small: Path) -> None:
        assert "output.weight" not in self.tensors(small)
        config = json.loads(small.read_text())
        small.write_text(json.dumps(config | {"tie_word_embeddings": False}))
        assert list(self.tensors(small)["output.weight"].shape) == [64, 320]

    def test_weights_have_the_variance_of_edgewise_s(self, small: Path) -> None:
        for name, tensor in self.tensors(small).items():
            if tensor.tensor_type.name in ("Q4_0", "Q8_0"):
                weights = self.gguf.dequantize(tensor.data, tensor.tensor_type)
                assert np.isfinite(weights).all()
                assert weights.var() == pytest.approx(1 / int(tensor.shape[0]), rel=0.25), name

    def test_kinds_of_layers(self, small: Path) -> None:
        config = json.loads(small.read_text())
        config["text_config"]["num_hidden_layers"] = 8
        small.write_text(json.dumps(config))
        attention = [i for i in range(8) if f"blk.{i}.attn_q.weight" in self.tensors(small)]
        assert attention == [3, 7]
        assert {name.split(".")[1] for name in self.tensors(small, "--layers", "4") if "blk" in name} == set(
            "0123"
        )

    def test_experts(self, small: Path) -> None:
        config = json.loads(small.read_text())
        del config["text_config"]["intermediate_size"]
        config["text_config"] |= {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        }
        small.write_text(json.dumps(config))
        tensors = self.tensors(small)
        assert list(tensors["blk.2.ffn_gate_exps.weight"].shape) == [64, 32, 6]
        assert list(tensors["blk.3.ffn_down_shexp.weight"].shape) == [32, 64]
        reader = self.gguf.GGUFReader(small.with_name("random.gguf"))
        assert reader.get_field("general.architecture").contents() == "qwen35moe"
        assert reader.get_field("qwen35moe.expert_used_count").contents() == 2


class TestRandomMmproj:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        self.gguf: Any = pytest.importorskip("gguf", reason="the package gguf is not installed")

    def tensors(self, config: Path, *options: str) -> dict[str, Any]:
        tower, words = config.with_name("tower.gguf"), config.with_name("words.gguf")
        done = run("random_mmproj.py", str(config), str(tower), str(words), *options)
        assert done.returncode == 0, done.stderr
        return {tensor.name: tensor for tensor in self.gguf.GGUFReader(tower).tensors}

    def test_the_shapes_are_those_of_edgewise(self, seeing: Path) -> None:
        path = seeing.with_name("random.safetensors")
        _native.write_random(seeing.read_text(), str(path), "f32")
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__")
        shapes = [tensor["shape"] for name, tensor in header.items() if "visual" in name]
        assert len(shapes) == 33
        tensors = self.tensors(seeing).values()
        assert sum(map(math.prod, shapes)) == sum(int(tensor.n_elements) for tensor in tensors)

    def test_matrices_are_f16_or_8_bits(self, seeing: Path) -> None:
        floats = {name: t.tensor_type.name for name, t in self.tensors(seeing).items()}
        assert floats["v.blk.1.attn_qkv.weight"] == floats["mm.2.weight"] == "F16"
        assert floats["v.blk.1.attn_qkv.bias"] == floats["v.position_embd.weight"] == "F32"
        blocks = {name: t.tensor_type.name for name, t in self.tensors(seeing, "--blocks", "Q8_0").items()}
        changed = {name for name, kind in floats.items() if blocks[name] != kind}
        assert changed == {name for name, kind in floats.items() if kind == "F16"} - {
            "v.patch_embd.weight",
            "v.patch_embd.weight.1",
        }

    def test_weights_have_variance_1_over_columns(self, seeing: Path) -> None:
        for name, tensor in self.tensors(seeing).items():
            if tensor.tensor_type.name == "F16":
                columns = int(tensor.n_elements) // 64 if "patch_embd" in name else int(tensor.shape[0])
                assert tensor.data.astype(np.float64).var() == pytest.approx(1 / columns, rel=0.25), name

    def test_deepstack_is_refused(self, seeing: Path) -> None:
        config = json.loads(seeing.read_text())
        config["vision_config"]["deepstack_visual_indexes"] = [1]
        seeing.write_text(json.dumps(config))
        done = run("random_mmproj.py", str(seeing), str(seeing.with_name("t")), str(seeing.with_name("w")))
        assert done.returncode == 1
        assert "DeepStack mergers are not written" in done.stderr


class TestCrowded:
    def test_every_case(self, small: Path) -> None:
        options = ["--shapes", str(small), "--rounds", "1", "--tokens", "16", "--written", "2", "--csv"]
        done = run("crowded.py", *options)
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader(done.stdout.splitlines()))
        cores = len(os.sched_getaffinity(0))
        names = [row["case"] for row in rows]
        assert names[:3] == ["1 thread", f"{cores} threads", f"{cores + 1} threads"]
        limited = f"{cores} threads, quota of one core"
        assert (limited in names) != ("not measured, quota" in done.stderr)
        assert len(names) == 5 + (limited in names)
        for row in rows:
            assert all(float(value) > 0 for key, value in row.items() if key != "case")
        assert rows[0]["prefill_ratio"] == rows[0]["decode_ratio"] == "1"


class TestPicture:
    def test_longer_is_better(self, scripts: Any, tmp_path: Path) -> None:
        record = tmp_path / "record.csv"
        record.write_text(
            "# a machine\nshapes,layers,threads,what,edgewise,llama.cpp,edgewise_is_better_by\n"
            "0.8B,all,2,open_ms,1,2,2\n"
            "0.8B,all,2,prefill_512_tokens_per_s,1000,250,4\n"
            "0.8B,all,2,peak_memory_mb,500,400,0.8\n"
        )
        picture = tmp_path / "speed.svg"
        scripts("picture").main([str(record), str(picture)])
        root = ElementTree.parse(picture).getroot()
        widths = [int(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
        assert widths == [360, 90, 288, 360]
        texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert texts[:3] == ["read 512 tokens", "edgewise 1000 tokens/s", "llama.cpp 250 tokens/s"]

    def test_a_record_of_one_engine(self, scripts: Any, tmp_path: Path) -> None:
        record = tmp_path / "record.csv"
        record.write_text("what,edgewise\nprefill_512_tokens_per_s,1000\n")
        with pytest.raises(ValueError, match="no measure of both engines"):
            scripts("picture").main([str(record), str(tmp_path / "speed.svg")])
        assert not (tmp_path / "speed.svg").exists()


class TestCompare:
    def test_edgewise_alone(self, small: Path, tmp_path: Path) -> None:
        record = tmp_path / "record.csv"
        options = ["--only", "edgewise", "--rounds", "2", "--threads", "1", "--new-tokens", "2"]
        done = run("compare.py", "--shapes", str(small), *options, "--csv", str(record))
        assert done.returncode == 0, done.stderr
        head, *lines = [line.split() for line in done.stdout.splitlines()]
        assert head == ["what", "edgewise"]
        assert {line[0]: float(line[1]) > 0 for line in lines} == dict.fromkeys(
            [
                "open_ms",
                "open_to_first_token_ms",
                "prefill_512_tokens_per_s",
                "decode_at_0_tokens_per_s",
                "peak_memory_mb",
            ],
            True,
        )
        comments = [line for line in record.read_text().splitlines() if line.startswith("#")]
        assert "python benches/compare.py --shapes config.json --only edgewise" in comments[1]
        assert str(tmp_path) not in record.read_text()

    def test_with_llama_cpp(self, small: Path) -> None:
        python = os.environ.get(LLAMA_PYTHON)
        if python is None:
            pytest.skip(f"{LLAMA_PYTHON} does not name a Python with llama-cpp-python")
        options = ["--rounds", "1", "--threads", "1", "--new-tokens", "2", "--long", "--json"]
        done = run("compare.py", "--shapes", str(small), "--llama-python", python, *options)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert set(found["rounds"]) == {"edgewise", "llama.cpp"}
        for row in found["summary"]:
            assert min(row["edgewise"], row["llama.cpp"], row["edgewise_is_better_by"]) > 0

    IMAGE_FIGURES = (
        "open_with_tower_ms",
        "image_to_first_token_ms",
        "open_to_first_token_with_image_ms",
        "later_image_to_first_token_ms",
        "peak_memory_with_image_mb",
    )

    def test_an_image_in_edgewise_alone(self, seeing: Path, tmp_path: Path) -> None:
        record = tmp_path / "record.csv"
        options = ["--only", "edgewise", "--rounds", "1", "--threads", "1", "--image", "256x256"]
        done = run("compare.py", "--shapes", str(seeing), *options, "--csv", str(record))
        assert done.returncode == 0, done.stderr
        assert "edgewise reads [5, 64, 17] tokens" in done.stderr
        found = rows(record)
        assert tuple(row["what"] for row in found) == self.IMAGE_FIGURES
        assert {row["image"] for row in found} == {"256x256"}
        assert all(float(row["edgewise"]) > 0 for row in found)

    @pytest.mark.parametrize("tower", ["F16", "Q8_0"])
    def test_an_image_in_both(self, seeing: Path, tower: str) -> None:
        python = os.environ.get(LLAMA_PYTHON)
        if python is None:
            pytest.skip(f"{LLAMA_PYTHON} does not name a Python with llama-cpp-python")
        options = ["--rounds", "1", "--threads", "1", "--image", "256x256", "--tower", tower, "--json"]
        done = run("compare.py", "--shapes", str(seeing), "--llama-python", python, *options)
        assert done.returncode == 0, done.stderr
        for engine in ("edgewise", "llama.cpp"):
            assert f"{engine} reads [5, 64, 17] tokens" in done.stderr
        summary = json.loads(done.stdout)["summary"]
        assert tuple(row["what"] for row in summary) == self.IMAGE_FIGURES
        assert all(min(row["edgewise"], row["llama.cpp"]) > 0 for row in summary)

    def test_prompts_that_differ_are_refused(self, scripts: Any) -> None:
        with pytest.raises(SystemExit, match="different prompts"):
            scripts("compare").check_tokens({"edgewise": [5, 64, 17], "llama.cpp": [5, 60, 17]})

    def test_an_image_without_a_size(self, small: Path) -> None:
        done = run("compare.py", "--shapes", str(small), "--only", "edgewise", "--image", "640")
        assert done.returncode == 2
        assert "--image: expected WIDTHxHEIGHT such as 640x480, got '640'" in done.stderr

    def test_without_llama_cpp(self, small: Path, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: none here' >&2\nexit 1\n")
        python.chmod(0o755)
        done = run("compare.py", "--shapes", str(small), "--llama-python", str(python))
        assert done.returncode == 1
        assert done.stderr.startswith(f"{python} has no llama.cpp: ModuleNotFoundError: none here\n")
        assert "pip install --no-binary llama-cpp-python" in done.stderr

    def test_a_build_for_less_than_the_processor(self, scripts: Any) -> None:
        compare = scripts("compare")
        about = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 0 | FMA = 1 | "
        assert compare.missing_features(about, {"avx", "avx2", "fma", "sse3"}) == []
        assert compare.missing_features(about, {"avx2", "avx512f", "avx512_vnni"}) == [
            "AVX512",
            "AVX512_VNNI",
        ]

    def test_ratios_are_of_each_round(self, scripts: Any) -> None:
        found = {
            "edgewise": [
                {"x_per_s": 10.0, "ms": 1.0},
                {"x_per_s": 30.0, "ms": 3.0},
                {"x_per_s": 20.0, "ms": 2.0},
            ],
            "llama.cpp": [
                {"x_per_s": 5.0, "ms": 4.0},
                {"x_per_s": 10.0, "ms": 6.0},
                {"x_per_s": 20.0, "ms": 2.0},
            ],
        }
        assert scripts("compare").summary(found) == [
            {"what": "x_per_s", "edgewise": 20.0, "llama.cpp": 10.0, "edgewise_is_better_by": 2.0},
            {"what": "ms", "edgewise": 2.0, "llama.cpp": 4.0, "edgewise_is_better_by": 2.0},
        ]


class TestRecord:
    def test_lines_of_a_record(self, scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        record = scripts("record")
        plan = Plan([8], depths=[0], new_tokens=2, rounds=1, limit_seconds=0.0, breakdown=True)
        found = json.loads(json.dumps(benchmark.measure(hub.resolve("demo"), plan).to_dict()))
        asked: list[tuple[object, ...]] = []

        def measure(*what: object) -> Any:
            asked.append(what)
            return found

        monkeypatch.setattr(record, "measure", measure)
        argv = ["record.py", "here", "--shapes", "2B:8", "--folder", str(tmp_path), "--", "--depth", "0"]
        monkeypatch.setattr(sys, "argv", argv)
        record.main()
        assert asked == [("2B", 8, ["--depth", "0"])]
        speeds, parts = sorted((tmp_path / "here").iterdir(), key=lambda path: len(path.name))
        [decode] = [row for row in rows(speeds) if row["what"] == "decode_tokens_per_s"]
        assert (decode["shapes"], decode["layers"], decode["tokens"]) == ("2B", "8", "0")
        assert float(decode["share"]) > 0
        shares = [float(row["share"]) for row in rows(parts) if row["pass"] == "decode"]
        assert sum(shares) == pytest.approx(1, abs=0.01)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))
