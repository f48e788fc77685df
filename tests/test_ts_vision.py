"""Handlers of pictures and of text, with small networks that the tests make."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from servekit.engines.torchserve import Parameter
from servekit.errors import HandlerFailed, ModelLoadError
from servekit.ts.torch_handler.image_classifier import ImageClassifier
from servekit.ts.torch_handler.pictures import CenterCrop, Normalize, Resize, imagenet, to_tensor
from servekit.ts.torch_handler.text_classifier import TextClassifier
from servekit.ts.torch_handler.text_handler import ngrams_iterator
from servekit.ts.torch_handler.unit_tests.test_utils.mock_context import MockContext
from tests.handler_archives import ask, request, start, write

MODEL = {"modelFile": "model.py"}
# The logit of class i is i times the mean of the picture's values, so that a light picture is of the last class.
MEANS = """
    import torch

    class Means(torch.nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))[:, None] * torch.arange({classes})
    """


def picture(width: int = 300, height: int = 200, mode: str = "RGB", light: bool = True, file_type: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 255 if light else 0).convert(mode).save(file, file_type)
    return file.getvalue()


def test_a_classifier_names_the_five_likeliest_classes(tmp_path: Path) -> None:
    write(tmp_path, model=MEANS.format(classes=7))
    (tmp_path / "index_to_name.json").write_text('{"0": ["n0", "zero"], "6": "six"}')
    engine = start(tmp_path, "image_classifier", MODEL)
    light, dark = ask(engine, request(picture(), name="data"), request(picture(light=False)))
    top = json.loads(light.body)
    assert list(top) == ["six", "5", "4", "3", "2"] and list(top.values()) == sorted(top.values(), reverse=True)
    means = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = torch.softmax(torch.arange(7) * means.mean(), 0)[6].item()
    assert top["six"] == pytest.approx(expected, rel=1e-4)
    assert next(iter(json.loads(dark.body))) == "zero"


def test_a_classifier_of_few_classes_answers_with_all(tmp_path: Path) -> None:
    engine = start(write(tmp_path, model=MEANS.format(classes=2)), "image_classifier", MODEL)
    assert list(json.loads(ask(engine, request(picture()))[0].body)) == ["1", "0"]


def test_how_many_classes_an_answer_has_can_be_set() -> None:
    handler = ImageClassifier()
    assert handler.get_max_result_classes() == 5
    handler.set_max_result_classes(1)
    assert handler.postprocess(torch.tensor([[0.0, 9.0]]))[0].keys() == {"1"}


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA", "CMYK"])
def test_pictures_of_every_mode(tmp_path: Path, mode: str) -> None:
    engine = start(write(tmp_path, model=MEANS.format(classes=2)), "image_classifier", MODEL)
    file_type = "JPEG" if mode == "CMYK" else "PNG"
    assert next(iter(json.loads(ask(engine, request(picture(mode=mode, file_type=file_type)))[0].body))) == "1"


def test_pictures_as_base64_and_as_numbers(tmp_path: Path) -> None:
    engine = start(write(tmp_path, model=MEANS.format(classes=2)), "image_classifier", MODEL)
    numbers = json.dumps(np.ones((3, 224, 224)).tolist()).encode()
    encoded = base64.b64encode(picture())
    first, second = ask(engine, request(encoded, "text/plain"), request(numbers, "application/json"))
    assert next(iter(json.loads(first.body))) == next(iter(json.loads(second.body))) == "1"
    with pytest.raises(HandlerFailed, match="Prediction failed"):
        ask(engine, request(b"no picture"))


def test_a_handler_with_a_transform_of_its_own(tmp_path: Path) -> None:
    handler = """
        import torch
        from ts.torch_handler.image_classifier import ImageClassifier

        class Mine(ImageClassifier):
            @staticmethod
            def image_processing(image):
                return torch.tensor([[[float(image.size[0])]]])
        """
    engine = start(write(tmp_path, handler=handler, model=MEANS.format(classes=2)), model=MODEL)
    assert next(iter(json.loads(ask(engine, request(picture(3, 3)))[0].body))) == "1"


def claims(width: int, height: int) -> bytes:
    """Return a PNG file that says it is of this size, and has no pixels."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT": b"x", b"IEND": b""}
    chunks = [kind + data for kind, data in parts.items()]
    number = struct.Struct(">I").pack
    return b"\x89PNG\r\n\x1a\n" + b"".join(number(len(each) - 4) + each + number(zlib.crc32(each)) for each in chunks)


@pytest.mark.parametrize("limit", [True, False])
def test_the_limit_of_pixels_is_the_archives_own(tmp_path: Path, limit: bool) -> None:
    handler = """
        import torch
        from ts.torch_handler.vision_handler import VisionHandler

        class Sizes(VisionHandler):
            def image_processing(self, image):
                return torch.tensor([[[float(image.size[0])]]])

            def postprocess(self, data):
                return ["opened"] * len(data)
        """
    write(tmp_path, handler=handler, model=MEANS.format(classes=2))
    engine = start(tmp_path, model=MODEL, limit_max_image_pixels=limit)
    if limit:
        with pytest.raises(HandlerFailed, match="Prediction failed"):
            ask(engine, request(claims(100_000, 100_000)))
    else:
        assert ask(engine, request(claims(100_000, 100_000)))[0].body == b"opened"
    assert Image.MAX_IMAGE_PIXELS is not None


def test_explanations_need_a_package(tmp_path: Path) -> None:
    engine = start(write(tmp_path, model=MEANS.format(classes=2)), "image_classifier", MODEL)
    with pytest.raises(HandlerFailed, match="Explanations need the package captum, which is not installed") as caught:
        ask(engine, request(picture(), headers={"explain": "True"}))
    assert caught.value.status == 501


def test_explanations_are_those_of_the_package_that_the_archive_brings(tmp_path: Path) -> None:
    attr = """
        class IntegratedGradients:
            def __init__(self, model):
                self.model = model

            def attribute(self, tensor, target, n_steps):
                return tensor.mean((1, 2, 3)) * 0 + target + n_steps
        """
    write(tmp_path / "captum", __init__="", attr=attr)
    engine = start(write(tmp_path, model=MEANS.format(classes=2)), "image_classifier", MODEL)
    asked = request(picture(), name="data", headers={"explain": "True"})
    asked.parameters = [*asked.parameters, Parameter("target", "text/plain", b"1")]
    assert json.loads(ask(engine, asked)[0].body) == 16


def test_a_segmenter_gives_class_and_probability_of_each_pixel(tmp_path: Path) -> None:
    model = """
        import torch

        class Halves(torch.nn.Module):
            def forward(self, x):
                out = torch.zeros(len(x), 3, 224, 224)
                out[:, 2, :, :112] = 10
                return {"out": out}
        """
    engine = start(write(tmp_path, model=model), "image_segmenter", MODEL)
    answer = np.array(json.loads(ask(engine, request(picture()))[0].body))
    assert answer.shape == (224, 224, 2)
    assert answer[0, 0].tolist() == pytest.approx([2, 1], abs=1e-3) and answer[0, 223, 1] == pytest.approx(1 / 3)


def test_a_detector_gives_what_is_likely_enough(tmp_path: Path) -> None:
    model = """
        import torch

        class Boxes(torch.nn.Module):
            def forward(self, images):
                boxes = [torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]], [1.0, 1, 2, 2]]) for image in images]
                return [{"boxes": b, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.75, 0.25])} for b in boxes]
        """
    (write(tmp_path, model=model) / "index_to_name.json").write_text('{"1": "cat"}')
    engine = start(tmp_path, "object_detector", MODEL)
    for sizes in (((8, 6), (8, 6)), ((8, 6), (3, 4))):  # one tensor, and pictures of two sizes
        answers = ask(engine, *(request(picture(*size)) for size in sizes))
        assert [json.loads(answer.body) for answer in answers] == [[{"cat": [0, 0, *size], "score": 0.75}] for size in sizes]


def test_pictures_are_scaled_and_cut_as_torchvision_defines_it() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (301, 467, 3), dtype=np.uint8))
    assert Resize(256)(image).size == (int(256 * 467 / 301), 256)
    assert Resize(256)(image.transpose(Image.Transpose.ROTATE_90)).size == (256, int(256 * 467 / 301))
    assert Resize(301)(image) is image
    assert CenterCrop(224)(image).getpixel((0, 0)) == image.getpixel((round((467 - 224) / 2), round((301 - 224) / 2)))
    small = CenterCrop(6)(Image.new("L", (3, 8), 255))
    assert np.array(small).tolist() == [[0, 255, 255, 255, 0, 0]] * 6
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, 301, 467), torch.float32)
    assert tensor[:, 5, 7].mul(255).round().int().tolist() == list(image.getpixel((7, 5)))
    assert to_tensor(Image.new("F", (1, 1), 0.5)).tolist() == [[[0.5]]]
    assert Normalize((1,), (2,))(torch.tensor([[[5.0]]])).tolist() == [[[2.0]]]
    assert imagenet()(image).shape == (3, 224, 224)


TEXT = """
    import torch

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.EmbeddingBag(4, 2, mode="sum")

        def forward(self, text, offsets):
            return self.embedding(text, offsets)
    """


def text_archive(folder: Path, vocabulary: Any) -> Path:
    write(folder, model=TEXT)
    torch.save(vocabulary, folder / "source_vocab.pt")
    torch.save({"embedding.weight": torch.tensor([[0.0, 0], [9, 0], [0, 9], [0, 0.5]])}, folder / "model.pth")
    (folder / "index_to_name.json").write_text('{"0": "good", "1": "bad"}')
    return folder


WEIGHTS = {**MODEL, "serializedFile": "model.pth"}


def test_texts_are_cleaned_and_looked_up_in_the_vocabulary(tmp_path: Path) -> None:
    folder = text_archive(tmp_path, {"<unk>": 0, "fine": 1, "do not": 2, "cafe": 3})
    engine = start(folder, "text_classifier", WEIGHTS)
    texts = ["<b>FINE</b>!", "Don't", "Café", "unknown &amp;"]
    answers = [json.loads(answer.body) for answer in ask(engine, *(request(text.encode()) for text in texts))]
    assert [max(answer, key=answer.get) for answer in answers[:3]] == ["good", "bad", "bad"]
    assert answers[3] == {"good": 0.5, "bad": 0.5}
    assert json.loads(ask(engine, request(b"fine", "text/plain"))[0].body)["good"] > 0.99
    with pytest.raises(HandlerFailed, match="Send one text."):
        ask(engine, request(b"[1]", "application/json"))
    with pytest.raises(HandlerFailed, match="captum"):
        ask(engine, request(b"fine", headers={"explain": "True"}))


def test_a_vocabulary_that_is_missing_or_needs_a_package(tmp_path: Path) -> None:
    folder = text_archive(tmp_path, MockContext)
    with pytest.raises(ModelLoadError, match="source_vocab.pt is no plain dict of tokens .* which is not installed"):
        start(folder, "text_classifier", WEIGHTS)
    (folder / "source_vocab.pt").unlink()
    with pytest.raises(ModelLoadError, match="The archive has no source_vocab.pt"):
        start(folder, "text_classifier", WEIGHTS)


def test_what_text_handlers_share() -> None:
    handler = TextClassifier()
    assert handler.get_word_token(["\u0120hi", "there"]) == ["hi", "there"]
    assert handler._remove_puncutation("a.b!") == "ab"
    assert handler.summarize_attributions(torch.ones(3, 2)).shape == (3, 2)
    handler.source_vocab = torch.arange(5)  # what is no dict answers for itself
    assert handler.token_number(3) == 3


def test_ngrams() -> None:
    assert list(ngrams_iterator(["a", "b", "c"], 2)) == ["a", "b", "c", "a b", "b c"]


def test_authors_test_their_handlers_with_a_mock_context(tmp_path: Path) -> None:
    write(tmp_path, model=MEANS.format(classes=2))
    (tmp_path / "config.yaml").write_text("handler: {topk: 1}")
    context = MockContext(None, str(tmp_path), model_yaml_config_file="config.yaml", gpu_id=None)
    handler = ImageClassifier()
    handler.initialize(context)
    assert next(iter(handler.handle([{"data": picture()}], context)[0])) == "1"
    assert handler.initialized and context.model_yaml_config == {"handler": {"topk": 1}}
    assert str(handler.get_device()) == "cpu"
    with pytest.raises(RuntimeError, match="The model file model.py is missing"):
        ImageClassifier().initialize(MockContext(None, str(tmp_path / "nowhere"), gpu_id=None))
