"""The messages of the Open Inference Protocol in gRPC, made from a table, so that no compiler is needed.

They are in a pool of their own, because clients in the same process, such as Triton's, have messages of the
same names. Fields are numbered from 1 in the order of the table.

Source: KServe, open-inference-protocol/specification/protocol/open_inference_grpc.proto.
"""

from __future__ import annotations

from typing import Any

from infer.errors import missing_package

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as _error:
    raise missing_package("protobuf", "grpc", _error) from _error

SERVICE = "inference.GRPCInferenceService"

_MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready",),
    "ModelReadyRequest": ("string name", "string version"),
    "ModelReadyResponse": ("bool ready",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("string name", "string version", "repeated string extensions"),
    "ModelMetadataRequest": ("string name", "string version"),
    "ModelMetadataResponse": (
        "string name",
        "repeated string versions",
        "string platform",
        "repeated TensorMetadata inputs",
        "repeated TensorMetadata outputs",
    ),
    "TensorMetadata": ("string name", "string datatype", "repeated int64 shape"),
    "ModelInferRequest": (
        "string model_name",
        "string model_version",
        "string id",
        "map InferParameter parameters",
        "repeated InferInputTensor inputs",
        "repeated InferRequestedOutputTensor outputs",
        "repeated bytes raw_input_contents",
    ),
    "InferInputTensor": (
        "string name",
        "string datatype",
        "repeated int64 shape",
        "map InferParameter parameters",
        "InferTensorContents contents",
    ),
    "InferRequestedOutputTensor": ("string name", "map InferParameter parameters"),
    "ModelInferResponse": (
        "string model_name",
        "string model_version",
        "string id",
        "map InferParameter parameters",
        "repeated InferOutputTensor outputs",
        "repeated bytes raw_output_contents",
    ),
    "InferOutputTensor": (
        "string name",
        "string datatype",
        "repeated int64 shape",
        "map InferParameter parameters",
        "InferTensorContents contents",
    ),
    "InferParameter": (
        "bool bool_param in parameter_choice",
        "int64 int64_param in parameter_choice",
        "string string_param in parameter_choice",
        "double double_param in parameter_choice",
        "uint64 uint64_param in parameter_choice",
    ),
    "InferTensorContents": (
        "repeated bool bool_contents",
        "repeated int32 int_contents",
        "repeated int64 int64_contents",
        "repeated uint32 uint_contents",
        "repeated uint64 uint64_contents",
        "repeated float fp32_contents",
        "repeated double fp64_contents",
        "repeated bytes bytes_contents",
    ),
}
"""Message → its fields: [repeated | map] TYPE NAME [in ONEOF]. Keys of a map are strings. Messages that the
protocol nests are beside each other here, which is the same on the wire."""

_FIELD = descriptor_pb2.FieldDescriptorProto


def _made() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="infer/open_inference.proto", package=SERVICE.partition(".")[0], syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, text in enumerate(fields, start=1):
            _add(message, number, text.split(), file.package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in _MESSAGES
    }


def _add(message: Any, number: int, words: list[str], package: str) -> None:
    """A field of `message`."""
    many = words[0] if words[0] in ("repeated", "map") else ""
    kind, name, *rest = words[1:] if many else words
    field = message.field.add(
        name=name, number=number, label=_FIELD.LABEL_REPEATED if many else _FIELD.LABEL_OPTIONAL
    )
    if many == "map":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add(entry, 1, ["string", "key"], package)
        _add(entry, 2, [kind, "value"], package)
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{package}.{message.name}.{entry.name}"
    elif kind in _MESSAGES:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{package}.{kind}"
    else:
        field.type = _FIELD.Type.Value(f"TYPE_{kind.upper()}")
    if rest:
        if not message.oneof_decl:
            message.oneof_decl.add(name=rest[-1])
        field.oneof_index = 0


MESSAGES: dict[str, Any] = _made()
"""Name → the class of the message."""
