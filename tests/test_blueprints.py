"""Every route through the real server: golden answers, both models, other ways to send the same."""

import base64
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.mnist import MnistCNN
from tests.conftest import png
from tests.server import Server
from train.data import Digits

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def shape_of(answer: object) -> object:
    """Return `answer` with its numbers and texts replaced by their kinds."""
    if isinstance(answer, dict):
        return {name: shape_of(member) for name, member in answer.items()}
    if isinstance(answer, list):
        return [shape_of(member) for member in answer]
    return type(answer).__name__


@pytest.mark.parametrize("name", GOLDEN)
def test_every_answer_has_its_golden_form(server: Server, digit: bytes, name: str) -> None:
    case = GOLDEN[name]
    if "form" in case:
        status, headers, answer = server.post_form(case["path"], case["form"])
    elif "files" in case:
        contents = {"digit.png": digit, "broken.png": b"no image"}
        files = [(case["field"], file, contents[file]) for file in case["files"]]
        status, headers, answer = server.post_files(case["path"], files)
    else:
        status, headers, answer = server.request(case.get("method", "GET"), case["path"])
    assert status == case["status"]
    assert headers["Content-Type"] == "application/json"
    if "answer" in case:
        assert list(answer.items()) == list(case["answer"].items())
    else:
        assert json.dumps(shape_of(answer)) == json.dumps(case["shape"])


def test_the_two_curl_lines_of_the_seed_work(server: Server, digit: bytes, digits: Digits, tmp_path: Path) -> None:
    answer = curl(f'curl -X POST -d "value=5" {server.url}/predict')
    found = re.fullmatch(rb'\{"input":5\.0,"prediction":(\d+\.\d+)\}\n', answer)
    assert found, answer
    assert abs(float(found[1]) - 9) < 0.05
    (tmp_path / "digit.png").write_bytes(digit)
    answer = curl(f"curl -F file=@{tmp_path}/digit.png {server.url}/predict")
    form = rb'\{"predicted_class":(\d),"confidence":[\d.e-]+,"probabilities":\[[\d.e-]+(,[\d.e-]+){9}\]\}\n'
    found = re.fullmatch(form, answer)
    assert found, answer
    assert int(found[1]) == digits.test_labels[0]


def curl(line: str) -> bytes:
    return subprocess.run(line, shell=True, check=True, capture_output=True, timeout=60).stdout


@pytest.mark.parametrize("path", ["/predict", "/linear/predict"])
def test_a_number_may_be_sent_in_any_form(server: Server, path: str) -> None:
    expected = server.post_form(path, "value=5")[2]
    assert server.post(path, b'{"value": 5}', "application/json")[2] == expected
    assert server.post(path, b'{"value": 5.0}', "application/json; charset=utf-8")[2] == expected
    assert server.post(path, b'--x\r\nContent-Disposition: form-data; name="value"\r\n\r\n5\r\n--x--', MULTIPART)[2] == expected
    assert server.post_form(path, "value=%205e0%20")[2] == expected
    assert server.post_form(path, "value=-1.5")[2]["input"] == -1.5


MULTIPART = "multipart/form-data; boundary=x"


@pytest.mark.parametrize("path", ["/predict", "/mnist/predict"])
def test_an_image_may_be_sent_in_any_form(server: Server, digit: bytes, path: str) -> None:
    expected = server.post_files(path, [("file", "digit.png", digit)])
    assert expected[0] == 200
    text = base64.b64encode(digit).decode()
    assert server.post(path, json.dumps({"image": text}).encode(), "application/json")[2] == expected[2]
    assert server.post(path, digit, "image/png")[2] == expected[2]
    assert server.post(path, (part for part in [digit[:50], digit[50:]]), "image/png")[2] == expected[2]  # chunked
    stream = io.BytesIO()
    Image.open(io.BytesIO(digit)).save(stream, "JPEG", quality=100)
    assert server.post(path, stream.getvalue(), "image/jpeg")[2]["predicted_class"] == expected[2]["predicted_class"]


def load_network(store: Path) -> MnistCNN:
    network = MnistCNN()
    network.load_state_dict(torch.load(store / "mnist/1/model.pth", weights_only=True))
    return network.eval()


def test_answers_are_those_of_the_network_itself(server: Server, store: Path, digits: Digits) -> None:
    network = load_network(store)
    images = digits.test_images[:32]
    with torch.inference_mode():
        logits = network(torch.from_numpy(images.astype(np.float32) / 255)[:, None])
    expected = torch.softmax(logits.double(), 1).numpy()
    for image, probabilities in zip(images, expected, strict=True):
        answer = server.post("/predict", png(image), "image/png")[2]
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
        assert answer["predicted_class"] == probabilities.argmax()
        assert answer["confidence"] == max(answer["probabilities"])


def test_over_http_the_network_is_as_accurate_as_model_json_says(server: Server, store: Path, digits: Digits) -> None:
    network = load_network(store)
    with torch.inference_mode():
        expected = network(torch.from_numpy(digits.test_images.astype(np.float32) / 255)[:, None]).argmax(1).numpy()
    score = json.loads((store / "mnist/1/model.json").read_text())["training"]["scores"]["test_accuracy"]
    assert (expected == digits.test_labels).mean() == pytest.approx(score, abs=1e-3)
    rows = np.linspace(0, len(digits.test_images) - 1, 500).astype(int)
    answers = [server.post("/predict", png(digits.test_images[row]), "image/png")[2] for row in rows]
    assert (np.array([answer["predicted_class"] for answer in answers]) == expected[rows]).mean() >= 0.998


def test_a_batch_answers_as_single_requests_do(server: Server, digits: Digits) -> None:
    images = [png(image) for image in digits.test_images[:100]]  # more than one pass of the network
    answer = server.post_files("/predict/batch", [("files", f"{row}.png", image) for row, image in enumerate(images)])[2]
    assert [entry["file"] for entry in answer["predictions"]] == [f"{row}.png" for row in range(100)]
    for entry, image in list(zip(answer["predictions"], images, strict=True))[::9]:
        single = server.post("/predict", image, "image/png")[2]
        assert entry["predicted_class"] == single["predicted_class"]
        assert entry["confidence"] == pytest.approx(single["confidence"], abs=1e-5)


def test_a_bad_file_of_a_batch_fails_alone(server: Server, digit: bytes) -> None:
    files = [("files", "a.png", digit), ("files", "b.png", b""), ("files", "c.txt", b"text"), ("files", "d.png", digit)]
    status, _, answer = server.post_files("/mnist/predict/batch", files)
    assert status == 200
    assert [sorted(entry) for entry in answer["predictions"]] == [
        ["confidence", "file", "predicted_class"],
        ["error", "file"],
        ["error", "file"],
        ["confidence", "file", "predicted_class"],
    ]
    assert answer["predictions"][1]["error"] == "The file is empty; send a PNG or JPEG image."
    assert answer["predictions"][0] | {"file": "d.png"} == answer["predictions"][3]


def test_a_thousand_files_are_one_batch(server: Server, digit: bytes) -> None:
    status, _, answer = server.post_files("/predict/batch", [("files", "x.png", digit)] * 1000)
    assert (status, len(answer["predictions"])) == (200, 1000)
    assert len({entry["predicted_class"] for entry in answer["predictions"]}) == 1


def test_head_and_options_are_answered(server: Server) -> None:
    status, headers, body = server.request("HEAD", "/health")
    assert (status, body) == (200, b"")
    status, headers, _ = server.request("OPTIONS", "/predict")
    assert (status, set(headers["Allow"].split(", "))) == (200, {"POST", "OPTIONS"})
