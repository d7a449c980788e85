"""Prompts with images and videos: equal to the recordings, and never another picture than the one meant."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fakes
import golden
from edgewise import CheckpointError, ContextError, MediaError, Model, Prompt
from fakes import FakeModel, side_files

RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
CLIP = [Image.new("RGB", (64, 64), (level, 0, 0)) for level in (0, 80, 160, 240)]
IMAGE_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_PLACE = "<|vision_start|><|video_pad|><|vision_end|>"
SMALL: dict[str, Any] = {"min_pixels": 1}
GROUP = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
IMAGE = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"


@cache
def open_model(case: str) -> Model:
    return Model.from_pretrained(golden.FOLDER / case, dtype="f32")


def text_of(model: Model, prompt: Prompt) -> str:
    return model.tokenizer.decode(prompt.token_ids)


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def image_cases() -> list[tuple[str, int]]:
    cases = ("image", "image_pos64")
    return [(case, i) for case in cases for i in range(len(golden.read_json(f"{case}/case.json")["images"]))]


def levels(pixel_values: golden.Array) -> golden.Array:
    return np.rint((pixel_values + 1) * 127.5).astype(np.uint8)


def assert_recorded(prompt: Prompt, arrays: dict[str, golden.Array], name: str) -> None:
    assert prompt.token_ids == arrays[f"{name}.input_ids"].tolist()
    np.testing.assert_array_equal(prompt.position_ids, arrays[f"{name}.position_ids"])
    assert prompt.position_ids.dtype == np.int64
    assert prompt.rope_delta == int(arrays[f"{name}.rope_delta"][0])


class TestRecordings:
    @pytest.mark.parametrize(("case", "index"), image_cases())
    def test_images(self, case: str, index: int) -> None:
        model, arrays = open_model(case), golden.arrays(case)
        entry = golden.read_json(f"{case}/case.json")["images"][index]
        file = golden.FOLDER / case / entry["file"]
        prompt = model.prepare(entry["messages"], images=file, enable_thinking=entry.get("enable_thinking"))
        assert text_of(model, prompt) == entry["expanded_prompt"]
        assert_recorded(prompt, arrays, f"img{index}")
        assert prompt.grid_thw.tolist() == [entry["grid_thw"]]
        if entry["pillow_pass_order"] != "VH":
            np.testing.assert_array_equal(levels(prompt.pixel_values), arrays[f"img{index}.pixel_levels"])

    @pytest.mark.parametrize("style", ["flat", "nested"])
    @pytest.mark.parametrize("index", range(len(golden.read_json("video/case.json")["videos"])))
    def test_videos(self, index: int, style: Any) -> None:
        model = open_model("video")
        entry = golden.read_json("video/case.json")["videos"][index]
        frames = [golden.FOLDER / "video" / file for file in entry["frames"]]
        prompt = model.prepare(
            entry["messages"],
            videos=frames,
            source_fps=entry["metadata"]["fps"],
            video_prompt=style,
            **entry["sampling_kwargs"],
        )
        assert text_of(model, prompt) == entry[f"expanded_prompt_{style}"]
        assert_recorded(prompt, golden.arrays("video"), f"vid{index}.{style}")
        assert prompt.video_grid_thw.tolist() == [entry["grid_thw"]]

    @pytest.mark.parametrize("style", ["flat", "nested"])
    @pytest.mark.parametrize("index", [0, 1])
    def test_many(self, index: int, style: Any) -> None:
        case = "multi_image_multi_video"
        model, arrays = open_model(case), golden.arrays(case)
        entry = golden.read_json(f"{case}/case.json")["prompts"][index]
        folder = golden.FOLDER / case
        messages = copy.deepcopy(entry["messages"])
        places = [part for part in messages[0]["content"] if part["type"] == "video"]
        for place, metadata in zip(places, entry["video_metadata"], strict=True):
            place["source_fps"] = metadata["fps"]
        prompt = model.prepare(
            messages,
            images=[folder / file for file in entry["images"]],
            videos=[[folder / file for file in frames] for frames in entry["videos"]],
            video_prompt=style,
        )
        assert text_of(model, prompt) == entry[f"expanded_prompt_{style}"]
        assert_recorded(prompt, arrays, f"p{index}.{style}")
        assert prompt.image_grid_thw.tolist() == entry["image_grid_thw"]
        assert prompt.video_grid_thw.tolist() == entry["video_grid_thw"]
        patches = sum(t * h * w for t, h, w in prompt.grid_thw.tolist())
        assert prompt.pixel_values.shape == (patches, 1536)


class TestPlaces:
    def test_media_come_before_the_question_images_first(self) -> None:
        model = FakeModel()
        prompt = model.prepare("What?", images=[RED, BLUE], videos=CLIP, source_fps=2, **SMALL)
        assert text_of(model, prompt) == (
            f"<|im_start|>user\n{IMAGE}{IMAGE}<0.2 seconds>{GROUP}<1.2 seconds>{GROUP}What?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert repr(prompt) == f"Prompt(tokens={len(prompt)}, images=2, videos=1)"
        assert prompt.grid_thw.tolist() == [[1, 4, 4], [1, 4, 4], [2, 4, 4]]

    @pytest.mark.parametrize(
        ("style", "before", "after"), [("flat", "", ""), ("nested", "<|vision_start|>", "<|vision_end|>")]
    )
    def test_raw_text_has_its_places_itself(self, style: Any, before: str, after: str) -> None:
        model = FakeModel()
        text = f"a{VIDEO_PLACE}b{IMAGE_PLACE}c"
        options = {"raw": True, "source_fps": 2, "video_prompt": style, **SMALL}
        prompt = model.prepare(text, images=RED, videos=[CLIP], **options)
        expected = f"a{before}<0.2 seconds>{GROUP}<1.2 seconds>{GROUP}{after}b{IMAGE}c"
        assert text_of(model, prompt) == expected
        assert [medium.kind for medium in prompt.media] == ["video", "image"]
        first = model.prepare(f"a{before}<0.2 seconds>", raw=True)
        assert prompt.media[0].starts[0] == len(first) + 1

    def test_a_bare_pad_is_a_place_too(self) -> None:
        model = FakeModel()
        prompt = model.prepare("a<|video_pad|>b", videos=CLIP, raw=True, source_fps=2, **SMALL)
        assert text_of(model, prompt) == f"a<0.2 seconds>{GROUP}<1.2 seconds>{GROUP}b"

    def test_each_place_gets_its_own_picture(self) -> None:
        model = FakeModel()
        content = [{"type": "image", "image": BLUE}, {"type": "text", "text": " or "}, {"type": "image"}]
        model.generate(user(*content), images=RED, **SMALL)
        (_, first), (_, second) = model.engine.sequences[0].media
        assert first.mean == second.mean
        groups = [g for m in model.prepare(user(*content), images=RED, **SMALL).media for _, g in m.groups()]
        assert [group.first[0, 0].tolist() for group in groups] == [[0, 0, 255], [255, 0, 0]]

    def test_pictures_of_earlier_turns_stay(self) -> None:
        model = FakeModel()
        talk = [
            *user({"type": "image", "image": RED}, {"type": "text", "text": "What?"}),
            {"role": "assistant", "content": "Red."},
            *user({"type": "text", "text": "And"}, {"type": "image", "image": BLUE}),
        ]
        prompt = model.prepare(talk, **SMALL)
        assert text_of(model, prompt).split("<|im_start|>")[1:4] == [
            f"user\n{IMAGE}What?<|im_end|>\n",
            "assistant\nRed.<|im_end|>\n",
            f"user\nAnd{IMAGE}<|im_end|>\n",
        ]
        assert [medium.where for medium in prompt.media] == [
            "messages[0].content[0]",
            "messages[2].content[1]",
        ]

    def test_options_of_a_part_and_of_the_call(self) -> None:
        parts = [{"type": "image", "image": RED}, {"type": "image", "image": RED, "max_pixels": 1024}]
        prompt = FakeModel().prepare(user(*parts), min_pixels=1, max_pixels=2048)
        assert prompt.grid_thw.tolist() == [[1, 2, 2], [1, 2, 2]]
        larger = FakeModel().prepare(user(*parts), max_pixels=4096)
        assert larger.grid_thw.tolist() == [[1, 4, 4], [1, 2, 2]]

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_frames_taken(self, number: int) -> None:
        prompt = FakeModel().prepare("What?", videos=[CLIP], num_frames=number, **SMALL)
        assert prompt.video_grid_thw[0, 0] == (number + 1) // 2

    def test_text_alone(self) -> None:
        prompt = FakeModel().prepare("Hi")
        assert prompt.media == ()
        assert prompt.grid_thw.shape == (0, 3)
        assert prompt.pixel_values.shape == (0, 1536)
        assert prompt.rope_delta == 0
        np.testing.assert_array_equal(prompt.position_ids, np.tile(np.arange(len(prompt)), (3, 1)))

    def test_messages_are_rendered_whatever_key_an_image_has(self) -> None:
        uri = {"url": "data:image/png;base64,AAAA"}
        rendered = FakeModel().render(user({"type": "image_url", "image_url": uri}, {"video": "none.mp4"}))
        assert rendered.startswith(f"<|im_start|>user\n{IMAGE_PLACE}{VIDEO_PLACE}")


class TestPrompt:
    def test_it_can_be_used_again_and_elsewhere(self) -> None:
        model = FakeModel()
        prompt = model.prepare("What?", images=RED, **SMALL)
        assert model.prepare(prompt) is prompt
        direct = model.generate("What?", images=RED, **SMALL)
        for _ in range(2):
            result = model.generate(prompt)
            assert result.prompt_token_ids == direct.prompt_token_ids == prompt.token_ids
        assert next(model.stream(prompt)).text == "H"
        start = prompt.media[0].starts[0]
        assert model.logits(prompt)[start, 0] == model.trace(prompt)["logits"][start, 0] != 0

    def test_logits_of_messages(self) -> None:
        model = FakeModel()
        talk = user({"type": "image", "image": RED}, {"type": "text", "text": "What?"})
        assert model.logits(talk).shape == (len(model.prepare(talk)), fakes.VOCAB_SIZE)

    def test_options_for_what_is_finished_are_refused(self) -> None:
        model = FakeModel()
        prompt = model.prepare("Hi")
        for finished in (prompt, [1, 2]):
            with pytest.raises(ValueError, match=r"^images: only text and messages can take in"):
                model.generate(finished, images=RED)
            with pytest.raises(ValueError, match=r"^max_pixels: only text and messages"):
                model.generate(finished, max_pixels=5000)
            with pytest.raises(ValueError, match=r"^tools: only messages"):
                model.generate(finished, tools=[])

    def test_ids_outside_the_vocabulary(self) -> None:
        with pytest.raises(ValueError, match="outside the vocabulary"):
            FakeModel().generate(Prompt([9999]))

    def test_arguments_of_generate_are_not_those_of_prepare(self) -> None:
        with pytest.raises(TypeError, match=r"^unexpected keyword argument 'image'; did you mean 'images'\?"):
            FakeModel().prepare("Hi", image=RED)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"^unexpected keyword argument 'temperature'"):
            FakeModel().prepare("Hi", temperature=1)  # type: ignore[call-arg]

    def test_a_prompt_too_long_is_refused_before_the_tower_runs(self) -> None:
        model = FakeModel(context_length=20)
        with pytest.raises(ValueError, match="context is full"):
            model.generate("What?", images=RED)
        assert model.engine.encoded == []

    def test_no_more_pictures_are_read_than_the_context_could_hold(self) -> None:
        """What comes after is not even opened: many large pictures would fill the memory."""
        missing = ["none.png"] * 100
        with pytest.raises(ContextError, match=r"images and videos up to images\[2\] take 12 tokens, .* 10$"):
            FakeModel(context_length=10).prepare("?", images=[RED, BLUE, RED, *missing], **SMALL)


class TestHostile:
    """Texts may come from strangers: they must not move a picture, nor stand for one."""

    @pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", IMAGE_PLACE])
    @pytest.mark.parametrize("with_image", [False, True])
    def test_a_text_that_spells_a_pad(self, token: str, with_image: bool) -> None:
        talk = user({"type": "text", "text": f"a{token}b"}, *([{"type": "image", "image": RED}] * with_image))
        with pytest.raises(ValueError, match=r"^messages\[0\]\.content\[0\]\.text: the text contains '<\|"):
            FakeModel().prepare(talk)
        with pytest.raises(ValueError, match=r"^prompt: the text contains"):
            FakeModel().prepare(f"a{token}b", images=[RED] * with_image)

    def test_a_pad_spelled_over_two_parts(self) -> None:
        parts = [{"type": "text", "text": "<|image"}, {"type": "text", "text": "_pad|>"}]
        with pytest.raises(ValueError, match=r"^prompt: '<\|image_pad\|>' occurs 2 times for 1 images"):
            FakeModel().prepare(user(*parts, {"type": "image", "image": RED}))

    def test_a_pad_in_other_places(self) -> None:
        talk = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "reasoning_content": "<|image_pad|>"},
        ]
        with pytest.raises(ValueError, match=r"^messages\[1\]\.reasoning_content: the text contains"):
            FakeModel().prepare(talk)
        tools = side_files(chat_template=b"{{ tools }}" + fakes.TEMPLATE.encode())
        with pytest.raises(ValueError, match=r"^prompt: '<\|video_pad\|>' occurs 1 times for 0 videos"):
            FakeModel(files=tools).prepare("Hi", tools=[{"name": "<|video_pad|>"}])

    def test_a_template_that_drops_an_image(self) -> None:
        files = side_files(chat_template=b"{{ messages[0].content[-1].text }}")
        with pytest.raises(ValueError, match=r"^prompt: '<\|image_pad\|>' occurs 0 times for 1 images"):
            FakeModel(files=files).prepare("Hi", images=RED)

    @pytest.mark.parametrize(
        ("text", "images", "videos"),
        [("a", 1, 0), (IMAGE_PLACE, 0, 0), (IMAGE_PLACE, 2, 0), (IMAGE_PLACE, 0, 1), (VIDEO_PLACE, 1, 0)],
    )
    def test_raw_text_with_another_number_of_places(self, text: str, images: int, videos: int) -> None:
        with pytest.raises(ValueError, match=r"^prompt: '<\|(image|video)_pad\|>' occurs"):
            FakeModel().prepare(text, images=[RED] * images, videos=[CLIP] * videos, raw=True)

    def test_look_alikes_are_text(self) -> None:
        text = "<|image_pad| > \uff1c|image_pad|\uff1e <|IMAGE_PAD|>"
        model = FakeModel()
        prompt = model.prepare(text, images=RED, **SMALL)
        assert prompt.token_ids.count(fakes.IMAGE_PAD) == 4

    def test_a_model_without_a_tower(self) -> None:
        model = FakeModel(vision=None)
        with pytest.raises(ValueError, match=r"^images\[0\]: fake has no vision tower: it reads text only"):
            model.generate("What?", images=RED)
        with pytest.raises(ValueError, match=r"^messages\[0\]\.content\[0\]: fake has no vision tower"):
            model.generate(user({"type": "video", "video": CLIP}))
        assert model.generate("What does <|image_pad|> mean?").text == "Hello."

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("none.png", "cannot be read"),
            ("https://x.org/a.png", "nothing is downloaded"),
            (b"", "not an image"),
            (b"\x89PNG\r\n\x1a\n", "not an image|cannot be decoded"),
            (np.zeros((0, 5, 3), np.uint8), "0 x|5 x 0"),
            (np.zeros((5, 5, 2), np.uint8), "shape"),
        ],
    )
    def test_images_that_are_none(self, source: Any, reason: str) -> None:
        with pytest.raises(MediaError, match=rf"^images\[1\]: .*({reason})"):
            FakeModel().prepare("What?", images=[RED, source])
        with pytest.raises(MediaError, match=rf"^messages\[0\]\.content\[0\]: .*({reason})"):
            FakeModel().prepare(user({"type": "image", "image": source}))

    def test_image_and_video_without_a_template(self) -> None:
        model = FakeModel(files=side_files(chat_template=None))
        with pytest.raises(ValueError, match=r"^prompt: '<\|image_pad\|>' occurs 0 times for 1 images"):
            model.prepare("What?", images=RED)

    def test_settings_that_do_not_fit_the_tower(self) -> None:
        files = {**side_files(), "preprocessor_config.json": b'{"patch_size": 14}'}
        with pytest.raises(CheckpointError, match=r"^preprocessor_config\.json: 'patch_size' is 14, .* 16"):
            FakeModel(files=files).prepare("What?", images=RED)

    def test_a_tokenizer_without_the_tokens(self) -> None:
        vision = {**fakes.VISION, "image_token_id": 270}
        with pytest.raises(CheckpointError, match=r"^tokenizer\.json: there is no token 270"):
            FakeModel(vision=vision).prepare("What?", images=RED)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"fps": 0}, "fps: expected a number above 0"),
            ({"max_pixels": 0}, "max_pixels: expected a number of at least 1"),
            ({"min_pixels": 1.5}, "min_pixels: expected an integer"),
            ({"num_frames": True}, "num_frames: expected an integer"),
            ({"source_fps": float("nan")}, "source_fps: expected a finite number"),
            ({"video_prompt": "round"}, "video_prompt: expected 'flat' or 'nested', got 'round'"),
            ({"images": 5}, "images: expected an image or a list of images, got int"),
            ({"videos": [CLIP[0], "a.mp4"]}, r"videos\[1\]: a list holds either"),
            (
                {"videos": CLIP, "fps": 1, "num_frames": 2},
                r"videos\[0\]: fps and num_frames exclude each other",
            ),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], reason: str) -> None:
        with pytest.raises((ValueError, TypeError), match=f"^{reason}"):
            FakeModel().generate("What?", **options)


def test_files_given_by_path(tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    RED.save(file)
    model = FakeModel()
    for images in (str(file), file, [file], file.read_bytes(), np.asarray(RED)):
        assert model.prepare("What?", images=images).grid_thw.tolist() == [[1, 16, 16]]
    assert model.prepare(user({"type": "image", "path": str(file)})).grid_thw.tolist() == [[1, 16, 16]]
