"""config.pbtxt, and what the folders around it say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from servekit.errors import ModelLoadError
from servekit.triton import config, folders, meaning
from tests.triton_models import write

ROOMS = Path(config.__file__).parent


def test_the_compiled_schema_is_the_one_that_can_be_read() -> None:
    (file,) = descriptor_pb2.FileDescriptorSet.FromString((ROOMS / "model_config.binpb").read_bytes()).file
    compiled = set()

    def add(message: descriptor_pb2.DescriptorProto) -> None:
        if not message.options.map_entry:
            compiled.update((field.name, field.number) for field in message.field)
        compiled.update((value.name, value.number) for enum in message.enum_type for value in enum.value)
        for nested in message.nested_type:
            add(nested)

    for message in file.message_type:
        add(message)
    compiled.update((value.name, value.number) for enum in file.enum_type for value in enum.value)
    text = (ROOMS / "model_config.proto").read_text()
    written = {(name, int(number)) for name, number in re.findall(r"(\w+) = (\d+);", text)}
    assert compiled == written and len(written) > 150


def test_every_field_is_printed_as_tritons_clients_expect(tmp_path: Path) -> None:
    write(
        tmp_path,
        "m",
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: [ -1, 16 ] }
        dynamic_batching {
          max_queue_delay_microseconds: 9007199254740993
          priority_queue_policy { key: 2 value { max_queue_size: 3 } }
        }
        """,
    )
    values = config.read_config(tmp_path / "m").values
    assert values["dynamic_batching"]["max_queue_delay_microseconds"] == 9007199254740993  # a number, not a text
    assert values["dynamic_batching"]["priority_queue_policy"]["2"]["timeout_action"] == "REJECT"
    assert values["input"][0]["data_type"] == "TYPE_FP32" and values["input"][0]["format"] == "FORMAT_NONE"
    assert values["output"] == [] and values["parameters"] == {} and values["default_model_filename"] == ""
    assert not {"ensemble_scheduling", "sequence_batching", "version_policy", "optimization"} & set(values)


def test_what_has_no_effect_is_known_by_its_path(tmp_path: Path) -> None:
    write(
        tmp_path,
        "m",
        """
        name: "m" backend: "onnxruntime" runtime: "r"
        input { name: "x" data_type: TYPE_FP32 dims: 1 optional: true format: FORMAT_NHWC }
        input { name: "y" data_type: TYPE_FP32 dims: 1 optional: true }
        dynamic_batching {
          preferred_batch_size: [ 4, 8 ]
          max_queue_delay_microseconds: 5
          default_queue_policy { allow_timeout_override: true }
        }
        optimization { cuda { graphs: true } }
        parameters { key: "b" value { string_value: "1" } } parameters { key: "a" value { string_value: "1" } }
        """,
    )
    assert set(config.read_config(tmp_path / "m").without_effect) == {
        "runtime",
        "input.format",
        "input.optional",
        "optimization",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.default_queue_policy.allow_timeout_override",
        "parameters[a]",
        "parameters[b]",
    }


def test_a_config_may_come_as_json(tmp_path: Path) -> None:
    values = config.read_config(tmp_path, '{"max_batch_size": "16", "versionPolicy": {"all": {}}}').values
    assert (values["max_batch_size"], values["version_policy"]) == (16, {"all": {}})


def test_a_config_that_is_no_file_is_none(tmp_path: Path) -> None:
    folder = write(tmp_path, "m", onnx=b"")
    (folder / "config.pbtxt").symlink_to("/dev/zero")
    assert folders.is_model(folder, [1]) and folders.chosen_versions(folder, [1, 2]) == [2]
    assert folders.instances(folder) == 1 and folders.fingerprint(folder) == ""
    (folder / "config.pbtxt").unlink()
    os.mkfifo(folder / "config.pbtxt")
    assert folders.instances(folder) == 1 and folders.fingerprint(folder) == ""


@pytest.mark.parametrize("text", ["[]", "{", '{"max_batch_size": "many"}', '{"colour": 1}', "[" * 100_000])
def test_json_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelLoadError, match="^The config of the request cannot be read .*; correct it.$") as caught:
        config.read_config(tmp_path, text)
    assert len(str(caught.value)) < 300


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "m", 'nme: "m"')
    with pytest.raises(ModelLoadError, match='m/config.pbtxt cannot be read .*no field named "nme".*; correct it.$'):
        config.read_config(folder)
    (folder / "config.pbtxt").write_text("#" * (folders.MAX_CONFIG_BYTES + 1))
    with pytest.raises(ModelLoadError, match="it is larger than 1048576 bytes"):
        config.read_config(folder)
    (folder / "config.pbtxt").unlink()
    (tmp_path / "elsewhere").write_text("")
    (folder / "config.pbtxt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="it is a link out of the model's folder"):
        config.read_config(folder)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", [7]),
        ("version_policy { latest { num_versions: 2 } }", [3, 7]),
        ("version_policy { latest { num_versions: 0 } }", [7]),
        ("version_policy { all { } }", [1, 3, 7]),
        ("version_policy { specific { versions: [ 3, 1, 9 ] } }", [1, 3]),
        ("version_policy { specific { versions: [ 9 ] } }", []),
        ("version_policy { nonsense", [7]),
    ],
)
def test_the_version_policy_chooses(tmp_path: Path, text: str, chosen: list[int]) -> None:
    assert folders.chosen_versions(write(tmp_path, "m", text), [1, 3, 7]) == chosen


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 1),
        ("instance_group { kind: KIND_CPU }", 1),
        ("instance_group { count: 2 } instance_group { count: 1 }", 3),
        ("instance_group { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }", 4),
        ("instance_group { count: 2 } instance_group { count: 9 passive: true }", 2),
    ],
)
def test_instances_are_counted(tmp_path: Path, text: str, number: int) -> None:
    assert folders.instances(write(tmp_path, "m", text)) == number


def test_the_master_starts_no_thread_for_a_config(tmp_path: Path) -> None:
    write(tmp_path, "m", "version_policy { all { } }")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from servekit.config import Settings\n"
        "from servekit.stores import entries_of\n"
        f"print(len(entries_of(Settings(model_store=Path({str(tmp_path)!r})))), len(os.listdir('/proc/self/task')))\n"
        "print(sorted({'google.protobuf', 'numpy', 'torch', 'onnxruntime'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOMS.parent.parent, stdout=subprocess.PIPE, timeout=60)
    assert ran.stdout == b"1 1\n['google.protobuf']\n"


@pytest.mark.parametrize("name", ["", "../secret", "/etc/passwd", "a/../../../secret", "..", "link", "links/secret", "a\0b"])
def test_no_name_leads_out_of_the_models_folder(tmp_path: Path, name: str) -> None:
    model = write(tmp_path, "m")
    (tmp_path / "secret").write_text("secret")
    (model / "1" / "link").symlink_to(tmp_path / "secret")
    (model / "1" / "links").symlink_to(tmp_path)
    with pytest.raises(ModelLoadError, match="label_filename leads out of the model's folder"):
        folders.inside(model / "1", model, name, "label_filename")


def test_a_name_inside_may_be_a_link_inside(tmp_path: Path) -> None:
    model = write(tmp_path, "m")
    (model / "real").write_text("")
    (model / "1" / "model.onnx").symlink_to("../real")
    assert folders.inside(model / "1", model, "model.onnx", "default_model_filename").read_text() == ""
    with pytest.raises(ModelLoadError, match="1/model.pt is missing; put the file there, or correct default_model_filename"):
        folders.inside(model / "1", model, "model.pt", "default_model_filename")


def test_the_backend_is_named_or_found_by_the_file(tmp_path: Path) -> None:
    def backend(text: str, file: str = "") -> str:
        model = write(tmp_path, "m", text, **({file: b""} if file else {}))
        try:
            return meaning.backend_of(config.read_config(model).values, model / "1")
        finally:
            if file:
                (model / "1" / f"model.{file}").unlink()

    assert backend('platform: "onnxruntime_onnx"') == backend('backend: "onnxruntime"') == backend("", "onnx") == "onnxruntime"
    assert backend('platform: "pytorch_libtorch"') == backend('backend: "pytorch"') == backend("", "pt") == "pytorch"
    assert backend('platform: "ensemble"') == backend("ensemble_scheduling { }") == "ensemble"
    for text in ('backend: "python"', 'platform: "tensorrt_plan"'):
        with pytest.raises(ValueError, match="the backend (python|tensorrt_plan) is not served here; there are onnxruntime"):
            backend(text)
    with pytest.raises(ValueError, match="it names no backend, and version 1 holds neither model.onnx nor model.pt"):
        backend("")
