"""From what the user wrote to a path: something local, the model in the package, or one from the hub.

Of a repository on the hub, the files that a model needs are fetched and no others, into the hub's own cache.
`huggingface_hub` does the work: it resumes what was broken off, and obeys its environment variables
(`HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN`). Where the hub cannot be reached, what the cache
holds is used.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgewise.progress import Progress

DEMO = "demo"
DEMO_FILE = Path(__file__).parent / "demo" / "demo.safetensors"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SIDE_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "video_preprocessor_config.json",
]  # fmt: skip
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_VISION = "mmproj"
"""What the name of a GGUF file with a vision tower contains."""
_VISION_TYPE = re.compile(r"[-._](f16|bf16|f32|q\d\w*)$", re.IGNORECASE)
_VISION_TYPES = ["f16", "bf16", "f32"]
"""The first that is there is fetched; nearly every repository has F16."""
_MOST_NAMED = 12
Sizes = dict[str, int]
"""The files of a repository, and how many bytes each has."""


def resolve(
    path_or_id: str | os.PathLike[str],
    revision: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Return the path of a checkpoint, fetched from the hub first if need be.

    `demo` is always the model that comes with the package; write `./demo` for a folder of that name. Behind
    the id of a repository of GGUF files, a colon and a part of a name choose one: `org/name:Q4_K_M`. The file
    with its vision tower comes along.

    Args:
        path_or_id: what the user wrote.
        revision: branch, tag or commit of a repository on the hub.
        progress: called with (bytes done, bytes in all, file) while files are fetched.

    Raises:
        OSError: if there is no such checkpoint, or the hub cannot give it.
        ValueError: if a revision is given for something that is not on the hub, or it is unclear which file
            of a repository is meant.
    """
    name = os.fspath(path_or_id)
    if name == DEMO:
        return _local(_demo(), name, revision)
    path = Path(name).expanduser()
    if name and path.exists():
        return _local(str(path), name, revision)
    found = _HUB_ID.fullmatch(name)
    if not found:
        raise FileNotFoundError(f"{name}: no such file or folder, nor an id of the form 'organisation/name'")
    return fetch(found[1], found[2], revision, progress)


def _local(path: str, name: str, revision: str | None) -> str:
    if revision is not None:
        raise ValueError(
            f"revision: '{name}' is on this computer, only a repository of the hub has revisions"
        )
    return path


def _demo() -> str:
    if not DEMO_FILE.is_file():
        raise FileNotFoundError(f"{DEMO_FILE}: the demo model is missing from this installation of edgewise")
    return str(DEMO_FILE)


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
        download = huggingface_hub.hf_hub_download
        if self._progress is not None and "tqdm_class" in inspect.signature(download).parameters:
            arguments["tqdm_class"] = _bar(lambda done: self._report(file, done))
        path = Path(download(self._name, file, revision=self._revision, **arguments))
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


def side_files(files: Iterable[str]) -> list[str]:
    """Return the small files among `files` that a model reads, in a fixed order."""
    there = set(files)
    return [file for file in SIDE_FILES if file in there]


def choose(name: str, choice: str | None, files: list[str], read: Callable[[str], Any]) -> list[str]:
    """Return the files with the weights, the one to be opened first.

    Args:
        name: the repository, for messages.
        choice: which GGUF file, or `None` for safetensors.
        files: all names in the repository, sorted.
        read: gives the parsed JSON of a file.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if it is unclear which are meant.
    """
    return _safetensors(name, files, read) if choice is None else _gguf(name, choice, files)


def _safetensors(name: str, files: list[str], read: Callable[[str], Any]) -> list[str]:
    if SINGLE in files:
        return [SINGLE]
    if INDEX in files:
        return _shards(name, read(INDEX))
    found = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    if len(found) == 1:
        return found
    if found:
        raise ValueError(f"{name}: it is unclear which of its files is the model: {_listed(found)}")
    if models := _models(files):
        raise ValueError(
            f"{name}: holds GGUF files; choose one, such as '{name}:{_label(models)}': {_listed(models)}"
        )
    raise FileNotFoundError(f"{name}: the repository holds no weights in safetensors files")


def _shards(name: str, index: Any) -> list[str]:
    """Return the files that an index names, each once."""
    places = index.get("weight_map") if isinstance(index, dict) else None
    files = sorted(set(places.values())) if isinstance(places, dict) else []
    if not files or not all(isinstance(file, str) and "/" not in file and "\\" not in file for file in files):
        raise OSError(f"{name}: {INDEX} names no files of weights")
    return files


def _models(files: list[str]) -> dict[str, list[str]]:
    """GGUF models by name without ending: the parts of each, in order. Vision files are not models."""
    models: dict[str, list[str]] = {}
    for file in files:
        if file.lower().endswith(".gguf") and _VISION not in file.lower():
            models.setdefault(_PART.sub("", file[:-5]), []).append(file)
    return models


def _gguf(name: str, choice: str, files: list[str]) -> list[str]:
    models = _models(files)
    if not models:
        raise FileNotFoundError(f"{name}: the repository holds no GGUF files")
    wanted = choice.removesuffix(".gguf").lower()
    exact = [model for model in models if model.rpartition("/")[2].lower() == _PART.sub("", wanted)]
    ends = re.compile(rf"(^|[-._/]){re.escape(wanted)}$", re.IGNORECASE)
    found = exact or [model for model in models if ends.search(model)]
    if not found:
        raise FileNotFoundError(f"{name}: the repository has no GGUF file for '{choice}': {_listed(models)}")
    if len(found) > 1:
        raise ValueError(f"{name}: '{choice}' fits several GGUF files: {_listed(found)}")
    parts = models[found[0]]
    _check_parts(name, parts)
    return parts + _vision_file(files, parts[0])


def _vision_file(files: list[str], model: str) -> list[str]:
    """Return the file with the vision tower of the GGUF file `model`, if there is one.

    It stands in the model's folder. Several that differ in more than their type belong to several models: as
    none of them says to which, none is taken.
    """
    folder = model.rpartition("/")[0]
    found: dict[str, str] = {}
    names = set()
    for file in files:
        if file.rpartition("/")[0] == folder and file.lower().endswith(".gguf") and _VISION in file.lower():
            kind = _VISION_TYPE.search(file[:-5])
            found[kind[1].lower() if kind else ""] = file
            names.add(_VISION_TYPE.sub("", file[:-5]))
    if len(names) != 1:
        return []
    kinds = [kind for kind in _VISION_TYPES if kind in found]
    return [found[(kinds or sorted(found))[0]]]


def _check_parts(name: str, parts: list[str]) -> None:
    """Refuse a model in several files of which some are not there."""
    numbers = [_PART.search(part[:-5]) for part in parts]
    counts = {int(number[2]) for number in numbers if number}
    numbered = [int(number[1]) for number in numbers if number]
    if counts and (len(counts) > 1 or numbered != list(range(1, counts.pop() + 1))):
        raise FileNotFoundError(f"{name}: not all files of a GGUF model are there: {_listed(parts)}")


def _label(models: Iterable[str]) -> str:
    """Return what chooses the first of `models`."""
    return min(models).rpartition("/")[2].rpartition("-")[2]


def _listed(names: Iterable[str]) -> str:
    """Return some of `names`, for a message."""
    listed = sorted(names)
    more = ", ..." if len(listed) > _MOST_NAMED else ""
    return ", ".join(listed[:_MOST_NAMED]) + more
