"""The Open Inference Protocol's bytes: what is read is what was meant, and the rest is refused."""

from __future__ import annotations

import gc
import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from starlette.exceptions import HTTPException

from infer.errors import InputError
from infer.server import oip
from infer.server.admission import inflated, inflated_size
from infer.server.options import MIB
from infer.server.tensors import DATATYPES

Array = np.ndarray[Any, Any]
NUMBERS = {name: np.dtype(name) for name in DATATYPES if name != "string"}
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def request(**changes: Any) -> dict[str, Any]:
    """A sound request of one tensor, changed."""
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.5, 2, 3, 4], **changes}


def read(item: dict[str, Any], rest: bytes = b"", **more: Any) -> Array:
    """The tensor `item` of a request whose JSON `rest` follows."""
    text = json.dumps({"inputs": [item], **more}).encode()
    return oip.parse_request(text + rest, len(text)).feeds[item["name"]]


def same(one: Array, other: Array) -> bool:
    """Equal bit by bit, or text by text, which is read as bytes in binary form."""
    if one.dtype == object:
        texts = [item.decode() if isinstance(item, bytes) else item for item in one.ravel()]
        return one.shape == other.shape and texts == other.ravel().tolist()
    native = one.astype(one.dtype.newbyteorder("="))
    return (
        native.dtype == other.dtype and native.shape == other.shape and native.tobytes() == other.tobytes()
    )


numbers = st.sampled_from(sorted(NUMBERS)).flatmap(lambda name: arrays.arrays(NUMBERS[name], SHAPES))
texts = arrays.arrays(np.dtype(object), SHAPES, elements=st.text(max_size=5), fill=st.nothing())


@given(numbers | texts)
def test_binary_values_come_back_as_they_went(array: Array) -> None:
    """What an answer packs, of any dtype and shape, a request reads as the same bits."""
    answer = oip.InferRequest(None, {}, (oip.WantedOutput("x", True),), False, None)
    body, length = oip.dump_answer({"x": array}, answer, "m", "1")
    (item,) = json.loads(body[:length])["outputs"]
    assert same(read(item, body[length:]), array)


@given(numbers | texts, st.booleans())
def test_json_values_come_back_as_they_went(array: Array, nested: bool) -> None:
    """The same of JSON, flat or nested, NaN and infinities included; FP16 has none."""
    answer = oip.InferRequest(None, {}, (), False, None)
    if array.dtype == np.float16:
        with pytest.raises(InputError, match="FP16"):
            oip.dump_answer({"x": array}, answer, "m", "1")
        return
    body, length = oip.dump_answer({"x": array}, answer, "m", "1")
    assert length is None
    (item,) = json.loads(body)["outputs"]
    if nested and array.ndim:
        item["data"] = np.asarray(item["data"], dtype=object).reshape(array.shape).tolist()
    found = read(item)
    if array.dtype.kind == "f":  # JSON does not tell one NaN from another
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    else:
        assert same(found, array)


def test_binary_bytes_are_little_endian() -> None:
    """The bytes themselves, as the specification has them."""
    answer = oip.InferRequest(
        "7", {}, (oip.WantedOutput("i", True), oip.WantedOutput("t", True)), False, None
    )
    outputs = {"i": np.array([1, -2], np.int16), "t": np.array(["a", "ü"], object)}
    body, length = oip.dump_answer(outputs, answer, "m", "3")
    assert length is not None
    assert body[length:] == b"\x01\x00\xfe\xff" + b"\x01\x00\x00\x00a" + b"\x02\x00\x00\x00\xc3\xbc"
    said = json.loads(body[:length])
    assert (said["id"], said["model_name"], said["model_version"]) == ("7", "m", "3")
    assert [each["parameters"]["binary_data_size"] for each in said["outputs"]] == [4, 11]
    assert [each["datatype"] for each in said["outputs"]] == ["INT16", "BYTES"]


def test_what_a_request_asks_for() -> None:
    """Outputs by name, each binary or not; the default of the request; the caller's patience."""
    asked = {"outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]}
    asked |= {"id": "x", "parameters": {"binary_data_output": True, "timeout": 1500000}}
    found = oip.parse_request(json.dumps({"inputs": [request()], **asked}).encode())
    assert found.outputs == (oip.WantedOutput("a", True), oip.WantedOutput("b", False))
    assert (found.id, found.timeout_s, found.names) == ("x", 1.5, ["a", "b"])
    found = oip.parse_request(json.dumps({"inputs": [request()]}).encode())
    assert (found.id, found.timeout_s, found.names, found.binary) == (None, None, None, False)


REFUSED: dict[str, dict[str, Any]] = {
    "no shape": {"shape": None},
    "negative size": {"shape": [-1, 4]},
    "float size": {"shape": [2.0, 2]},
    "true as size": {"shape": [True, 4]},
    "too few values": {"shape": [3, 2]},
    "2^60 rows": {"shape": [2**60]},
    "2^60 columns of no rows": {"shape": [0, 2**60], "data": []},
    "2^30 × 2^30": {"shape": [2**30, 2**30]},
    "65 dims": {"shape": [1] * 65},
    "no datatype": {"datatype": None},
    "unknown datatype": {"datatype": "FP8"},
    "datatype of Triton's configuration": {"datatype": "TYPE_FP32"},
    "text as number": {"data": ["1", 2, 3, 4]},
    "true as number": {"data": [True, True, False, False]},
    "true among numbers": {"data": [True, 2, 3, 4]},
    "false among integers": {"datatype": "INT64", "data": [1, 2, 3, False]},
    "true among booleans, as a number": {"datatype": "BOOL", "data": [True, 1, False, 0]},
    "null as number": {"data": [None, 2, 3, 4]},
    "object as number": {"data": [{}, 2, 3, 4]},
    "ragged": {"data": [[1, 2, 3], [4]]},
    "nested otherwise": {"data": [[1], [2], [3], [4]]},
    "too large for FP32": {"data": [1e39, 2, 3, 4]},
    "no list": {"data": 1.5},
    "float as integer": {"datatype": "INT64"},
    "beyond INT8": {"datatype": "INT8", "data": [1, 2, 3, 128]},
    "negative as UINT64": {"datatype": "UINT64", "data": [1, 2, 3, -1]},
    "beyond UINT64": {"datatype": "UINT64", "data": [1, 2, 3, 2**64]},
    "number as BOOL": {"datatype": "BOOL", "data": [0, 1, 0, 1]},
    "number as BYTES": {"datatype": "BYTES", "data": ["a", "b", "c", 4]},
    "FP16 in JSON": {"datatype": "FP16"},
    "both forms": {"parameters": {"binary_data_size": 16}},
    "parameters that are none": {"parameters": []},
    "shared memory": {"parameters": {"shared_memory_region": "r"}},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_tensor_that_is_not_what_it_says_is_refused(name: str) -> None:
    """Each is an `InputError` that names the input."""
    with pytest.raises(InputError, match="'x'"):
        read(request(**REFUSED[name]))


def test_integers_on_both_sides_of_2_63_stay_integers() -> None:
    """numpy alone would read them as floats."""
    given_values = [0, 1, 2**63, 2**64 - 1]
    assert read(request(datatype="UINT64", data=given_values)).ravel().tolist() == given_values


@pytest.mark.parametrize("size", [15, 17, -1, True, 2**60, "16", None])
def test_binary_sizes_must_be_those_of_the_shape(size: Any) -> None:
    """Too few, too many, and what is no size."""
    item = request(parameters={"binary_data_size": size})
    del item["data"]
    with pytest.raises(InputError):
        read(item, bytes(32))


def test_bytes_after_the_last_tensor_are_refused() -> None:
    """Nothing may hide there, nor be lost."""
    item = request(parameters={"binary_data_size": 16})
    del item["data"]
    assert read(item, bytes(16)).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(InputError, match="1 bytes follow"):
        read(item, bytes(17))


@pytest.mark.parametrize(
    "part",
    [b"", b"\1\0\0\0", b"\1\0\0\0a", b"\1\0\0\0ab\0\0\0\0", b"\xff\xff\xff\xffa\0\0\0", b"\0\0\0\0" * 3],
)
def test_elements_of_bytes_must_fill_their_part(part: bytes) -> None:
    """Lengths that lead beyond the end, stop before it, or are cut."""
    item = request(datatype="BYTES", shape=[2], parameters={"binary_data_size": len(part)})
    del item["data"]
    with pytest.raises(InputError, match="'x'"):
        read(item, part)
    sound = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)
    item["parameters"]["binary_data_size"] = len(sound)
    assert read(item, sound).tolist() == [b"ab", b""]


@pytest.mark.parametrize(
    "header", ["1_2", "٣", " 12", "12 ", "+12", "-1", "0x10", "1e2", "", "12.0", "101", "9" * 5000]
)
def test_the_length_of_the_json_is_plain_digits(header: str) -> None:
    """What `int()` would read, too, and what is beyond the body."""
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        oip.json_length(header, 100)
    assert oip.json_length("100", 100) == 100
    assert oip.json_length(None, 100) is None


BAD_BODIES = {
    "nothing": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "NaN": b'{"inputs": [], "a": NaN}',
    "not UTF-8": b'{"inputs": "\xff"}',
    "half a character": b'{"inputs": "\\ud800"}',
    "no inputs": b"{}",
    "inputs that are none": b'{"inputs": {}}',
    "an input that is none": b'{"inputs": [1]}',
    "a number as id": b'{"inputs": [], "id": 1}',
    "a long id": b'{"inputs": [], "id": "' + b"a" * 1025 + b'"}',
    "no output's name": b'{"inputs": [], "outputs": [{}]}',
    "an output twice": b'{"inputs": [], "outputs": [{"name": "a"}, {"name": "a"}]}',
    "a class count": b'{"inputs": [], "outputs": [{"name": "a", "parameters": {"classification": 3}}]}',
    "a text as flag": b'{"inputs": [], "parameters": {"binary_data_output": "true"}}',
    "a negative timeout": b'{"inputs": [], "parameters": {"timeout": -1}}',
    "a deep list": b"[" * 250_000,
    "a deep object": b'{"a":' * 250_000,
    "millions of values": b'{"inputs": [' + b"[]," * (oip.MAX_JSON_VALUES // 2 + 1) + b"[]]}",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_that_is_no_request_is_refused(name: str) -> None:
    """Each is an `InputError`, and nothing else."""
    with pytest.raises(InputError):
        oip.parse_request(BAD_BODIES[name])


def test_while_one_thread_reads_without_looks_for_garbage_others_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would take its pause for the usual state, and leave it so for good."""
    changed: list[str] = []
    monkeypatch.setattr(gc, "disable", lambda: changed.append("off"))
    monkeypatch.setattr(gc, "enable", lambda: changed.append("on"))
    with oip._PAUSING:
        assert oip.load_json(b'{"inputs": [[]]}') == {"inputs": [[]]}
    assert changed == []
    with pytest.raises(InputError):
        oip.load_json(b"{")
    assert changed == ["off", "on"]


def test_an_input_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        oip.parse_request(json.dumps({"inputs": [request(), request()]}).encode())


plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("name", "shape", "datatype", "data", "parameters")


@given(
    st.fixed_dictionaries(
        {"name": st.just("x")},
        optional={
            "shape": plain_json | st.lists(st.integers(-1, 3), max_size=3),
            "datatype": plain_json | st.sampled_from(sorted(DATATYPES.values())),
            "data": plain_json
            | st.lists(st.integers(-1, 300) | st.floats() | st.text(max_size=2), max_size=9),
            "parameters": plain_json | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9)}),
        },
    ),
    st.binary(max_size=8),
)
def test_any_tensor_is_read_or_refused(item: dict[str, Any], rest: bytes) -> None:
    """Whatever JSON and bytes say, there is an array of the stated shape and dtype, or an `InputError`."""
    try:
        found = read(item, rest)
    except InputError:
        return
    assert list(found.shape) == item["shape"]
    assert DATATYPES["string" if found.dtype == object else found.dtype.name] == item["datatype"]


@given(st.binary(max_size=64), st.none() | st.integers(0, 64))
def test_any_bytes_are_a_request_or_refused(body: bytes, length: int | None) -> None:
    """No other exception, whatever comes."""
    try:
        oip.parse_request(body, None if length is None else min(length, len(body)))
    except InputError:
        return


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_a_compressed_body_is_inflated(body: bytes, encoding: str) -> None:
    """Python's own compressors are the other side; what is cut or followed by more is refused."""
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    assert inflated_size(packed, encoding, len(body)) == len(body)
    assert inflated(packed, encoding, len(body)) == body
    for wrong in (packed[:-1], packed + b"\0", b"no" + packed):
        with pytest.raises(HTTPException) as refused:
            inflated_size(wrong, encoding, 64 * MIB)
        assert refused.value.status_code == 400
    if body:
        with pytest.raises(HTTPException) as refused:
            inflated_size(packed, encoding, len(body) - 1)
        assert refused.value.status_code == 413


def test_a_compressed_body_that_says_it_is_too_large_is_not_inflated() -> None:
    """gzip streams end in what they inflate to, of which nothing else need be right."""
    claimed = gzip.compress(b"")[:-4] + (64 * MIB + 1).to_bytes(4, "little")
    with pytest.raises(HTTPException) as refused:
        inflated_size(claimed, "gzip", 64 * MIB)
    assert refused.value.status_code == 413
    with pytest.raises(HTTPException) as refused:
        inflated_size(claimed, "gzip", 64 * MIB + 1)
    assert refused.value.status_code == 400


def test_an_unknown_encoding_is_refused() -> None:
    assert inflated_size(b"a", "Identity", 1) == 1
    assert inflated(b"a", "Identity", 1) == b"a"
    for encoding in ("br", "gzip, gzip", ""):
        if encoding:
            with pytest.raises(HTTPException) as refused:
                inflated_size(b"a", encoding, 1)
            assert refused.value.status_code == 415
