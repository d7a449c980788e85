"""The commands, on a fake model: what they print, how they end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fakes
from edgewise import Model, _native, hub
from edgewise.cli import chat as chat_command
from edgewise.cli import info, main, terminal
from edgewise.cli.thoughts import ThoughtSplitter
from fakes import INFO, FakeModel, side_files

Captured = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeModel]:
    """Makes every command open the one model in this list, put there by `use`."""
    models: list[FakeModel] = []
    monkeypatch.setattr(Model, "from_pretrained", lambda *_, **__: models[0])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return models


def use(opened: list[FakeModel], answer: Any = "Hello.", **engine: Any) -> FakeModel:
    opened[:] = [FakeModel(answer, **engine)]
    return opened[0]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two pictures, a clip of four frames and a text."""
    paths = {name: tmp_path / f"{name}.png" for name in ("red", "blue")} | {"clip": tmp_path / "clip.gif"}
    pictures = {name: Image.new("RGB", (64, 64), name) for name in ("red", "blue")}
    for name, picture in pictures.items():
        picture.save(paths[name])
    frames = [Image.new("RGB", (64, 64), (60 * i, 0, 0)) for i in range(4)]
    frames[0].save(paths["clip"], save_all=True, append_images=frames[1:], duration=500)
    paths["text"] = tmp_path / "text.txt"
    paths["text"].write_text("not a picture")
    return {name: str(path) for name, path in paths.items()}


def prompts(model: FakeModel) -> list[str]:
    """The prompts that the engine was given, as text."""
    return [model.tokenizer.decode(sequence.appended[0]) for sequence in model.engine.sequences]


class TestMain:
    def test_version(self, capsys: Captured) -> None:
        with pytest.raises(SystemExit) as left:
            main(["--version"])
        assert left.value.code == 0
        assert capsys.readouterr().out.startswith("edgewise ")

    @pytest.mark.parametrize("argv", [[], ["dance"], ["generate"], ["generate", "m", "p", "--top-k", "x"]])
    def test_a_wrong_command_line_is_code_2(self, argv: list[str], capsys: Captured) -> None:
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == 2
        assert "usage: edgewise" in capsys.readouterr().err

    def test_as_a_module(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "edgewise", "info", "/nothing/here"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "edgewise: /nothing/here: no such file or folder, nor an id of the form 'organisation/name'\n"
        )

    def test_an_error_is_one_line(self, opened: list[FakeModel], capsys: Captured) -> None:
        use(opened)
        assert main(["generate", "m", "Hi", "--top-p", "2"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("edgewise: top_p: ")
        assert captured.err.count("\n") == 1

    def test_debug_shows_where(self, opened: list[FakeModel]) -> None:
        use(opened)
        with pytest.raises(ValueError, match="top_p"):
            main(["generate", "m", "Hi", "--top-p", "2", "--debug"])

    def test_an_unforeseen_error_names_its_kind(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("two\nlines")

        monkeypatch.setattr(Model, "from_pretrained", fail)
        assert main(["generate", "m", "Hi"]) == 1
        assert capsys.readouterr().err == "edgewise: RuntimeError: two lines (--debug shows where)\n"

    def test_an_interrupt_is_code_130(self, opened: list[FakeModel]) -> None:
        use(opened).engine.interrupt_at = 0
        assert main(["generate", "m", "Hi"]) == 130

    def test_a_reader_that_leaves_is_no_error(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        class Closed(io.StringIO):
            def write(self, _: str) -> int:
                raise BrokenPipeError

        use(opened)
        monkeypatch.setattr(sys, "stdout", Closed())
        assert main(["generate", "m", "Hi"]) == 141
        assert capsys.readouterr().err == ""

    def test_a_terminal_without_unicode(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(opened, "é😀!")
        buffer = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
        assert main(["generate", "m", "Hi"]) == 0
        assert buffer.getvalue() == b"\xe9?!\n"

    def test_a_real_pipe_that_closes(self) -> None:
        """As `edgewise info | true`: nothing on stderr, not even at the interpreter's exit."""
        read_end, write_end = os.pipe()
        os.close(read_end)
        code = "import sys; from edgewise.cli import main; sys.exit(main(['info']))"
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(write_end)
        assert (done.returncode, done.stderr) == (141, "")


class TestGenerate:
    def test_the_answer_and_nothing_else(self, opened: list[FakeModel], capsys: Captured) -> None:
        model = use(opened, "Grüße 😀")
        assert main(["generate", "m", "Hi", "--no-think", "--system", "Be kind."]) == 0
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("Grüße 😀\n", "")
        assert prompts(model)[0].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi")

    def test_options_reach_the_sampler(self, opened: list[FakeModel], capsys: Captured) -> None:
        model = use(opened, "abc")
        argv = ["--temperature", "0.5", "--top-k", "3", "--seed", "9", "--stop", "b", "--stop", "z"]
        assert main(["generate", "m", "Hi", *argv, "--max-new-tokens", "5"]) == 0
        assert capsys.readouterr().out == "a\n"
        options = model.samplers[0].options
        assert (options["temperature"], options["top_k"], options["seed"]) == (0.5, 3, 9)

    def test_a_prompt_from_stdin(
        self, opened: list[FakeModel], capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = use(opened)
        monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
        assert main(["generate", "m", "-", "--raw"]) == 0
        assert prompts(model) == ["one\ntwo"]
        assert capsys.readouterr().out == "Hello.\n"

    def test_no_second_line_end(self, opened: list[FakeModel], capsys: Captured) -> None:
        use(opened, "a\n")
        assert main(["generate", "m", "Hi"]) == 0
        assert capsys.readouterr().out == "a\n"

    def test_json(self, opened: list[FakeModel], capsys: Captured) -> None:
        use(opened, "é")
        assert main(["generate", "m", "Hi", "--json", "--logprobs", "1"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["text"], result["finish_reason"], len(result["logprobs"])) == ("é", "stop", 3)

    def test_stats_go_to_stderr(self, opened: list[FakeModel], capsys: Captured) -> None:
        use(opened)
        assert main(["generate", "m", "Hi", "--stats"]) == 0
        captured = capsys.readouterr()
        assert captured.out == "Hello.\n"
        assert "wrote 7 at" in captured.err
        assert "looked" not in captured.err

    def test_stats_tell_the_time_of_looking(
        self, opened: list[FakeModel], files: dict[str, str], capsys: Captured
    ) -> None:
        use(opened)
        assert main(["generate", "m", "Hi", "--stats", "--image", files["red"]]) == 0
        assert "looked for " in capsys.readouterr().err

    @pytest.mark.parametrize("system", [[], ["--system", "Be kind."]])
    def test_images_and_videos(
        self, system: list[str], opened: list[FakeModel], files: dict[str, str], capsys: Captured
    ) -> None:
        model = use(opened)
        media = ["--video", files["clip"], "--image", files["red"], "--image", files["blue"]]
        argv = ["generate", "m", "What?", *media, "--max-pixels", "4096", "--fps", "2", *system]
        assert main(argv) == 0
        assert (capsys.readouterr().out, model.engine.sequences[0].media[0][0] > 0) == ("Hello.\n", True)
        (prompt,) = prompts(model)
        order = [prompt.index(pad) for pad in ("<|image_pad|>", "<|video_pad|>", "What?")]
        assert order == sorted(order)
        assert prompt.count("<|image_pad|>") == 8, "as --max-pixels says"
        assert prompt.startswith("<|im_start|>system") == bool(system)

    @pytest.mark.parametrize("system", [[], ["--system", "Be kind."]])
    def test_several_pictures_are_one_video(
        self, system: list[str], opened: list[FakeModel], files: dict[str, str]
    ) -> None:
        model = use(opened)
        argv = ["generate", "m", "What?", *["--video", files["red"]] * 4, "--source-fps", "0.5", *system]
        assert main(argv) == 0
        assert len(model.engine.sequences[0].media) == 2
        assert "<5.0 seconds>" in prompts(model)[0]

    def test_videos_and_single_frames_do_not_mix(
        self, opened: list[FakeModel], files: dict[str, str], capsys: Captured
    ) -> None:
        use(opened)
        argv = ["generate", "m", "What?", "--video", files["clip"], "--video", files["red"]]
        assert main(argv) == 1
        assert capsys.readouterr().err.startswith("edgewise: videos[1]: ")

    def test_a_raw_prompt_with_an_image(self, opened: list[FakeModel], files: dict[str, str]) -> None:
        model = use(opened)
        text = "Look: <|vision_start|><|image_pad|><|vision_end|>"
        argv = ["generate", "m", text, "--raw", "--image", files["red"], "--max-pixels", "1024"]
        assert main(argv) == 0
        assert prompts(model) == [text]

    @pytest.mark.parametrize("file", ["/nothing/here.png", "text"])
    def test_an_image_that_is_none(
        self, file: str, opened: list[FakeModel], files: dict[str, str], capsys: Captured
    ) -> None:
        use(opened)
        assert main(["generate", "m", "Hi", "--image", files.get(file, file)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("edgewise: images[0]: ")
        assert captured.err.count("\n") == 1

    @pytest.mark.parametrize("seconds", [0.0, 1.0])
    def test_a_bar_for_slow_images_on_a_terminal(
        self,
        seconds: float,
        opened: list[FakeModel],
        files: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        now = [0.0]

        def tick() -> None:
            now[0] += seconds

        monkeypatch.setattr("time.monotonic", lambda: now[0])
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        use(opened).engine.before_encode = tick
        argv = ["generate", "m", "Hi", "--image", files["red"], "--image", files["blue"]]
        assert main([*argv, "--max-pixels", "4096"]) == 0
        assert ("looking [######......" in screen.getvalue()) == (seconds > 0)
        assert ("8/8 tokens" in screen.getvalue()) == (seconds > 0)
        assert (screen.getvalue() == "") == (seconds == 0)

    @pytest.mark.parametrize("flags", [["--logprobs", "1"], ["--raw", "--system", "x"]])
    def test_flags_that_do_not_go_together(
        self, flags: list[str], opened: list[FakeModel], capsys: Captured
    ) -> None:
        use(opened)
        assert main(["generate", "m", "Hi", *flags]) == 1
        assert flags[-2] in capsys.readouterr().err


class TestChat:
    def talk(self, monkeypatch: pytest.MonkeyPatch, text: str, *flags: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return main(["chat", "m", *flags])

    def test_history_is_kept(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        model = use(opened, "Yes.")
        assert self.talk(monkeypatch, "One?\n\nTwo?\n", "--system", "Be kind.") == 0
        assert capsys.readouterr().out == "Yes.\nYes.\n"
        assert prompts(model)[1] == (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
            "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_commands(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
    ) -> None:
        model = use(opened, "Yes.")
        file = tmp_path / "said.json"
        text = f"/help\nOne?\n/reset\n/system Sing.\n/think on\nTwo?\n/save {file}\n/quit\nThree?\n"
        assert self.talk(monkeypatch, text) == 0
        assert len(prompts(model)) == 2
        assert prompts(model)[1].startswith("<|im_start|>system\nSing.<|im_end|>\n<|im_start|>user\nTwo?")
        assert prompts(model)[1].endswith("<think>\n")
        saved = json.loads(file.read_text())
        assert [message["role"] for message in saved] == ["system", "user", "assistant"]
        assert "/reset" in capsys.readouterr().out

    @pytest.mark.parametrize("line", ["/dance", "/think maybe", "/save", "/save /nothing/here/x"])
    def test_a_wrong_command_is_told_and_the_chat_goes_on(
        self, line: str, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        use(opened)
        assert self.talk(monkeypatch, f"{line}\nHi\n") == 1
        captured = capsys.readouterr()
        assert captured.out == "Hello.\n"
        assert captured.err.startswith("edgewise: ")

    def test_a_full_context_is_told_and_the_question_forgotten(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        model = use(opened, context_length=60)
        assert self.talk(monkeypatch, "x" * 100 + "\nHi\n") == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("edgewise: context is full: ")
        assert captured.out == "Hello.\n"
        assert "xxx" not in prompts(model)[-1]

    def test_thoughts_stand_between_marks_where_nothing_can_be_dimmed(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        answer = [*fakes.ids_of("Hm.\n"), fakes.END_THINK, *fakes.ids_of("\n\nYes.")]
        model = use(opened, answer)
        assert self.talk(monkeypatch, "One?\nTwo?\n", "--think") == 0
        assert capsys.readouterr().out == "<think>\nHm.\n\n</think>\nYes.\n" * 2
        assert "Hm." not in prompts(model)[1], "thoughts are not part of the answer in the history"

    @pytest.mark.parametrize("no_color", [None, "1"])
    def test_thoughts_are_dimmed_on_a_terminal(
        self, no_color: str | None, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if no_color:
            monkeypatch.setenv("NO_COLOR", no_color)
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        use(opened, [*fakes.ids_of("H"), fakes.END_THINK, *fakes.ids_of("Y")])
        assert self.talk(monkeypatch, "One?\n", "--think") == 0
        shown = screen.getvalue()
        assert ("\x1b" in shown) == (no_color is None)
        assert ("\x1b[2mH\x1b[0m\n\nY\n" in shown) == (no_color is None)

    def test_an_interrupt_stops_the_answer_only(self, opened: list[FakeModel]) -> None:
        model = use(opened, "abcdef")
        talk = chat_command.Chat(model, {}, interactive=True)
        model.engine.interrupt_at = 3
        talk.read("One?")
        assert talk.messages[-1] == {"role": "assistant", "content": "abc"}
        model.engine.interrupt_at = 0
        talk.read("Two?")
        assert len(talk.messages) == 2, "stopped before the first token: as if it had not been asked"
        talk.read("Three?")
        assert talk.messages[-1]["content"] == "abcdef"
        assert not talk.failed

    @pytest.mark.parametrize("editing", [True, False])
    def test_keys_on_a_terminal(
        self, editing: bool, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not editing:
            monkeypatch.setitem(sys.modules, "readline", None)
        use(opened)
        screen, keyboard = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stdin", keyboard)
        typed: Iterator[Any] = iter(["Hi", KeyboardInterrupt(), "/dance", EOFError()])

        def read_line(_: str) -> str:
            key = next(typed)
            if isinstance(key, str):
                return key
            raise key

        monkeypatch.setattr("builtins.input", read_line)
        assert main(["chat", "m"]) == 0
        assert "Hello." in screen.getvalue()
        assert "Ctrl-D leaves" in screen.getvalue()

    def test_pictures_go_with_the_next_question(
        self,
        opened: list[FakeModel],
        monkeypatch: pytest.MonkeyPatch,
        capsys: Captured,
        files: dict[str, str],
        tmp_path: Path,
    ) -> None:
        model, saved = use(opened, "Yes."), tmp_path / "said.json"
        text = f"One?\n/image {files['blue']}\n/video {files['clip']}\nTwo?\nThree?\n/save {saved}\n"
        assert self.talk(monkeypatch, text, "--image", files["red"], "--max-pixels", "4096") == 0
        assert capsys.readouterr().out == "Yes.\nYes.\nYes.\n"
        assert [len(sequence.media) for sequence in model.engine.sequences] == [1, 4, 4]
        content = [message["content"] for message in json.loads(saved.read_text())]
        assert content[0] == [{"type": "image", "image": files["red"]}, {"type": "text", "text": "One?"}]
        assert content[2][:2] == [
            {"type": "image", "image": files["blue"]},
            {"type": "video", "video": files["clip"]},
        ]
        assert content[4] == "Three?"
        assert len(model.engine.encoded) == 4, "what was seen in an earlier turn is not encoded again"

    @pytest.mark.parametrize("line", ["/image", "/video", "/image /nothing/here.png", "/video {text}"])
    def test_a_picture_that_is_none_is_told_at_once(
        self,
        line: str,
        opened: list[FakeModel],
        monkeypatch: pytest.MonkeyPatch,
        capsys: Captured,
        files: dict[str, str],
    ) -> None:
        model = use(opened)
        assert self.talk(monkeypatch, line.format(**files) + "\nHi\n") == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("edgewise: ")
        assert captured.err.count("\n") == 1
        assert (captured.out, model.engine.sequences[0].media) == ("Hello.\n", [])

    def test_a_picture_that_is_none_at_the_start(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        use(opened)
        assert self.talk(monkeypatch, "Hi\n", "--video", "/nothing/here.gif") == 1
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)

    def test_a_picture_too_large_for_the_context_is_forgotten(
        self,
        opened: list[FakeModel],
        monkeypatch: pytest.MonkeyPatch,
        capsys: Captured,
        files: dict[str, str],
    ) -> None:
        model = use(opened, context_length=100)
        question = "x" * 50
        assert self.talk(monkeypatch, f"/image {files['red']}\n{question}\n{question}\n") == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("edgewise: context is full: ")
        assert (captured.out, captured.err.count("\n")) == ("Hello.\n", 1)
        assert model.engine.sequences[-1].media == []

    def test_an_interrupt_while_a_picture_is_encoded(
        self, opened: list[FakeModel], files: dict[str, str]
    ) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        model = use(opened)
        talk = chat_command.Chat(model, {}, interactive=True)
        talk.attach("image", files["red"])
        model.engine.before_encode = interrupt
        talk.read("One?")
        assert talk.messages == []
        model.engine.before_encode = lambda: None
        talk.read("Two?")
        assert talk.messages[0]["content"][0]["image"] == files["red"], "the picture still waits"
        assert not talk.failed

    def test_a_model_without_a_template(
        self, opened: list[FakeModel], monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        use(opened, files=side_files(chat_template=None))
        assert self.talk(monkeypatch, "Hi\n") == 1
        assert "there is no chat template" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "thinking", "parts"),
    [
        ("Hm.</think>Yes.", True, [(True, "Hm."), (False, "Yes.")]),
        ("<think>Hm.</think>Yes.", False, [(True, "Hm."), (False, "Yes.")]),
        ("a < b </thin", True, [(True, "a < b </thin")]),
        ("", True, []),
    ],
)
def test_thoughts_are_told_apart_however_the_text_is_split(
    size: int, text: str, thinking: bool, parts: list[tuple[bool, str]]
) -> None:
    splitter = ThoughtSplitter(thinking)
    got: list[tuple[bool, str]] = []
    for start in range(0, len(text), size):
        got += splitter.push(text[start : start + size])
    got += splitter.flush()
    joined: list[tuple[bool, str]] = []
    for kind, part in got:
        if joined and joined[-1][0] == kind:
            joined[-1] = kind, joined[-1][1] + part
        else:
            joined.append((kind, part))
    assert joined == parts


class TestQuantize:
    @pytest.fixture
    def source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        def quantize(source: str, destination: str, recipe: str, threads: int | None, progress: Any) -> Any:
            progress(1, 2, source)
            Path(destination).write_text(f"{recipe} {threads}")
            formats = {"f32": {"tensors": 3, "bytes": 100}, "int4": {"tensors": 2, "bytes": 2000}}
            return {"source_bytes": 8_400_000, "file_bytes": 2_100_000, "formats": formats}

        monkeypatch.setattr(_native, "quantize", quantize)
        (tmp_path / "model").mkdir()
        return tmp_path / "model"

    def test_writes_and_reports(self, source: Path, tmp_path: Path, capsys: Captured) -> None:
        target = tmp_path / "a.safetensors"
        assert main(["quantize", str(source), str(target), "--recipe", "careful", "--threads", "2"]) == 0
        assert target.read_text() == "careful 2"
        captured = capsys.readouterr()
        first, *formats = captured.out.splitlines()
        assert first.startswith(f"{target}: 2.1 MB in 0.")
        assert first.endswith("25% of the 8.4 MB before")
        assert [line.split() for line in formats] == [
            ["format", "tensors", "size"],
            ["int4", "2", "2", "kB"],
            ["f32", "3", "100", "B"],
        ]
        assert captured.err == ""

    def test_nothing_is_overwritten_by_accident(self, source: Path, tmp_path: Path, capsys: Captured) -> None:
        target = tmp_path / "a.safetensors"
        target.write_text("precious")
        assert main(["quantize", str(source), str(target)]) == 1
        assert target.read_text() == "precious"
        assert "--force replaces it" in capsys.readouterr().err
        assert main(["quantize", str(source), str(target), "--force"]) == 0
        assert target.read_text() == "int4 None"
        assert main(["quantize", str(source), str(tmp_path), "--force"]) == 1


class TestInfo:
    @pytest.fixture(autouse=True)
    def build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        report = {"affinity": 8, "quota": 2.5, "performance_cores": 4, "chosen": 2}
        monkeypatch.setattr(_native, "build_info", lambda: {"thread_report": report})
        monkeypatch.setattr(_native, "available_threads", lambda: 2)
        monkeypatch.setattr(_native, "tiers", lambda: ["avx2", "portable"])
        monkeypatch.setattr(_native, "active_tier", lambda: "avx2")

    def test_the_computer(self, capsys: Captured) -> None:
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert "avx2 (of avx2, portable; EDGEWISE_ISA chooses)" in out
        assert "2 (8 CPUs allowed, 4 fast cores, control group allows 2.5)" in out

    def test_a_model(self, opened: list[FakeModel], capsys: Captured) -> None:
        use(opened)
        assert main(["info", "m"]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert "parameters 3.2 million, 3.8 bits each" in lines
        assert "one text 50 kB and 512 B a token (bf16; int8: 272 B)" in lines
        assert "4096 tokens 2.15 MB 3.67 MB 2.15 MB 1.16 MB" in lines
        assert "32768 tokens 16.8 MB 18.3 MB 16.8 MB 8.96 MB" in lines

    def test_json(self, opened: list[FakeModel], capsys: Captured) -> None:
        use(opened)
        assert main(["info", "m", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["computer"]["tiers"] == ["avx2", "portable"]
        assert facts["model"]["memory_plan"][0] == {
            "tokens": 4096,
            "sequence": 50_000 + 4096 * 512,
            "total": 1_520_000 + 50_000 + 4096 * 512,
            "sequence_f32": 50_000 + 4096 * 1024,
            "sequence_f16": 50_000 + 4096 * 512,
            "sequence_bf16": 50_000 + 4096 * 512,
            "sequence_int8": 50_000 + 4096 * 272,
        }

    def test_memory(self, tmp_path: Path) -> None:
        file = tmp_path / "meminfo"
        file.write_text("MemTotal:   2000 kB\nMemAvailable:   1000 kB\nHugePages_Total: 0\n")
        assert info.memory(file) == 2_048_000
        file.write_text("MemFree:   2000 kB\n")
        assert info.memory(file) is None

    def test_what_is_streamed(self) -> None:
        model = {"weight_bytes": 1000, "expert_bytes": 800, "expert_bytes_per_token": 100}
        for available, resident, per_token in [
            (None, 1000, 0),
            (2000, 1000, 0),
            (1000, 1000, 0),
            (600, 600, 50),
            (200, 200, 100),
            (100, 200, 100),
        ]:
            plan = info.streaming(model, available)
            assert plan == {"resident": resident, "per_token": per_token}, available
        assert info.streaming(INFO, 1)["per_token"] == 0

    def test_experts_larger_than_memory(
        self, opened: list[FakeModel], capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(opened)
        monkeypatch.setattr(_native, "available_memory", lambda: 770_000)
        monkeypatch.setitem(INFO, "expert_bytes", 1_000_000)
        monkeypatch.setitem(INFO, "expert_bytes_per_token", 40_000)
        assert main(["info", "m"]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert "experts 1 MB, of which a token uses 40 kB" in lines
        assert "streamed 770 kB in memory, about 30 kB read from disk a token" in lines


class TestDemo:
    def test_questions_answers_and_speed(self, opened: list[FakeModel], capsys: Captured) -> None:
        use(opened, "Yes.")
        assert main(["demo"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == ["Hello!", "Yes."]
        assert lines.count("Yes.") >= 6
        assert "tokens at" in lines[-1]
        assert "\x1b" not in "".join(lines)

    def test_without_the_demo_model(
        self, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub, "DEMO_FILE", tmp_path / "none")
        assert main(["demo"]) == 1
        assert "the demo model is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (49_152, "49.2 kB"), (1.75e9, "1.75 GB"), (123.4e9, "123 GB")],
)
def test_sizes(number: float, text: str) -> None:
    assert terminal.size(number) == text


def test_counts() -> None:
    assert [terminal.count(number) for number in (12, 3.2e6, 8.95e9)] == ["12", "3.2 million", "8.95 billion"]
