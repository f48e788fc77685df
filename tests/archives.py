"""Small model archives for tests and for the comparison with TorchServe: real .mar files, the same bytes every time."""

import dataclasses
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HANDLERS = Path(__file__).parent / "golden" / "torchserve" / "handlers"


@dataclasses.dataclass(frozen=True)
class Archive:
    """What lies in one archive: a handler of HANDLERS, and what its manifest and configuration say."""

    model_name: str
    handler: str
    version: str = "1.0"
    config: str = ""  # the text of model-config.yaml
    network: str = ""  # a module of HANDLERS with a network; a state dict with the weight 2 lies beside it
    entry: str = ""  # what the manifest calls the handler, if not just its file
    requirements: str = ""  # the text of requirements.txt
    has_manifest: bool = True
    form: str = "mar"  # or tar.gz, or folder, which has no ending

    def manifest(self) -> dict[str, Any]:
        """Return MAR-INF/MANIFEST.json as the archiver writes it."""
        model = {"modelName": self.model_name, "handler": self.entry or f"{self.handler}.py", "modelVersion": self.version}
        if self.network:
            model |= {"modelFile": f"{self.network}.py", "serializedFile": "weights.pt"}
        if self.config:
            model["configFile"] = "model-config.yaml"
        if self.requirements:
            model["requirementsFile"] = "requirements.txt"
        kept = {name: value for name, value in model.items() if value}
        return {"createdOn": "01/01/2026 00:00:00", "runtime": "python", "model": kept, "archiverVersion": "0.12.0"}

    def files(self) -> dict[str, bytes]:
        """Return every file of the archive by its name."""
        found = {f"{self.handler}.py": (HANDLERS / f"{self.handler}.py").read_bytes()}
        if self.has_manifest:
            found["MAR-INF/MANIFEST.json"] = json.dumps(self.manifest(), indent=2).encode()
        if self.config:
            found["model-config.yaml"] = self.config.encode()
        if self.requirements:
            found["requirements.txt"] = self.requirements.encode()
        if self.network:
            found[f"{self.network}.py"] = (HANDLERS / f"{self.network}.py").read_bytes()
            found["weights.pt"] = state_dict({"weight": [2.0]})
        return found


CONFIGURED = "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 4\nmaxBatchDelay: 1500\nresponseTimeout: 60\n"
TOLD = "minWorkers: 1\nbatchSize: 2\nhandler:\n  colour: blue\n  sizes: [1, 2.5]\nmaxBatchDelay: soon\nnone_such: 1\n"
ARCHIVES = {
    "echo": Archive("echo", "echo"),
    "headers": Archive("headers", "headers"),
    "answers": Archive("answers", "answers"),
    "count": Archive("count", "count"),
    "configured": Archive("configured", "count", config=CONFIGURED),
    "queue": Archive("queue", "answers", config="minWorkers: 1\njobQueueSize: 1\n"),
    "version1": Archive("version", "version", "1.0"),
    "version2": Archive("version", "version", "2.0"),
    "version3": Archive("version", "version", "3.0-beta"),
    "described": Archive("described", "described"),
    "stream": Archive("stream", "stream"),
    "broken": Archive("broken", "broken"),
    "nameless": Archive("", "echo"),
    "no_manifest": Archive("", "echo", has_manifest=False),
    "enveloped": Archive("enveloped", "enveloped"),
    "told": Archive("told", "told", config=TOLD),
    "entry": Archive("entry", "entries", entry="entries:other"),
    "entry_file": Archive("entry_file", "entries", entry="entries.py:other"),
    "entry_missing": Archive("entry_missing", "entries", entry="entries:none"),
    "both": Archive("both", "both"),
    "two": Archive("two", "two"),
    "swapped": Archive("swapped", "swapped"),
    "hopeless": Archive("hopeless", "broken", config="maxRetryTimeoutInSec: 1\nstartupTimeout: 20\n"),
    "needy": Archive("needy", "version", requirements="packaging==no.such.version\n"),
    "rolled": Archive("rolled", "version", form="tar.gz"),
    "unpacked": Archive("unpacked", "version", form="folder"),
    "linear": Archive("linear", "linear", network="double_network"),
}


def write(store: Path, names: Iterable[str]) -> None:
    """Write each of `names` into the folder `store`: `<name>.mar`, `<name>.tar.gz`, or a folder `<name>`."""
    for name in names:
        archive = ARCHIVES[name]
        if archive.form == "folder":
            _write_folder(store / name, archive.files())
        elif archive.form == "tar.gz":
            (store / f"{name}.tar.gz").write_bytes(rolled(archive.model_name, archive.files()))
        else:
            (store / f"{name}.mar").write_bytes(packed(archive.files()))


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def rolled(root: str, files: Mapping[str, bytes]) -> bytes:
    """Return a compressed tar of `files` under the folder `root`, which depends on nothing but them."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of `files`, which depends on nothing but them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def state_dict(values: Mapping[str, list[float]]) -> bytes:
    """Return what `torch.save` writes for a state dict of `values`."""
    import torch

    stream = io.BytesIO()
    torch.save({name: torch.tensor(numbers) for name, numbers in values.items()}, stream)
    return stream.getvalue()
