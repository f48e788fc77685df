"""The message classes and services of the `.proto` files beside this module.

They are made at import from `inference.binpb`, the serialized descriptors; `inference.proto` says how that is made.
Unlike generated modules these are tied to no version of protobuf, and their pool is their own: another library of the
same process may bring `inference` messages, too.
"""

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_DESCRIPTORS = (("servekit.triton", "model_config.binpb"), ("servekit.grpc", "inference.binpb"))

_pool = descriptor_pool.DescriptorPool()
for _package, _name in _DESCRIPTORS:
    for _file in descriptor_pb2.FileDescriptorSet.FromString(resources.files(_package).joinpath(_name).read_bytes()).file:
        _pool.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Any:
    """Return the class of the message with that full name."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def methods(service: str) -> list[tuple[str, Any, Any, bool, bool]]:
    """Return the methods of a service: name, class of the request, class of the answer, and which of them stream."""
    return [
        (
            method.name,
            message(method.input_type.full_name),
            message(method.output_type.full_name),
            method.client_streaming,
            method.server_streaming,
        )
        for method in _pool.FindServiceByName(service).methods
    ]
