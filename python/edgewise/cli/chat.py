"""`edgewise chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.chat import END_THINK, THINK, split_reasoning, starts_thinking
from edgewise.cli import terminal
from edgewise.cli.arguments import (
    add_generation,
    add_media,
    add_model,
    generation_arguments,
    open_model,
    prompt_arguments,
)
from edgewise.cli.thoughts import ThoughtSplitter
from edgewise.model import Model
from edgewise.prompt import Prompt
from edgewise.results import Piece

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands

DEFAULT_NEW_TOKENS = 4096
PROMPT = "> "
HELP = """\
/help            this text
/reset           forget the conversation
/system [TEXT]   what the model is told before the conversation; nothing to remove it
/image FILE      show a picture with the next question; may be said again
/video FILE      the same with a video
/think [on|off]  whether to think before answering; nothing to leave it to the chat template
/save FILE       write the conversation to a file, as JSON
/quit            leave, as does Ctrl-D; Ctrl-C stops an answer"""


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talks with a model. Lines are read from stdin; /help lists what else can be typed.",
    )
    add_model(parser)
    add_media(parser)
    add_generation(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Read questions and print answers until the input ends; 1 if one of them failed."""
    model = open_model(arguments)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    chat = Chat(model, generation_arguments(arguments), arguments.system, interactive)
    for kind, files in (("image", arguments.images), ("video", arguments.videos)):
        for file in files:
            chat.attach(kind, file)
    if interactive:
        # It gives `input` editing and history; some Pythons are built without it.
        with suppress(ModuleNotFoundError):
            import readline  # noqa: F401

        print(terminal.dim(f"{model.name}; /help for commands, Ctrl-D to leave"))
    while not chat.finished:
        try:
            line = input(PROMPT) if interactive else sys.stdin.readline()
        except EOFError:
            print()
            break
        except KeyboardInterrupt:
            print(terminal.dim("\nCtrl-D leaves"))
            continue
        if not interactive and not line:
            break
        chat.read(line.strip())
    return 1 if chat.failed and not interactive else 0


class Chat:
    """A conversation: what was said, and how to go on."""

    def __init__(
        self, model: Model, options: dict[str, Any], system: str | None = None, interactive: bool = False
    ) -> None:
        self._model = model
        self._interactive = interactive
        self._thinking: bool | None = options.pop("enable_thinking", None)
        self._options = options
        self._system = system
        self._said: list[dict[str, Any]] = []
        self._attached: list[dict[str, Any]] = []
        self.finished = False
        self.failed = False

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, the system's message included."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return system + self._said

    def attach(self, kind: str, file: str) -> None:
        """Show an image or a video with the next question.

        Raises:
            MediaError: if the file cannot be used.
        """
        if not file:
            raise ValueError(f"/{kind}: needs the name of a file")
        part = {"type": kind, kind: str(Path(file).expanduser())}
        self._model.prepare([{"role": "user", "content": [part]}], **prompt_arguments(self._options))
        self._attached.append(part)
        _note(f"{Path(file).name} goes with the next question")

    def read(self, line: str) -> None:
        """Obey a line that begins with a slash, answer any other."""
        try:
            if line.startswith("/"):
                name, _, rest = line[1:].partition(" ")
                self._command(name, rest.strip())
            elif line:
                self._answer(line)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            _note("stopped")
        except (OSError, ValueError, ArithmeticError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            self.failed = True
            terminal.error(error)

    def _command(self, name: str, rest: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: print(HELP),
            "reset": self._reset,
            "system": self._set_system,
            "image": partial(self.attach, "image"),
            "video": partial(self.attach, "video"),
            "think": self._set_thinking,
            "save": self._save,
            "quit": self._quit,
            "exit": self._quit,
        }
        if name not in commands:
            raise ValueError(f"/{name}: no such command, /help lists them")
        commands[name](rest)

    def _reset(self, _: str) -> None:
        self._said, self._attached = [], []
        _note("forgotten")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        _note("set, the conversation goes on" if text else "removed")

    def _set_thinking(self, word: str) -> None:
        choices = {"on": True, "off": False, "": None}
        if word not in choices:
            raise ValueError("/think: on, off, or nothing")
        self._thinking = choices[word]
        _note(f"thinking {word or 'as the chat template says'}")

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("/save: needs the name of a file")
        text = json.dumps(self.messages, ensure_ascii=False, indent=1)
        Path(file).expanduser().write_text(text + "\n", encoding="utf-8")
        _note(f"saved to {file}")

    def _quit(self, _: str) -> None:
        self.finished = True

    def _answer(self, question: str) -> None:
        self._said.append({"role": "user", "content": self._with_attached(question)})
        try:
            rendered = self._model.render(self.messages, enable_thinking=self._thinking)
            thinking = starts_thinking(rendered)
            answer = self._stream(thinking)
        except BaseException as error:
            self._said.pop()
            if isinstance(error, Exception):  # perhaps because of what was attached
                self._attached = []
            raise
        if not answer:  # stopped before the first token: as if the question had not been asked
            self._said.pop()
            return
        self._attached = []
        reasoning, said = split_reasoning(answer, thinking)
        message = {"role": "assistant", "content": said}
        self._said.append(message | ({"reasoning_content": reasoning} if reasoning else {}))

    def _with_attached(self, question: str) -> str | list[dict[str, Any]]:
        return [*self._attached, {"type": "text", "text": question}] if self._attached else question

    def _stream(self, thinking: bool) -> str:
        """Print the answer while it is made; return its text, or as much as there was at Ctrl-C."""
        options = prompt_arguments(self._options) | {"enable_thinking": self._thinking}
        prompt = self._model.prepare(self.messages, **options)
        others = {name: value for name, value in self._options.items() if name not in options}
        options = {"max_new_tokens": self._room(prompt)} | others
        printer = _AnswerPrinter(thinking)
        text, note = "", ""
        try:
            for piece in self._model.stream(prompt, **options):
                text += piece.text
                printer.push(piece.text)
                note = _ending(piece)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            note = "stopped"
        printer.close()
        _note(note)
        return text

    def _room(self, prompt: Prompt) -> int:
        """Return the most tokens for an answer: many, but no more than the context has room for."""
        left = self._model.context_length - len(prompt)
        if self._options.get("on_full") == "shift":
            return DEFAULT_NEW_TOKENS
        return min(DEFAULT_NEW_TOKENS, max(left, 1))


class _AnswerPrinter:
    """Prints an answer as it comes. A thought is dimmed, or stands between its marks where nothing can be."""

    def __init__(self, thinking: bool) -> None:
        self._splitter = ThoughtSplitter(thinking)
        self._in_thought = False
        self._styled = terminal.styled(sys.stdout)
        self._fresh = True

    def push(self, text: str) -> None:
        """Print what is certain by now."""
        for is_thought, part in self._splitter.push(text):
            self._print(is_thought, part)

    def close(self) -> None:
        """Print the rest, and end the line."""
        for is_thought, part in self._splitter.flush():
            self._print(is_thought, part)
        self._turn(False)
        print(flush=True)

    def _print(self, is_thought: bool, text: str) -> None:
        self._turn(is_thought)
        text = text.lstrip() if self._fresh else text
        self._fresh = self._fresh and not text
        terminal.write(terminal.dim(text) if is_thought else text)

    def _turn(self, is_thought: bool) -> None:
        if is_thought == self._in_thought:
            return
        self._in_thought, self._fresh = is_thought, True
        if not self._styled:
            terminal.write(THINK + "\n" if is_thought else f"\n{END_THINK}\n")
        elif not is_thought:
            terminal.write("\n\n")


def _ending(piece: Piece) -> str:
    """Return what to tell of an answer after its last piece."""
    if piece.usage is None or piece.timings is None:
        return ""
    cut = "cut off by --max-new-tokens; " if piece.finish_reason == "length" else ""
    dropped = sum(shift.dropped_tokens for shift in piece.shifts or [])
    cut += f"context full, the oldest {dropped} tokens were dropped; " if dropped else ""
    return cut + terminal.speed(piece.usage, piece.timings)


def _note(text: str) -> None:
    """Print a remark that is no part of the conversation, for a person only."""
    if text and sys.stdout.isatty():
        print(terminal.dim(f"[{text}]"))
