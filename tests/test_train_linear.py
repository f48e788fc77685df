import json
from pathlib import Path

import pytest
import torch

from models.linear import LinearRegressor
from servekit.config import Settings
from train.linear import LinearSettings, train


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_to_five_is_near_nine(tmp_path: Path, seed: int) -> None:
    folder = train(LinearSettings(seed=seed), Settings(model_store=tmp_path))
    network = LinearRegressor()
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    assert abs(network(torch.tensor([[5.0]])).item() - 9) < 0.05


def test_a_seed_makes_a_run_repeatable(tmp_path: Path) -> None:
    contents = []
    for seed in (1, 1, 2):
        folder = train(LinearSettings(epochs=10, seed=seed), Settings(model_store=tmp_path))
        contents.append((folder / "model.pth").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_model_json_says_how_it_came_to_be(tmp_path: Path) -> None:
    folder = train(LinearSettings(epochs=10, seed=3), Settings(model_store=tmp_path))
    training = json.loads((folder / "model.json").read_text())["training"]
    assert training["settings"] == {"epochs": 10, "learning_rate": 0.05, "seed": 3}
    assert training["scores"]["mean_squared_error"] > 0
    assert len(training["data"]["sha256"]) == 64
