"""From what the user wrote to a path, and converted weights kept for the next time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from edgewise import _native, cache, hub


class TestResolve:
    def test_something_local_is_taken_as_it_is(self, tmp_path: Path) -> None:
        assert hub.resolve(str(tmp_path)) == str(tmp_path)
        assert hub.resolve(tmp_path) == str(tmp_path)

    def test_a_local_folder_comes_before_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "org" / "name").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert Path(hub.resolve("org/name")) == Path("org/name")

    def test_home_is_understood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert hub.resolve("~") == str(tmp_path)

    @pytest.mark.parametrize(
        "name", ["", "nothing", "/nothing/here", "a/b/c", "../no-such-model", "org/", "model.gguf"]
    )
    def test_nothing_of_that_name(self, name: str) -> None:
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            hub.resolve(name)

    def test_the_demo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "demo.safetensors"
        monkeypatch.setattr(hub, "DEMO_FILE", file)
        with pytest.raises(FileNotFoundError, match="the demo model is missing from this installation"):
            hub.resolve("demo")
        file.touch()
        assert hub.resolve("demo") == str(file)

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            (errors.GatedRepoError, "asks for consent"),
            (errors.RepositoryNotFoundError, "no such repository"),
            (errors.RevisionNotFoundError, "no revision 'v1'"),
            (errors.HFValidationError, "nor a valid id"),
            (errors.HfHubHTTPError, "could not give it"),
            (ConnectionError, "hub cannot be reached"),
            (RuntimeError, "hub cannot be reached"),
        ],
    )
    def test_each_fault_is_one_clear_error(
        self, kind: type[Exception], reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def list_files(*_: Any, **__: Any) -> str:
            raise kind.__new__(kind)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", list_files)
        with pytest.raises(OSError, match=f"^org/name: .*{reason}"):
            hub.resolve("org/name", "v1")


class TestCache:
    @pytest.fixture
    def written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        """Calls of the native conversion, which here only creates the file."""
        calls: list[tuple[Any, ...]] = []

        def quantize(*arguments: Any) -> dict[str, Any]:
            calls.append(arguments)
            Path(arguments[1]).write_bytes(b"weights")
            return {}

        monkeypatch.setattr(_native, "quantize", quantize)
        monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        return calls

    def test_written_once_and_again_when_anything_changes(self, tmp_path: Path, written: list[Any]) -> None:
        model = str(tmp_path / "model")
        first = cache.converted(model, "int4", None, 2, None)
        assert cache.converted(model, "int4", None, None, None) == first
        assert written == [(model, first, "int4", 2, None)]
        assert Path(first).parent == tmp_path / "cache"
        assert cache.converted(model, "int8", None, None, None) != first
        assert cache.converted(model, "int4", "careful", None, None) != first
        os.utime(tmp_path / "model" / "config.json", (0, 0))
        assert cache.converted(model, "int4", None, None, None) != first
        assert len(written) == 4

    @pytest.mark.parametrize("dtype", ["auto", "f32", "bf16"])
    def test_without_a_conversion_there_is_nothing_to_keep(self, dtype: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^cache: only converted weights are kept"):
            cache.converted(str(tmp_path), dtype, None, None, None)

    def test_where_it_lies(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("EDGEWISE_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache.folder() == tmp_path / "edgewise"
