"""Models fetched from a hub: which files, into which cache, how far, and what is said when it fails.

The hub's library reads its settings when it is imported, so each attempt is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import fake_hub
import gguf_files
import golden
from edgewise import Model, hub
from fake_hub import Files, Hub
from gguf_files import Types

ATTEMPT = """
import json, sys
from edgewise import hub
name, revision, reporting = json.loads(sys.argv[1])
reports = []
try:
    path = hub.resolve(name, revision, (lambda *report: reports.append(report)) if reporting else None)
    print(json.dumps({"path": path, "reports": reports}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""

SIDES: Files = {"config.json": b'{"a": 1}', "tokenizer.json": b'{"b": 2}', "generation_config.json": b"{}"}
CLUTTER: Files = {
    "README.md": b"# A model", ".gitattributes": b"", "pytorch_model.bin": b"x" * 100,
    "original/model.safetensors": b"o", "figure.png": b"p", "consolidated.safetensors": b"c",
}  # fmt: skip
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
SHARDS: Files = {
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": b"1" * 1000,
    "model-00002-of-00002.safetensors": b"2" * 3000,
}


@dataclass(frozen=True)
class Setting:
    hub: Hub
    home: Path

    def resolve(
        self, name: str, revision: str | None = None, report: bool = False, env: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """What came of one attempt, in a process of its own."""
        settings = {
            "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", ATTEMPT, json.dumps([name, revision, report])],
            capture_output=True, text=True, timeout=100, cwd=self.home,
            env=os.environ | settings | (env or {}),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def folder(self, name: str, revision: str | None = None, **env: str) -> Path:
        result = self.resolve(name, revision, env=env)
        assert "path" in result, result
        return Path(result["path"])

    def refusal(self, name: str, revision: str | None = None, **env: str) -> tuple[str, str]:
        result = self.resolve(name, revision, env=env)
        return result["error"], result["message"]


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with fake_hub.serving() as hub:
        yield Setting(hub, tmp_path)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class TestSafetensors:
    def test_only_the_files_that_are_needed(self, setting: Setting) -> None:
        weights = {"model.safetensors": b"w" * 5000}
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES | CLUTTER | weights)
        folder = setting.folder("org/name")
        assert names(folder) == {*SIDES, "model.safetensors"}
        assert (folder / "model.safetensors").read_bytes() == b"w" * 5000
        assert setting.home / "hub" in folder.parents
        assert sorted(setting.hub.fetched()) == sorted([*SIDES, "model.safetensors"])

    def test_shards_are_those_of_the_index(self, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES | CLUTTER | SHARDS)
        assert names(setting.folder("org/name")) == {*SIDES, *SHARDS}

    def test_a_single_file_of_another_name(self, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository({"small-int4.safetensors": b"w"})
        assert names(setting.folder("org/name")) == {"small-int4.safetensors"}

    def test_nothing_is_fetched_twice(self, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES | SHARDS)
        first = setting.folder("org/name")
        setting.hub.requests.clear()
        assert setting.folder("org/name") == first
        assert setting.hub.fetched() == []

    def test_a_revision(self, setting: Setting) -> None:
        old = {"config.json": b"{}", "model.safetensors": b"old"}
        repository = fake_hub.repository(SIDES | {"model.safetensors": b"new"}, v1=old)
        setting.hub.repositories["org/name"] = repository
        for revision, content in [("v1", b"old"), (None, b"new"), (repository.names["v1"], b"old")]:
            assert (setting.folder("org/name", revision) / "model.safetensors").read_bytes() == content

    def test_what_was_fetched_opens(self, setting: Setting) -> None:
        case = golden.FOLDER / "dense_text"
        files = {name: (case / name).read_bytes() for name in ["config.json", "model.safetensors"]}
        setting.hub.repositories["org/name"] = fake_hub.repository(files)
        code = "import edgewise; print(edgewise.Model.from_pretrained('org/name', 'f32').vocab_size)"
        settings = {"HF_ENDPOINT": setting.hub.url, "HF_HOME": str(setting.home), "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | settings,
        )
        assert done.stdout == "512\n", done.stderr


class TestGguf:
    FILES: ClassVar[Files] = {
        "Small-Q4_K_M.gguf": b"q4", "Small-Q4_K_S.gguf": b"q4s", "Small-Q8_0.gguf": b"q8",
        "mmproj-F16.gguf": b"v",
        "UD/Small-UD-Q4_K_XL-00001-of-00002.gguf": b"x1",
        "UD/Small-UD-Q4_K_XL-00002-of-00002.gguf": b"x2",
        "README.md": b"#", "config.json": b"{}",
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("choice", "first", "fetched"),
        [
            ("Q4_K_M", "Small-Q4_K_M.gguf", ["Small-Q4_K_M.gguf", "mmproj-F16.gguf"]),
            ("q8_0", "Small-Q8_0.gguf", ["Small-Q8_0.gguf", "mmproj-F16.gguf"]),
            ("Small-Q8_0.gguf", "Small-Q8_0.gguf", ["Small-Q8_0.gguf", "mmproj-F16.gguf"]),
            (
                "UD-Q4_K_XL",
                "UD/Small-UD-Q4_K_XL-00001-of-00002.gguf",
                ["UD/Small-UD-Q4_K_XL-00001-of-00002.gguf", "UD/Small-UD-Q4_K_XL-00002-of-00002.gguf"],
            ),
        ],
    )
    def test_a_file_is_chosen_by_a_part_of_its_name(
        self, choice: str, first: str, fetched: list[str], setting: Setting
    ) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(self.FILES)
        path = setting.folder(f"org/name:{choice}")
        assert str(path).endswith(first)
        assert path.read_bytes() == self.FILES[first]
        assert setting.hub.fetched() == fetched
        assert setting.folder(f"org/name:{choice}", HF_HUB_OFFLINE="1") == path

    def test_what_is_fetched_is_opened_with_its_tower(self, setting: Setting, tmp_path: Path) -> None:
        folder = golden.FOLDER / "image"
        model = gguf_files.write(gguf_files.Checkpoint(folder), tmp_path / "a-Q8_0.gguf", Types.Q8_0)
        vision = gguf_files.write_vision(folder, tmp_path / "mmproj-F32.gguf")
        files = {path.name: path.read_bytes() for path in (model, vision)}
        setting.hub.repositories["org/name"] = fake_hub.repository(files)
        opened = Model.from_pretrained(setting.folder("org/name:Q8_0"))
        assert opened.info()["converted_from"] == "GGUF"
        assert "vision_config" in opened.config
        np.testing.assert_array_equal(
            opened.logits([1, 2, 3]), Model.from_pretrained(model).logits([1, 2, 3])
        )

    def test_no_choice_or_none_that_is_clear(self, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(self.FILES)
        kind, message = setting.refusal("org/name")
        assert kind == "ValueError"
        assert message.startswith(
            "org/name: holds GGUF files; choose one, such as 'org/name:Q4_K_M': Small-Q4_K_M, "
        )
        kind, message = setting.refusal("org/name:Q5_0")
        assert (kind, "no GGUF file for 'Q5_0'" in message) == ("FileNotFoundError", True)
        setting.hub.repositories["org/two"] = fake_hub.repository({"a-Q4_0.gguf": b"", "b-Q4_0.gguf": b""})
        kind, message = setting.refusal("org/two:Q4_0")
        assert (kind, message) == ("ValueError", "org/two: 'Q4_0' fits several GGUF files: a-Q4_0, b-Q4_0")
        assert setting.hub.fetched() == []


class TestProgress:
    def test_bytes_rise_to_all_of_them(self, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES | SHARDS)
        reports = setting.resolve("org/name", report=True)["reports"]
        done = [report[0] for report in reports]
        total = sum(map(len, (SIDES | SHARDS).values()))
        assert done == sorted(done)
        assert reports[-1] == [total, total, "model-00002-of-00002.safetensors"]
        assert {name for _, _, name in reports} == {*SIDES, *SHARDS}

    def test_what_was_broken_off_is_resumed(self, setting: Setting) -> None:
        # The library keeps what has come in pieces of 10 MB.
        content = os.urandom(12 << 20)
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES | {"model.safetensors": content})
        setting.hub.break_once["model.safetensors"] = 11 << 20
        result = setting.resolve("org/name")
        if "error" in result:  # some versions of the library try again by themselves
            assert result["error"] == "OSError"
            result = setting.resolve("org/name")
        assert (Path(result["path"]) / "model.safetensors").read_bytes() == content
        ranges = [
            asked
            for method, path, asked in setting.hub.requests
            if "model.safetensors" in path and method == "GET"
        ]
        assert ranges[0] is None
        assert int(str(ranges[-1]).removeprefix("bytes=").partition("-")[0]) >= 10 << 20


class TestFaults:
    def test_no_such_repository(self, setting: Setting) -> None:
        kind, message = setting.refusal("org/none")
        assert kind == "FileNotFoundError"
        assert message.startswith("org/none: no such file or folder here, and no such repository on the hub")

    def test_gated(self, setting: Setting) -> None:
        repository = fake_hub.repository(SIDES | {"model.safetensors": b"w"})
        repository.gated = True
        setting.hub.repositories["org/name"] = repository
        kind, message = setting.refusal("org/name")
        assert kind == "OSError"
        assert message.startswith("org/name: its owner asks for consent first: accept the terms on its page")

    def test_no_such_revision(self, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES)
        assert setting.refusal("org/name", "v9") == (
            "FileNotFoundError",
            "org/name: the repository has no revision 'v9'",
        )

    @pytest.mark.parametrize(
        ("files", "reason"),
        [
            ({"pytorch_model.bin": b""}, "holds no weights in safetensors files"),
            (
                {"a.safetensors": b"", "b.safetensors": b""},
                "unclear which of its files is the model: a.safetensors, b",
            ),
            ({"model.safetensors.index.json": b"{}"}, "names no files of weights"),
            ({"model.safetensors.index.json": b"["}, "could not give it"),
            ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'}, "names no files of weights"),
            ({"model.safetensors.index.json": b'{"weight_map": {"a": "x"}}'}, "could not give it"),
        ],
    )
    def test_nothing_that_could_be_opened(self, files: Files, reason: str, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES | files)
        kind, message = setting.refusal("org/name")
        assert kind in ("OSError", "ValueError", "FileNotFoundError")
        assert message.startswith("org/name: ")
        assert reason in message

    def test_without_network_or_with_a_broken_hub(self, setting: Setting) -> None:
        for env in [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]:
            kind, message = setting.refusal("org/name", **env)
            assert kind == "OSError"
            reason = (
                "HF_HUB_OFFLINE forbids to ask the hub"
                if "HF_HUB_OFFLINE" in env
                else "the hub cannot be reached: "
            )
            assert f"org/name: no such file or folder here, not in the hub's cache, and {reason}" in message

    def test_without_network_the_cache_serves(self, setting: Setting) -> None:
        setting.hub.repositories["org/name"] = fake_hub.repository(SIDES | SHARDS)
        folder = setting.folder("org/name")
        assert setting.folder("org/name", HF_HUB_OFFLINE="1") == folder
        assert setting.folder("org/name", HF_ENDPOINT="http://127.0.0.1:9") == folder
        setting.hub.broken = True
        assert setting.folder("org/name") == folder
        (folder / "model-00002-of-00002.safetensors").unlink()
        kind, message = setting.refusal("org/name", HF_HUB_OFFLINE="1")
        assert kind == "OSError"
        assert message.startswith(
            "org/name: model-00002-of-00002.safetensors is not in the hub's cache, and HF_HUB"
        )

    def test_a_revision_of_something_local(self, setting: Setting) -> None:
        (setting.home / "here").mkdir()
        for name in ["demo", "here"]:
            kind, message = setting.refusal(name, "v1")
            assert (kind, "is on this computer" in message) == ("ValueError", True)


def test_parts_of_a_gguf_model_are_all_there() -> None:
    files = ["a-Q8_0-00001-of-00003.gguf", "a-Q8_0-00003-of-00003.gguf"]
    with pytest.raises(FileNotFoundError, match="not all files of a GGUF model are there"):
        hub.choose("org/name", "Q8_0", files, lambda _: None)


@pytest.mark.parametrize(
    ("files", "vision"),
    [
        (["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], ["mmproj-F16.gguf"]),
        (["mmproj-a-BF16.gguf", "mmproj-a-Q8_0.gguf"], ["mmproj-a-BF16.gguf"]),
        (["mmproj.gguf"], ["mmproj.gguf"]),
        (["mmproj-a-F16.gguf", "mmproj-b-F16.gguf"], []),
        (["other/mmproj-F16.gguf"], []),
    ],
)
def test_the_vision_file_of_a_gguf_model(files: list[str], vision: list[str]) -> None:
    chosen = hub.choose("org/name", "Q8_0", sorted(["a-Q8_0.gguf", *files]), lambda _: None)
    assert chosen == ["a-Q8_0.gguf", *vision]
