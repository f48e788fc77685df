import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.mnist import MnistCNN
from servekit.config import Settings
from servekit.errors import SettingError
from tests.server import ROOT, environment
from train.data import DataError, Digits
from train.loop import Point, accuracy
from train.mnist import EMBEDDED, MnistSettings, embedded_digits, load_digits, train
from train.pictures import confusion_counts, confusion_matrix, learning_curve

UNREACHABLE = ("http://127.0.0.1:9/",)


def test_the_network_is_the_one_that_was_asked_for() -> None:
    shapes = [tuple(weights.shape) for weights in MnistCNN().state_dict().values() if weights.ndim > 1]
    assert shapes == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 3136), (10, 128)]
    assert MnistCNN()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_short_run_learns_to_read_and_says_how_well(store: Path, digits: Digits) -> None:
    folder = store / "mnist" / "1"
    network = MnistCNN()
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    images = torch.from_numpy(digits.test_images.astype(np.float32) / 255)[:, None]
    score = accuracy(network, images, torch.from_numpy(digits.test_labels))
    assert score > (0.9 if digits.source == "MNIST" else 0.8)
    training = json.loads((folder / "model.json").read_text())["training"]
    assert training["scores"]["test_accuracy"] == pytest.approx(score, abs=1e-4)
    assert training["data"] == {"source": digits.source, "sha256": digits.sha256, "rows": len(digits.train_images)}
    assert training["test_data"]["rows"] == len(digits.test_images)
    assert training["settings"]["epochs"] > 0 and training["settings"]["rotation"] > 0


def test_the_pictures_are_pictures(store: Path) -> None:
    for name in ("learning_curve.png", "confusion_matrix.png"):
        with Image.open(store / "mnist" / "1" / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 500
            assert len(picture.convert("RGB").getcolors(2**20)) > 50  # not an empty sheet


def test_a_seed_makes_a_run_repeatable(tmp_path: Path, digits: Digits) -> None:
    paths = Settings(model_store=tmp_path)
    folders = [train(MnistSettings(epochs=1, seed=seed), paths, digits.first(256)) for seed in (1, 1, 2)]
    weights = [(folder / "model.pth").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]
    curves = [(folder / "learning_curve.png").read_bytes() for folder in folders]
    assert curves[0] == curves[1]


def test_fewer_digits_than_a_batch_are_enough(tmp_path: Path, digits: Digits) -> None:
    threads = torch.get_num_threads()
    folder = train(MnistSettings(epochs=2), Settings(model_store=tmp_path), digits.first(50))
    assert (folder / "model.json").exists()
    assert torch.get_num_threads() == threads  # which OMP_NUM_THREADS gives to each process of the tests


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "fashion"}, "--data must be one of: auto, mnist, embedded."),
        ({"epochs": -1}, "--epochs must not be below 0."),
        ({"seed": -1}, "--seed must be between 0 and 2**63 - 1."),
    ],
)
def test_an_impossible_setting_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        MnistSettings(**options)
    assert str(caught.value) == sentence


def test_without_mnist_the_embedded_digits_are_taken_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load_digits(tmp_path, mirrors=UNREACHABLE)
    assert found.source == EMBEDDED
    assert f"MNIST cannot be downloaded. Training on {EMBEDDED} instead" in capsys.readouterr().out
    assert (found.train_images.shape, found.test_images.shape) == ((1600, 28, 28), (197, 28, 28))
    assert found.test_source == f"{EMBEDDED}, held out"
    assert load_digits(tmp_path, "embedded").sha256 == found.sha256


def test_who_insists_on_mnist_gets_it_or_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"MNIST cannot be downloaded: .* Put its four files into {tmp_path}."):
        load_digits(tmp_path, "mnist", mirrors=UNREACHABLE)


def test_a_damaged_file_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (tmp_path / f"{name}-idx{3 if 'images' in name else 1}-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="is damaged"):
        load_digits(tmp_path, mirrors=UNREACHABLE)


def test_embedded_digits_are_scored_on_mnist_where_it_is(digits: Digits) -> None:
    import os

    folder = Settings.from_environ(os.environ).data_dir
    found = embedded_digits(folder)
    if digits.source == "MNIST":
        assert (len(found.train_images), len(found.test_images), found.test_source) == (1797, 10_000, "MNIST")
    else:
        assert (len(found.train_images), len(found.test_images)) == (1600, 197)


def test_ctrl_c_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    variables = environment(SERVEKIT_MODEL_STORE=str(tmp_path / "store"), SERVEKIT_DATA_DIR=str(tmp_path))
    command = [sys.executable, "-m", "train.mnist", "--data", "embedded"]
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    progress = b""
    while b" steps, " not in progress:
        progress += process.stderr.read1(1000)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.endswith(b"Interrupted; the unfinished version was discarded.\n") and b"Traceback" not in errors
    assert not (tmp_path / "store").exists()


def test_a_recipe_refuses_an_unknown_setting() -> None:
    command = [sys.executable, "-m", "train.mnist", "--epohcs", "3"]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "Unknown setting --epohcs; did you mean --epochs?\n")


def test_missing_models_are_trained_and_others_left_alone(tmp_path: Path, store: Path) -> None:
    variables = environment(SERVEKIT_MODEL_STORE=str(store))
    command = [sys.executable, "-m", "train", "--missing"]
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == ""
    (tmp_path / "mnist" / "1").mkdir(parents=True)
    variables["SERVEKIT_MODEL_STORE"] = str(tmp_path)
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == f"Wrote {tmp_path}/linear/1.\n"
    command[-1] = "--mising"
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    assert ended.stderr == "Unknown setting --mising; did you mean --missing?\n"


def test_the_confusion_matrix_counts_labels_by_answer() -> None:
    counts = confusion_counts(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    for table in (counts, np.zeros((3, 3), np.int64), np.eye(3, dtype=np.int64)):
        assert confusion_matrix(table, "abc", "Title").startswith(b"\x89PNG")


def test_a_learning_curve_may_have_one_perfect_point() -> None:
    assert learning_curve([Point(1.0, 0.0, 1.0, 1.0)], "Title").startswith(b"\x89PNG")
