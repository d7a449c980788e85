"""Fetches a model from a repository on the hub: the files it needs and no others, into the hub's own cache.

`huggingface_hub` does the work: it resumes what was broken off, and obeys its environment variables
(`HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN`). Where the hub cannot be reached, what the cache
holds is used.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgewise.progress import Progress
from edgewise.repository_files import INDEX, choose, side_files

Sizes = dict[str, int]
"""The files of a repository, and how many bytes each has."""


def fetch(name: str, choice: str | None, revision: str | None, progress: Progress | None) -> str:
    """Return the path of the model in the repository `name`: of its folder, or of a GGUF file.

    Args:
        name: `organisation/name`.
        choice: which GGUF file, or `None` for a checkpoint of safetensors.
        revision: branch, tag or commit; `None` for the default branch.
        progress: called with (bytes done, bytes in all, file). May raise to stop.

    Raises:
        OSError: if there is no such repository, or the hub cannot give it.
        ValueError: if it is unclear which file is meant.
    """
    with _Faults(name, revision) as faults:
        try:
            sizes = _list(name, revision)
        except Exception as error:
            if not _unreachable(error):
                raise
            return _cached(name, choice, revision, error)
        download = _Download(name, revision, sizes, progress, faults)
        if choice is None and INDEX in sizes:
            download.add([INDEX])
        read = download.get
        weights = choose(name, choice, sorted(sizes), lambda file: json.loads(read(file).read_bytes()))
        # Weights come last: whatever is wrong with small files shows early.
        files = (side_files(sizes) if choice is None else []) + weights
        download.add(files)
        paths = [download.get(file) for file in files]
    first = paths[-len(weights)]
    return str(first if choice is not None else first.parent)


def _list(name: str, revision: str | None) -> Sizes:
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _unreachable(error: Exception) -> bool:
    """Whether the hub could not be asked: it said nothing, or may not be asked, or is broken itself."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return int(getattr(getattr(error, "response", None), "status_code", 0)) >= 500
    return not isinstance(error, errors.HFValidationError)


def _cached(name: str, choice: str | None, revision: str | None, reason: Exception) -> str:
    """Return the path of a model that was fetched before."""
    import huggingface_hub

    folder = Path(_find_snapshot(huggingface_hub, name, revision, reason))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    weights = choose(name, choice, files, lambda file: json.loads((folder / file).read_bytes()))
    missing = [file for file in weights if file not in files]
    if missing:
        raise OSError(f"{name}: {missing[0]} is not in the hub's cache, and {_why(reason)}") from reason
    return str(folder / weights[0] if choice is not None else folder)


def _find_snapshot(hub: Any, name: str, revision: str | None, reason: Exception) -> str:
    """Return the cached folder of the revision, complete or not."""
    from huggingface_hub import constants

    for file in ("config.json", INDEX, "tokenizer.json"):
        found = hub.try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return str(Path(found).parent)
    # A repository of GGUF files has none of these.
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    commit = revision or "main"
    with suppress(OSError):
        commit = (folder / "refs" / commit).read_text().strip()
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir() or snapshot.parent.parent != folder:
        of = "" if revision is None else f" (revision '{revision}')"
        raise OSError(
            f"{name}: no such file or folder here, not in the hub's cache{of}, and {_why(reason)}"
        ) from reason
    return str(snapshot)


def _why(reason: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(reason, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub"
    return f"the hub cannot be reached: {_first_line(reason)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _Download:
    """Fetches files one after another and reports how far it is."""

    def __init__(
        self, name: str, revision: str | None, sizes: Sizes, progress: Progress | None, faults: _Faults
    ) -> None:
        self._name, self._revision, self._sizes = name, revision, sizes
        self._progress, self._faults = progress, faults
        self._wanted: dict[str, int] = {}
        self._done: dict[str, Path] = {}

    def add(self, files: list[str]) -> None:
        """Count these among what is to be fetched."""
        self._wanted |= {file: self._sizes.get(file, 0) for file in files}

    def get(self, file: str) -> Path:
        """Return the path of a file, fetched unless it is in the cache."""
        import huggingface_hub

        if file in self._done:
            return self._done[file]
        arguments: dict[str, Any] = {}
        fetch = huggingface_hub.hf_hub_download
        if self._progress is not None and "tqdm_class" in inspect.signature(fetch).parameters:
            arguments["tqdm_class"] = _bar(lambda done: self._report(file, done))
        path = Path(fetch(self._name, file, revision=self._revision, **arguments))
        folders = {self._root(*done) for done in self._done.items()} | {self._root(file, path)}
        if len(folders) > 1:
            raise OSError(f"{self._name}: changed on the hub while it was fetched; try again")
        self._done[file] = path
        self._report(file, 0)
        return path

    @staticmethod
    def _root(file: str, path: Path) -> Path:
        """Return the snapshot's folder, which is named after the commit."""
        return path.parents[file.count("/")]

    def _report(self, file: str, done: int) -> None:
        if self._progress is None:
            return
        before = sum(self._wanted.get(name, 0) for name in self._done)
        total = sum(self._wanted.values())
        try:
            self._progress(min(before + done, total), total, file)
        except BaseException as error:
            self._faults.own = error
            raise


def _bar(report: Callable[[int], None]) -> type[Any]:
    """Return what the hub takes for a progress bar, which draws nothing and reports bytes."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})
            self._bytes = int(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._bytes += int(n or 0)
            report(self._bytes)
            return None

    return Bar


class _Faults:
    """Turns what goes wrong on the way into one clear error."""

    def __init__(self, name: str, revision: str | None) -> None:
        self._name, self._revision = name, revision
        self.own: BaseException | None = None
        """What the caller's progress raised: its own affair."""

    def __enter__(self) -> _Faults:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.own is not None:
            raise self.own
        if isinstance(error, Exception):
            translated = self._translated(error)
            if translated is not error:
                raise translated from error

    def _translated(self, error: Exception) -> Exception:
        from huggingface_hub import errors

        name = self._name
        if isinstance(error, errors.GatedRepoError):
            return OSError(
                f"{name}: its owner asks for consent first: accept the terms on its page, then "
                "'hf auth login'"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return FileNotFoundError(
                f"{name}: no such file or folder here, and no such repository on the hub (or it is private)"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return FileNotFoundError(f"{name}: the repository has no revision '{self._revision}'")
        if isinstance(error, errors.HFValidationError):
            return FileNotFoundError(f"{name}: no such file or folder, nor a valid id on the hub: {error}")
        if isinstance(error, errors.LocalEntryNotFoundError):
            return OSError(f"{name}: the connection to the hub broke off; try again to go on from there")
        own = isinstance(error, OSError | ValueError) and str(error).startswith(f"{name}:")
        # The HTTP library below, which differs between versions, has errors of its own.
        return error if own else OSError(f"{name}: the hub could not give it: {_first_line(error)}")
