"""The manifest and the strict reading of JSON it stands on."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer import schema
from infer.errors import ArtifactError
from infer.manifest import (
    FORMAT_VERSION,
    Attempt,
    Compiled,
    Evidence,
    FileRecord,
    GoldenPoint,
    Manifest,
    Measured,
    Parity,
    Prepared,
    Provenance,
    Saturation,
    Speed,
    TaskSpec,
    Tuned,
    Variant,
)
from infer.parity import Tolerance
from infer.signature import DTYPES, Range, TensorSpec

GOLDEN = Path(__file__).parent / "golden" / "manifest.json"


def example() -> Manifest:
    """A manifest that uses every field, with every optional one present."""
    return Manifest(
        format_version=FORMAT_VERSION,
        name="net",
        inputs=(TensorSpec("x", "float32", ("batch", 10)), TensorSpec("名前", "string", ("n",))),
        outputs=(TensorSpec("logits", "float32", ("batch", 2)), TensorSpec("ids", "int64", (1, "k"))),
        structure={"dict": {"logits": "logits", "rest": {"tuple": ["ids", None, {"value": 0.5}]}}},
        task=TaskSpec("text-classification", {"labels": ["no", "yes"], "nested": {"a": [1, None, True]}}),
        variants=(
            Variant("fp32", "graphs/fp32.onnx", "float32", 23, 1234),
            Variant(
                "int8",
                "graphs/fp32.onnx",
                "int8",
                21,
                400,
                Evidence(
                    changes={"int8-static": "2 of 3 (1: kept in float for accuracy)"},
                    budget="cosine>=0.99",
                    figures={"equal": 0.0, "cosine": 0.998},
                    data="20 feeds of data.npz that calibration did not see",
                    speed=Speed("reference", 0.5, 0.48, 0.52, "a machine"),
                    neighbours=0.01,
                    tolerances={"logits": Tolerance(atol=1e-7, rtol=0.0, scaled=0.05)},
                    saturation=Saturation(7, 2, 16),
                ),
                "openvino",
            ),
        ),
        golden=(GoldenPoint("batch=3", "golden/0-feeds.npz", "golden/0-outputs.npz"),),
        parity=Parity(
            oracle="Net in torch 2.13.0 on cpu",
            tolerances={"float32": Tolerance(atol=1e-7, rtol=0.0, scaled=2e-5)},
            measured=(
                Measured("batch=3", "logits", 1.5e-7, 3e-7, 1.0, True),
                Measured("batch=3", "ids", None, None, None, False),
            ),
            mismatch_allowed=True,
        ),
        provenance=Provenance(
            source="net.py:Net",
            source_class="Net",
            weights_sha256="00" * 32,
            parameters=67,
            attempts=(Attempt("dynamo", 23, 'it fails "here"'), Attempt("dynamo", 20, None)),
            patches=("a patch",),
            versions={"python": "3.11.7"},
            created="2026-01-02T03:04:05+00:00",
            notes=("a note – with a dash",),
            census={"attention": 6, "norm": 13},
        ),
        files={
            name: FileRecord(sha256=digit * 64, size_bytes=size)
            for name, digit, size in (
                ("graphs/fp32.onnx", "a", 1234),
                ("golden/0-feeds.npz", "b", 56),
                ("golden/0-outputs.npz", "c", 78),
            )
        },
        limits={"batch": Range(1, 64), "n": Range(2)},
        tuned=(
            Tuned(
                "a machine",
                "cpu",
                "int8",
                1,
                "openvino 2026.4.1",
                "2026-01-02T03:04:05+00:00",
                Prepared("graphs/fp32.onnx", 0.5),
                Compiled("ab" * 32, 0.25),
                spinning=False,
                streams=2,
            ),
        ),
    )


def test_a_plan_without_later_settings_is_read() -> None:
    """It means what a backend does by default, and that nothing is kept compiled."""
    data = json.loads(example().to_json())
    for name in ("compiled", "spinning", "prepacking", "huge_pages", "rows_from"):
        del data["tuned"][0][name]
    (tuned,) = Manifest.from_json(json.dumps(data), "an older one").tuned
    assert (tuned.compiled, tuned.spinning, tuned.prepacking) == (None, True, True)
    assert not tuned.huge_pages
    assert tuned.prepared == example().tuned[0].prepared


def test_the_file_format_is_byte_for_byte_what_it_was() -> None:
    """`tests/golden/manifest.json` is what the example is written as, and reads as the example.

    If this fails, the format changed: give it a new `FORMAT_VERSION`, or change it back.
    """
    assert example().to_json().encode() == GOLDEN.read_bytes()
    assert Manifest.from_json(GOLDEN.read_bytes(), "golden") == example()


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | finite | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
dims = st.lists(st.integers(0, 2**62) | names, max_size=3).map(tuple)
specs = st.lists(
    st.builds(TensorSpec, names, st.sampled_from(sorted(DTYPES)), dims),
    max_size=3,
    unique_by=lambda spec: spec.name,
).map(tuple)
numbers = st.none() | finite


@given(
    name=names,
    inputs=specs,
    outputs=specs,
    task=st.none() | st.builds(TaskSpec, names, st.dictionaries(names, plain, max_size=3)),
    measured=st.lists(st.builds(Measured, names, names, numbers, numbers, numbers, st.booleans())).map(
        tuple
    ),
    attempts=st.lists(st.builds(Attempt, names, st.integers(-(2**63), 2**63 - 1), st.none() | names)).map(
        tuple
    ),
    versions=st.dictionaries(names, names),
)
def test_any_manifest_reads_back_as_it_was_written(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    task: TaskSpec | None,
    measured: tuple[Measured, ...],
    attempts: tuple[Attempt, ...],
    versions: dict[str, str],
) -> None:
    """Whatever text, numbers and nesting it holds, `from_json(to_json(m)) == m`."""
    start = example()
    assert start.parity is not None
    manifest = replace(
        start,
        name=name,
        inputs=inputs,
        outputs=outputs,
        structure={"list": [spec.name for spec in outputs]},
        task=task,
        parity=replace(start.parity, measured=measured),
        provenance=replace(start.provenance, attempts=attempts, versions=versions),
        limits={},
    )
    assert Manifest.from_json(manifest.to_json(), "it") == manifest


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_a_spec_that_is_not_json_is_not_written(value: object) -> None:
    """What no reader could take back is an `ArtifactError` that names the cure."""
    manifest = replace(example(), task=TaskSpec("tensors", {"a": value}))
    with pytest.raises(ArtifactError, match=r"cannot be written as JSON .*give the task's spec"):
        manifest.to_json()


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def edit(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return edit


def _drop(*path: Any) -> Callable[[Any], None]:
    def edit(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return edit


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "newer version": (_set("format_version", to=2), "has format version 2, but this release .* version 1"),
    "no version": (_drop("format_version"), "has format version None"),
    "true is not 1": (_set("format_version", to=True), "has format version True"),
    "version as text": (_set("format_version", to="1"), "has format version '1'"),
    "unknown key": (_set("surprise", to=1), r"unknown keys \['surprise'\]"),
    "unknown inner key": (_set("variants", 0, "code", to="x"), r"\[0\] has unknown keys \['code'\]"),
    "absent key": (_drop("variants"), r"lacks \['variants'\]"),
    "wrong type": (_set("name", to=5), "manifest.name must be str, but is 5"),
    "bool for int": (_set("variants", 0, "opset", to=True), "opset must be int, but is True"),
    "text for list": (_set("golden", to="abc"), "golden must be list"),
    "list for dict": (_set("files", to=[]), "files must be dict"),
    "int beyond float": (_set("parity", "measured", 0, "max_abs", to=10**400), "fits 64 bits"),
    "int beyond 64 bits": (_set("variants", 0, "size_bytes", to=2**63), "size_bytes .* fits 64 bits"),
    "int of 400 digits": (_set("variants", 0, "size_bytes", to=10**400), "size_bytes .* fits 64 bits"),
    "unknown dtype": (_set("inputs", 0, "dtype", to="complex64"), "unknown dtype 'complex64'"),
    "negative dim": (_set("inputs", 0, "dims", to=[-1, 10]), "negative dim"),
    "half a dim": (_set("inputs", 0, "dims", to=[1.5]), r"dims\[0\] must be int.*or.*must be str"),
    "two inputs alike": (_set("inputs", 1, "name", to="x"), "names two tensors alike: x, x"),
    "no variant": (_set("variants", to=[]), "lists no variant"),
    "unlisted graph": (_set("variants", 0, "graph", to="../x.onnx"), "does not list: .*x.onnx"),
    "unlisted golden": (_set("golden", 0, "feeds", to="/etc/passwd"), "does not list: .*/etc/passwd"),
    "no sha256": (_set("files", "graphs/fp32.onnx", "sha256", to=None), "lacks the sha256"),
    "stray output": (_set("structure", to=["nope"]), "malformed"),
    "unknown output": (_set("structure", to="nope"), r"unknown outputs \['nope'\]"),
    "odd structure": (_set("structure", to={"call": ["logits"]}), "malformed"),
    "two kinds": (_set("structure", to={"list": [], "tuple": []}), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_manifest_that_breaks_a_rule_is_refused_by_field(case: str) -> None:
    """The error names the file, and the field that is wrong."""
    edit, words = REFUSED[case]
    data = json.loads(GOLDEN.read_text(encoding="utf-8"))
    edit(data)
    with pytest.raises(ArtifactError, match=words) as caught:
        Manifest.from_json(json.dumps(data), "'net.infer/manifest.json'")
    assert "'net.infer/manifest.json'" in str(caught.value) or "structure" in str(caught.value)


@dataclass(frozen=True)
class Inner:
    number: float
    flag: bool = False


@dataclass(frozen=True)
class Outer:
    pair: tuple[int, str]
    many: tuple[Inner, ...]
    maybe: int | str | None = None
    table: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None


def test_decode_reads_every_kind_of_field() -> None:
    """Pairs, tuples, unions, tables, nested classes, defaults; an int is a float where one is wanted."""
    data = {
        "pair": [1, "a"],
        "many": [{"number": 2}, {"number": 0.5, "flag": True}],
        "maybe": "text",
        "table": {"k": {"number": 1.0}},
        "anything": [{}],
    }
    found = schema.decode(Outer, data, "it")
    assert found == Outer((1, "a"), (Inner(2.0), Inner(0.5, True)), "text", {"k": Inner(1.0)}, [{}])
    assert type(found.many[0].number) is float
    assert schema.decode(Outer, schema.encode(found), "it") == found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "it must be dict, but is None"),
        ({"pair": [1, "a"]}, r"it lacks \['many'\]"),
        ({"pair": [1], "many": []}, "it.pair must have 2 items, but has 1"),
        ({"pair": ["a", 1], "many": []}, r"it.pair\[0\] must be int, but is 'a'"),
        ({"pair": [True, "a"], "many": []}, r"it.pair\[0\] must be int, but is True"),
        ({"pair": [1, "a"], "many": [{"number": "1"}]}, r"it.many\[0\].number must be float"),
        ({"pair": [1, "a"], "many": [{"number": True}]}, r"it.many\[0\].number must be float"),
        ({"pair": [1, "a"], "many": [], "maybe": 1.5}, "it.maybe must be int.*; or it.maybe must be str"),
        ({"pair": [1, "a"], "many": [], "table": {"k": 1}}, "it.table.k must be dict"),
        ({"pair": [1, "a"], "many": [], "x": 1}, r"unknown keys \['x'\]; it may have"),
    ],
)
def test_decode_names_the_field_that_is_wrong(data: object, words: str) -> None:
    """What does not follow the declared types is refused with its path."""
    with pytest.raises(schema.SchemaError, match=words):
        schema.decode(Outer, data, "it")


@given(st.text(alphabet=string.printable, max_size=60) | st.binary(max_size=60))
def test_no_text_makes_the_reader_raise_anything_else(text: str | bytes) -> None:
    """Any bytes end in an `ArtifactError`."""
    with pytest.raises(ArtifactError):
        Manifest.from_json(text, "it")


def test_what_was_not_measured_is_told_from_what_does_not_move() -> None:
    """Evidence may have no figure for neighbours; a manifest that has one is read as before."""
    manifest = example()
    data = json.loads(manifest.to_json())
    assert data["variants"][1]["evidence"]["neighbours"] == 0.01
    data["variants"][1]["evidence"]["neighbours"] = None
    evidence = Manifest.from_json(json.dumps(data), "here").variants[1].evidence
    assert evidence is not None
    assert evidence.neighbours is None
