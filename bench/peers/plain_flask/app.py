"""A model behind Flask in the few lines that people write first; MODEL names the file of weights."""

import io
import os

import numpy as np
import torch
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from PIL import Image

from models.mnist import MnistCNN

app = Flask(__name__)
model = MnistCNN()
model.load_state_dict(torch.load(os.environ["MODEL"], map_location="cpu"))
model.eval()


@app.post("/predict")
def predict() -> ResponseReturnValue:
    """Classify the uploaded `file`, or the body."""
    content = request.files["file"].read() if "file" in request.files else request.get_data()
    image = Image.open(io.BytesIO(content)).convert("L").resize((28, 28))
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).reshape(1, 1, 28, 28)
    with torch.no_grad():
        probabilities = torch.softmax(model(pixels), dim=1)[0]
    answer = int(probabilities.argmax())
    return jsonify(predicted_class=answer, confidence=float(probabilities[answer]), probabilities=probabilities.tolist())
