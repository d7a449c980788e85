"""Pictures to words through the whole package, with the real engine."""

from __future__ import annotations

import copy
import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import golden
from edgewise import Model, Prompt


@cache
def open_model(case: str) -> Model:
    return Model.from_pretrained(golden.FOLDER / case, dtype="f32")


@cache
def demo() -> Model:
    return Model.from_pretrained("demo", threads=2)


def drawing(shape: str, colour: str, x: int = 48, radius: int = 24) -> Image.Image:
    """One shape on white, `x` pixels from the left."""
    picture = Image.new("RGB", (96, 96), "white")
    box = (x - radius, 48 - radius, x + radius, 48 + radius)
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    return picture


def ask(question: str, **arguments: Any) -> str:
    return demo().generate(question, enable_thinking=False, **arguments).text


def recorded_images() -> list[tuple[str, int]]:
    """Images that Pillow alone resizes as the original code does, see the README of the recordings."""
    return [
        (case, index)
        for case in ("image", "image_pos64")
        for index, entry in enumerate(golden.read_json(f"{case}/case.json")["images"])
        if entry["pillow_pass_order"] != "VH"
    ]


def recorded_prompt(case: str, index: int) -> Prompt:
    entry = golden.read_json(f"{case}/case.json")["images"][index]
    file = golden.FOLDER / case / entry["file"]
    return open_model(case).prepare(
        entry["messages"], images=file, enable_thinking=entry.get("enable_thinking")
    )


@pytest.mark.parametrize(("case", "index"), recorded_images())
def test_logits_and_continuation_are_the_recorded_ones(case: str, index: int) -> None:
    model, arrays, prompt = open_model(case), golden.arrays(case), recorded_prompt(case, index)
    logits = model.logits(prompt)
    names = [name for name in (f"img{index}.logits", f"img{index}.logits_tail") if name in arrays]
    for name in names:
        want = arrays[name]
        assert golden.difference(name, logits[-len(want) :], want, golden.tolerance(case, "logits")) is None
    assert names
    result = model.generate(prompt, temperature=0, ignore_eos=True, max_new_tokens=32)
    assert result.token_ids == arrays[f"img{index}.greedy"].tolist()


@pytest.mark.parametrize("style", ["flat", "nested"])
@pytest.mark.parametrize("index", range(len(golden.read_json("video/case.json")["videos"])))
def test_videos(index: int, style: Any) -> None:
    """The original code resized the frames with another library: a few pixels differ by one level."""
    entry = golden.read_json("video/case.json")["videos"][index]
    result = open_model("video").generate(
        entry["messages"],
        videos=[golden.FOLDER / "video" / file for file in entry["frames"]],
        source_fps=entry["metadata"]["fps"],
        video_prompt=style,
        temperature=0,
        ignore_eos=True,
        max_new_tokens=32,
        **entry["sampling_kwargs"],
    )
    assert result.token_ids == golden.arrays("video")[f"vid{index}.{style}.greedy"].tolist()


@pytest.mark.parametrize("style", ["flat", "nested"])
@pytest.mark.parametrize("index", [0, 1])
def test_images_and_videos_of_one_prompt(index: int, style: Any) -> None:
    """As above."""
    case = "multi_image_multi_video"
    entry = golden.read_json(f"{case}/case.json")["prompts"][index]
    messages = copy.deepcopy(entry["messages"])
    videos = iter(zip(entry["videos"], entry["video_metadata"], strict=True))
    for part in messages[0]["content"]:
        if part["type"] == "video":
            frames, metadata = next(videos)
            part |= {"video": [golden.FOLDER / case / f for f in frames], "source_fps": metadata["fps"]}
    images = [golden.FOLDER / case / file for file in entry["images"]]
    result = open_model(case).generate(
        messages,
        images=images,
        video_prompt=style,
        temperature=0,
        ignore_eos=True,
        max_new_tokens=32,
    )
    assert result.token_ids == golden.arrays(case)[f"p{index}.{style}.greedy"].tolist()


class TestDemo:
    @pytest.mark.parametrize("shape", ["circle", "square"])
    @pytest.mark.parametrize("colour", ["red", "blue", "green"])
    def test_shapes_and_colours(self, shape: str, colour: str) -> None:
        picture = drawing(shape, colour)
        assert ask("Which shape do you see?", images=picture) == f"A {shape}."
        assert ask("What color is the shape?", images=picture) == f"{colour.capitalize()}."

    def test_a_clip(self) -> None:
        frames = [drawing("circle", "red", x=24 + 7 * i, radius=16) for i in range(8)]
        assert ask("What happens in the video?", videos=frames, source_fps=2) == "The red circle moves right."

    def test_a_talk(self) -> None:
        """Each answer is about the picture of its turn, and the earlier ones stay in the prompt."""
        talk: list[dict[str, Any]] = []
        for colour in ("red", "blue"):
            part = {"type": "image", "image": drawing("circle", colour)}
            talk.append({"role": "user", "content": [part, {"type": "text", "text": "Describe the image."}]})
            result = demo().generate(talk, enable_thinking=False)
            talk.append({"role": "assistant", "content": result.text})
        assert talk[1]["content"] == "A red circle."
        assert demo().prepare(talk).image_grid_thw.tolist() == [[1, 6, 6]] * 2


class TestEqualBits:
    def test_features_at_hand_and_computed_anew(self) -> None:
        prompt = demo().prepare("Describe the image.", images=drawing("circle", "red"))
        cold = Model.from_pretrained("demo", threads=1, media_cache_bytes=0)
        expected = cold.logits(prompt)
        for _ in range(2):
            np.testing.assert_array_equal(demo().logits(prompt), expected)

    def test_read_in_pieces(self) -> None:
        """A prompt cut before and behind each of its pictures."""
        pictures = [drawing("circle", "red"), drawing("square", "blue")]
        prompt = demo().prepare("Describe the image.", images=pictures)
        media = demo()._encoder.encode(prompt)
        at_once, pieces = demo()._engine.sequence(), demo()._engine.sequence()
        at_once.append(prompt.token_ids, media)
        done = 0
        for start, features in media:
            pieces.append(prompt.token_ids[done:start])
            done = start + features.tokens
            pieces.append(prompt.token_ids[start:done], [(0, features)])
        pieces.append(prompt.token_ids[done:])
        np.testing.assert_array_equal(at_once.logits(), pieces.logits())
        assert at_once.next_position == pieces.next_position == len(prompt) + prompt.rope_delta

    def test_the_rest_of_a_batch_does_not_matter(self) -> None:
        """A picture's features are the same bits wherever in a prompt it stands."""
        red, blue = drawing("circle", "red"), drawing("square", "blue")
        model = Model.from_pretrained("demo", media_cache_bytes=0)
        alone = model._encoder.encode(model.prepare("?", images=blue))[0][1]
        second = model._encoder.encode(model.prepare("?", images=[red, blue]))[1][1]
        np.testing.assert_array_equal(alone.embeddings, second.embeddings)


def test_threads_with_pictures_of_their_own() -> None:
    answers: dict[str, str] = {}

    def describe(colour: str) -> None:
        answers[colour] = ask("What color is the shape?", images=drawing("circle", colour))

    threads = [threading.Thread(target=describe, args=(colour,)) for colour in ("red", "blue", "green")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {"red": "Red.", "blue": "Blue.", "green": "Green."}


def test_an_interrupt_while_a_large_picture_is_encoded() -> None:
    """The engine looks for signals between layers; what it was told by progress stops it as well."""
    calls: list[tuple[int, int, str]] = []

    def stop(*call: Any) -> None:
        calls.append(call)
        if len(calls) == 2:
            raise KeyboardInterrupt

    picture = Image.effect_noise((640, 640), 50).convert("RGB")
    model = Model.from_pretrained("demo")
    options: dict[str, Any] = {"max_pixels": 640 * 640, "enable_thinking": False, "max_new_tokens": 4}
    with pytest.raises(KeyboardInterrupt):
        model.generate("Describe the image.", images=picture, progress=stop, **options)
    assert len(model._encoder.cache) == 0
    assert calls[0][1:] == (400, "images[0]")
    assert model.generate("Describe the image.", images=picture, **options).usage.prompt_tokens > 400


def test_a_text_checkpoint_cannot_be_shown_anything() -> None:
    model = open_model("dense_text")
    assert model._engine.vision is None
    with pytest.raises(ValueError, match=r"^images\[0\]: .*dense_text has no vision tower"):
        model.generate("Hi", images=drawing("circle", "red"), raw=True)
