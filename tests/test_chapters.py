"""Two documents on TorchServe from beginning to end, typed as readers do, with `servekit` before the commands."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from servekit.torchserve.properties import Address, Properties
from tests.reader import Reader
from tests.server import ROOT, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.starts]

GUIDE = ROOT / "docs" / "torchserve.md"

# The first: a line that is learnt, a handler with all four steps, a server without tokens.

SETTINGS = """
    # config.properties
    inference_address=http://0.0.0.0:8080
    management_address=http://0.0.0.0:8081
    metrics_address=http://0.0.0.0:8082
    number_of_netty_threads=32
    job_queue_size=1000
    model_store=model_store
    default_response_timeout=120
    default_workers_per_model=1
    log_level=DEBUG
    """
NETWORK = """
    from torch import nn


    class SimpleLinearModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 1)

        def forward(self, x):
            return self.line(x)
    """
TRAINING = """
    import torch
    from models.linear import SimpleLinearModel

    network = SimpleLinearModel()
    x = torch.arange(-1.0, 5.0)[:, None]
    for _ in range(400):
        loss = ((network(x) - (2 * x - 1)) ** 2).mean()
        with torch.no_grad():
            for weight, slope in zip(network.parameters(), torch.autograd.grad(loss, list(network.parameters()))):
                weight -= 0.05 * slope
    torch.save(network.state_dict(), "model.pth")
    """
HANDLER = """
    import logging
    from pathlib import Path

    import torch
    from {module} import SimpleLinearModel
    from ts.torch_handler.base_handler import BaseHandler

    log = logging.getLogger(__name__)


    class ModelHandler(BaseHandler):
        def __init__(self):
            super().__init__()
            self.initialized = False
            log.info("The handler is made.")

        def initialize(self, context):
            self.manifest = context.manifest
            found = context.system_properties
            self.device = torch.device(f"cuda:{{found.get('gpu_id')}}" if torch.cuda.is_available() else "cpu")
            weights = torch.load(Path(found.get("model_dir")) / "model.pth", weights_only=True)
            self.model = SimpleLinearModel().to(self.device).eval()
            self.model.load_state_dict(weights)
            self.initialized = True

        def preprocess(self, requests):
            return torch.tensor([[float(request.get("body"))] for request in requests], device=self.device)

        def inference(self, x):
            with torch.no_grad():
                return self.model(x)

        def postprocess(self, y):
            return y.tolist()
    """
ARCHIVE = (
    "servekit torch-model-archiver --model-name simple_linear --version 1.0 --serialized-file model.pth "
    "--handler model_handler.py --model-file models/linear.py --export-path model-store --force "
    "--extra-files models/linear.py,models/__init__.py"
)
START = (
    "servekit torchserve --start --model-store model-store --ts-config config/config.properties --disable-token-auth "
    "--models simple_linear=model_store/simple_linear.mar"
)
PREDICT = 'curl -X POST http://127.0.0.1:8080/predictions/simple_linear -H "Content-Type: text/plain" -d "5.0"'
DESCRIPTION = """
    modelName modelVersion modelUrl runtime minWorkers maxWorkers batchSize maxBatchDelay responseTimeout startupTimeout
    maxRetryTimeoutInSec clientTimeoutInMills parallelType parallelLevel deviceType continuousBatching useJobTicket useVenv
    stateful sequenceMaxIdleMSec sequenceTimeoutMSec maxNumSequence maxSequenceJobQueueSize loadedAtStartup workers
    jobQueueStatus
    """.split()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Somebody who begins with an empty folder."""
    someone = Reader(tmp_path / "serving", tmp_path / "home")
    yield someone
    someone.leaves()


def prepare_the_first_chapter(reader: Reader, module: str) -> None:
    """Do all that the chapter asks for before the archive is made; the handler imports the network from `module`."""
    reader.types("mkdir model_store model-store models && touch models/__init__.py")
    reader.write("config/config.properties", SETTINGS)
    reader.write("models/linear.py", NETWORK)
    reader.write("train.py", TRAINING)
    reader.write("model_handler.py", HANDLER.format(module=module))
    reader.types("python train.py")


def test_the_first_chapter(reader: Reader) -> None:
    prepare_the_first_chapter(reader, "linear")
    reader.types(ARCHIVE)
    first, *others = reader.starts(START).splitlines()
    assert first == "servekit: These settings have no effect: number_of_netty_threads (not supported)."
    assert len(others) == 2 and "Tokens are off" in others[0] and "model-store/simple_linear.mar is loaded" in others[1]
    assert "The handler is made." in reader.log()

    assert reader.asks(PREDICT) == [pytest.approx(9, abs=0.01)]
    named = {"modelName": "simple_linear", "modelUrl": "model_store/simple_linear.mar"}
    assert reader.asks("curl http://localhost:8081/models") == {"models": [named]}
    (described,) = reader.asks("curl http://localhost:8081/models/simple_linear")
    assert list(described) == DESCRIPTION
    assert described.items() >= (named | {"modelVersion": "1.0", "minWorkers": 1, "loadedAtStartup": True}).items()
    assert described["jobQueueStatus"] == {"remainingCapacity": 1000, "pendingRequests": 0}
    assert [worker["status"] for worker in described["workers"]] == ["READY"]

    row = reader.types("servekit models").stdout.splitlines()[1]
    assert row.split() == ["simple_linear", "1.0", "yes", "ready", str(described["workers"][0]["pid"])]
    pid = reader.pid()
    assert f"A server runs already as process {pid}; stop it with `servekit torchserve --stop`" in reader.fails(START)
    assert f":{reader.ports[8080]} is in use by process {pid} (" in reader.fails(f"{START} --pid-file other")
    assert reader.types("servekit torchserve --stop").stdout == f"The server, process {pid}, has stopped.\n"
    assert reader.types("servekit torchserve --stop").stdout == "No server runs.\n"


def test_the_commands_of_the_guide_with_the_network_imported_from_its_folder(reader: Reader) -> None:
    block = next(block for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "archiver" in block)
    archive, start = re.sub(r"\\\n\s*", "", block.strip()).splitlines()
    prepare_the_first_chapter(reader, "models.linear")
    reader.types("mv config/config.properties .")
    reader.types(archive)
    reader.starts(start.replace("--foreground ", ""))
    assert reader.asks(PREDICT) == NO_KEY
    (with_key,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "cli.md").read_text(), re.DOTALL)
    assert reader.asks(with_key) == [pytest.approx(9, abs=0.01)]
    reader.types("servekit check model-store/simple_linear.mar")


def test_the_settings_of_the_first_chapter_are_read_as_printed() -> None:
    properties = Properties.parse(SETTINGS)
    assert properties.addresses == tuple(Address("0.0.0.0", port) for port in (8080, 8081, 8082))
    assert properties.model_store == Path("model_store") and properties.log_level == "debug"
    assert (properties.job_queue_size, properties.default_response_timeout) == (1000, 120)
    assert properties.default_workers_per_model == 1
    assert properties.ignored == ("number_of_netty_threads",)


# The second: pictures, the five likeliest classes by name, tokens, and the management of a running server.

PICTURE_SETTINGS = """
    # config.properties
    inference_address=http://127.0.0.1:8080
    management_address=http://127.0.0.1:8081
    metrics_address=http://127.0.0.1:8082

    default_workers_per_model=4
    job_queue_size=100
    max_request_size=6553500

    batch_delay=100
    batch_size=32
    max_batch_size=64

    number_of_gpu=1
    default_response_timeout=300
    """
COLOURS = {"red": [1, 0, 0], "lime": [0, 1, 0], "blue": [0, 0, 1], "yellow": [1, 1, 0], "cyan": [0, 1, 1]}
WEIGHTS = {**COLOURS, "black": [-1, -1, -1]}  # of the mean of each channel
PICTURE_NETWORK = """
    from torch import nn


    class Colours(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Linear(3, 6, bias=False)

        def forward(self, pictures):
            return self.scores(pictures.mean((2, 3)))
    """
# What the handler takes of torchvision, for where that is not installed.
TRANSFORMS = """
    import numpy
    import torch


    def Compose(steps):
        def run(picture):
            for step in steps:
                picture = step(picture)
            return picture

        return run


    def Resize(size):
        def run(picture):
            scale = size / min(picture.size)
            return picture.resize([round(edge * scale) for edge in picture.size])

        return run


    def CenterCrop(size):
        def run(picture):
            left, top = ((edge - size) // 2 for edge in picture.size)
            return picture.crop((left, top, left + size, top + size))

        return run


    def ToTensor():
        return lambda picture: torch.tensor(numpy.asarray(picture)).permute(2, 0, 1) / 255


    def Normalize(mean, std):
        mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        return lambda tensor: (tensor - mean) / std
    """
TORCHVISION = "from torchvision import transforms"
HAS_TORCHVISION = find_spec("torchvision") is not None
PICTURE_HANDLER = """
    import io
    import logging

    import torch
    from PIL import Image
    from torchvision import transforms
    from ts.torch_handler.base_handler import BaseHandler

    log = logging.getLogger(__name__)


    class PictureHandler(BaseHandler):
        def initialize(self, context):
            super().initialize(context)
            normalize = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
            steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
            self.transform = transforms.Compose(steps)

        def preprocess(self, rows):
            log.info("Pictures in a batch: %d", len(rows))
            files = [io.BytesIO(row.get("data") or row.get("body")) for row in rows]
            return torch.stack([self.transform(Image.open(file).convert("RGB")) for file in files])

        def inference(self, batch):
            with torch.no_grad():
                return self.model(batch)

        def postprocess(self, scores):
            values, indices = torch.softmax(scores, dim=1).topk(5)
            return [
                [{"class": self.mapping[str(index)], "probability": value} for index, value in zip(*best)]
                for best in zip(indices.tolist(), values.tolist())
            ]
    """
ARCHIVE_OF = """
    servekit torch-model-archiver \\
        --model-name {name} \\
        --version 1.0 \\
        --model-file network.py \\
        --serialized-file model.pth \\
        --handler {handler} \\
        --export-path model_store \\
        --extra-files {extra}
    """
NO_KEY = {
    "code": 400,
    "type": "InvalidKeyException",
    "message": "Token Authorization failed. Token either incorrect, expired, or not provided correctly",
}
MODELS = "curl http://localhost:8081/models"
REGISTER = 'curl -X POST "http://localhost:8081/models?url=resnet50.mar&model_name=resnet50&initial_workers=2"'
SCALE = 'curl -X PUT "http://localhost:8081/models/resnet50?min_worker=4&max_worker=8"'
DELETE = 'curl -X DELETE "http://localhost:8081/models/resnet50"'
PREDICT_PICTURE = "curl -X POST http://localhost:8080/predictions/resnet50 -T {colour}.jpg"


class Photographer(Reader):
    """Serves pictures, and says a key with each curl; what the server has warned of at the start is in `warnings`."""

    warnings = ""

    def with_key(self, line: str, name: str = "management") -> str:
        """Return `line`, a curl, with the key of that name."""
        key = json.loads((self.folder / "key_file.json").read_text())[name]["key"]
        return f'{line} -H "Authorization: Bearer {key}"'


@pytest.fixture(scope="module")
def photographer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Photographer]:
    """Somebody whose server runs, in a folder whose name has blanks."""
    someone = Photographer(tmp_path_factory.mktemp("photos") / "my own pictures", tmp_path_factory.mktemp("a") / "home")
    someone.types("mkdir model_store")
    someone.write("config.properties", PICTURE_SETTINGS)
    someone.write("network.py", PICTURE_NETWORK)
    someone.write("transforms.py", TRANSFORMS)
    someone.write("handler.py", PICTURE_HANDLER)
    someone.write("own_handler.py", PICTURE_HANDLER.replace(TORCHVISION, TORCHVISION if HAS_TORCHVISION else "import transforms"))
    someone.write("index_to_name.json", json.dumps(dict(enumerate(WEIGHTS))))
    for colour in COLOURS:
        Image.new("RGB", (320, 280), colour).save(someone.folder / f"{colour}.jpg")
    save = f"import torch; torch.save({{'scores.weight': torch.tensor({list(WEIGHTS.values())}).float()}}, 'model.pth')"
    someone.types(f'python -c "{save}"')
    someone.types(ARCHIVE_OF.format(name="resnet50", handler="image_classifier", extra="index_to_name.json"))
    for name, handler in (("own", "own_handler.py"), ("needy", "handler.py")):
        someone.types(ARCHIVE_OF.format(name=name, handler=handler, extra="index_to_name.json,transforms.py"))
    start = "servekit torchserve --start --model-store model_store --models resnet50=resnet50.mar"
    try:
        someone.warnings = someone.starts(f"{start} --enable-model-api")
        yield someone
    finally:
        someone.leaves()


def test_settings_that_the_second_document_made_up_are_named_in_one_warning(photographer: Photographer) -> None:
    expected = "servekit: These settings have no effect: batch_delay, batch_size, max_batch_size (not known).\n"
    assert photographer.warnings == expected


@pytest.mark.parametrize("colour", ["red", "cyan"])
def test_a_picture_is_classified_by_whoever_has_the_key(photographer: Photographer, colour: str) -> None:
    line = PREDICT_PICTURE.format(colour=colour)
    assert photographer.asks(line) == NO_KEY
    assert photographer.asks(photographer.with_key(line, "management")) == NO_KEY
    answer = photographer.asks(photographer.with_key(line, "inference"))
    assert list(answer)[0] == colour and len(answer) == 5 and answer.keys() < WEIGHTS.keys()
    assert list(answer.values()) == sorted(answer.values(), reverse=True)


def test_many_pictures_are_one_batch_and_each_gets_its_own_names(photographer: Photographer) -> None:
    register = 'curl -X POST "http://localhost:8081/models?url=own.mar&batch_size=8&max_batch_delay=500&initial_workers=1"'
    assert "registered with 1 initial workers" in photographer.asks(photographer.with_key(register))["status"]
    predict = photographer.with_key("curl -s http://localhost:8080/predictions/own -F data=@$colour.jpg", "inference")
    loop = f"for colour in {' '.join(COLOURS)}; do for n in 1 2 3; do {predict} -o $colour$n.json & done; done; wait"
    photographer.types(loop)
    for colour in COLOURS:
        for number in (1, 2, 3):
            answer = json.loads((photographer.folder / f"{colour}{number}.json").read_text())
            assert len(answer) == 5 and answer[0]["class"] == colour and answer[0].keys() == {"class", "probability"}
            probabilities = [each["probability"] for each in answer]
            assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.001
    batches = list(map(int, re.findall(r"Pictures in a batch: (\d+)", photographer.log())))
    assert sum(batches) == 15 and max(batches) > 1


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is installed")
def test_a_handler_whose_package_is_missing_is_refused_by_its_name(photographer: Photographer) -> None:
    register = photographer.with_key('curl -X POST "http://localhost:8081/models?url=needy.mar&initial_workers=1"')
    assert photographer.asks(register)["message"] == "Failed to start workers for model needy version: 1.0"
    reason = "The model needy cannot be loaded: ModuleNotFoundError: No module named 'torchvision' (handler.py:6)."
    assert f"needy/1.0 cannot be served: {reason}\n" in photographer.log()
    ended = photographer.tries("servekit check model_store/needy.mar")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"model_store/needy.mar: {reason}\n")


def test_the_table_and_the_check(photographer: Photographer) -> None:
    head, *rows = photographer.types("servekit models").stdout.splitlines()
    assert head.split() == ["NAME", "VERSION", "DEFAULT", "STATUS", "WORKERS", "LAST", "ERROR"]
    row = next(row for row in rows if row.startswith("resnet50 "))
    assert re.fullmatch(r"resnet50 +1\.0 +yes +ready +\d+, \d+, \d+, \d+", row)
    assert photographer.types("servekit models --model-store model_store").stdout.splitlines()[0] == head
    fine = photographer.types("servekit check model_store/resnet50.mar").stdout
    assert fine == "model_store/resnet50.mar is fine: resnet50, version 1.0, handler image_classifier.\n"
    assert "own_handler.py" in photographer.types("servekit check model_store/own.mar").stdout
    photographer.write("broken.py", "import torch\n\ndef handle(data, context:\n    return data\n")
    photographer.types("servekit torch-model-archiver --model-name broken -v 1 --handler broken.py --export-path model_store")
    ended = photographer.tries("servekit check model_store/broken.mar")
    assert ended.returncode == 1
    first, second, *_, last = ended.stderr.splitlines()
    assert first.startswith("model_store/broken.mar: ") and "SyntaxError" in first and "(broken.py:3)" in first
    assert second == '  File "broken.py", line 3' and last == "SyntaxError: '(' was never closed"


def test_the_four_lines_of_management(photographer: Photographer) -> None:
    lines = (MODELS, REGISTER, SCALE, DELETE)
    assert [photographer.asks(line) for line in lines] == [NO_KEY] * 4
    listed, registered, scaled, deleted = (photographer.with_key(line) for line in lines)
    named = {"modelName": "resnet50", "modelUrl": "resnet50.mar"}
    assert named in photographer.asks(listed)["models"]
    taken = photographer.asks(registered)  # it was loaded at the start
    assert (taken["code"], taken["type"]) == (409, "ConflictStatusException")
    assert taken["message"] == "Model version 1.0 is already registered for model resnet50"
    gone = {"status": 'Model "resnet50" unregistered'}
    assert photographer.asks(deleted) == gone
    assert named not in photographer.asks(listed)["models"]
    assert photographer.asks(deleted)["message"] == "Model not found: resnet50"

    message = 'Model "resnet50" Version: 1.0 registered with 2 initial workers'
    assert photographer.asks(registered) == {"status": message}
    assert photographer.asks(scaled) == {"status": "Processing worker updates..."}
    describe = photographer.with_key("curl http://localhost:8081/models/resnet50")
    assert wait_for(lambda: len(photographer.asks(describe)[0]["workers"]) == 4)
    (described,) = photographer.asks(describe)
    assert (described["minWorkers"], described["maxWorkers"]) == (4, 8)
    predicted = photographer.asks(photographer.with_key(PREDICT_PICTURE.format(colour="blue"), "inference"))
    assert next(iter(predicted)) == "blue"
    assert photographer.asks(deleted) == gone
