"""Hostile and damaged artifacts: paths, links, changed files, and JSON made to hurt."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir
import pytest

import converters
import infer
from infer.backends import load_backend
from infer.backends.openvino import export
from infer.errors import ArtifactError, IntegrityError
from infer.graphwriting import save
from infer.guard import Guard
from infer.machine import this_machine
from infer.npz import load_npz
from tests.command import infer_command
from tests.tiny import classifier, edit_manifest, parse, reseal

GRAPH, FEEDS = "graphs/net.onnx", "golden/0-feeds.npz"
X = {"x": np.ones((1, 10), np.float32)}


def test_the_artifact_is_sound(artifact: Path) -> None:
    """What the attacks below change is otherwise opened, run and verified."""
    with infer.load(artifact) as session:
        assert session.run(X)["logits"].shape == (1, 2)
    assert infer_command("verify", artifact).code == 0


@pytest.mark.parametrize(
    "name",
    ["../outside.onnx", "graphs/../../outside.onnx", "{outside}", "..\\outside.onnx", "g\0.onnx", "", "/"],
    ids=["parent", "inner parent", "absolute", "backslash", "nul", "empty", "root"],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_path_in_the_manifest_cannot_leave_the_artifact(artifact: Path, name: str, verify: bool) -> None:
    """A graph named by any way out is refused, though the file is there and its hash is right."""
    outside = artifact.parent / "outside.onnx"
    outside.write_bytes((artifact / GRAPH).read_bytes())
    name = name.format(outside=outside)

    def edit(data: Any) -> None:
        data["files"][name] = data["files"].pop(GRAPH)
        data["variants"][0]["graph"] = name

    edit_manifest(artifact, edit)
    with pytest.raises(IntegrityError, match="not a path inside"):
        infer.load(artifact, verify=verify)


def test_a_compiled_model_is_not_taken_from_an_artifact(artifact: Path, tmp_path: Path) -> None:
    """Nor from where a manifest says: it may name a sha256, which is looked for in the user's cache."""
    machine = this_machine().fingerprint
    runtime = f"openvino {load_backend('openvino').version}"
    with infer.load(artifact, backend="openvino") as session:
        expected = session.run(X)["logits"]
        feeds = Guard(session.signature).admit({"x": X["x"]})
        blob = export(artifact / GRAPH, session.plan, feeds, session.signature)
    sha256 = hashlib.sha256(blob).hexdigest()
    for name in (sha256, f"prepared/{sha256}"):
        (artifact / name).parent.mkdir(exist_ok=True)
        (artifact / name).write_bytes(blob)

    def edit(data: Any, said: str) -> None:
        data["variants"][0]["backend"] = "openvino"
        data["tuned"] = [
            {
                "machine": machine,
                "device": "cpu",
                "variant": data["variants"][0]["name"],
                "num_threads": 1,
                "runtime": runtime,
                "created": "2026-01-02T03:04:05+00:00",
                "compiled": {"sha256": said, "load_ratio": 0.1},
            }
        ]

    for said in (sha256, f"prepared/{sha256}", str(artifact / sha256), "../" * 9 + "etc/passwd"):
        edit_manifest(artifact, lambda data, said=said: edit(data, said))
        reseal(artifact)
        with infer.load(artifact) as session:
            assert session.plan.compiled == said
            np.testing.assert_array_equal(session.run(X)["logits"], expected)
            assert session._executable._models._model is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", ["../../outside.onnx", "{outside}"], ids=["relative", "absolute"])
def test_a_link_cannot_leave_the_artifact(artifact: Path, target: str) -> None:
    """A symbolic link in place of a graph is refused if it leads out, and welcome if it leads inside."""
    graph, outside = artifact / GRAPH, artifact.parent / "outside.onnx"
    graph.rename(outside)
    graph.symlink_to(target.format(outside=outside))
    with pytest.raises(IntegrityError, match="a link that leaves the artifact"):
        infer.load(artifact)
    graph.unlink()
    outside.rename(artifact / "real.onnx")
    graph.symlink_to("../real.onnx")
    infer.load(artifact).close()


def test_a_link_that_leads_round_or_a_name_without_end_is_refused(artifact: Path) -> None:
    """A link to itself and a name no system has are what the artifact lacks, and are not repeated whole."""
    graph = artifact / GRAPH
    graph.unlink()
    graph.symlink_to("net.onnx")
    for verify in (True, False):
        with pytest.raises(IntegrityError, match="lacks its file"):
            infer.load(artifact, verify=verify)
    name = "graphs/" + "a" * 5000

    def edit(data: Any) -> None:
        data["files"][name] = data["files"].pop(GRAPH)
        data["variants"][0]["graph"] = name

    edit_manifest(artifact, edit)
    with pytest.raises(ArtifactError, match="File name too long") as caught:
        infer.load(artifact)
    assert len(str(caught.value)) < 500


def test_a_linked_folder_cannot_lead_out(artifact: Path) -> None:
    """The folder of the graphs may not be a link out of the artifact either."""
    (artifact / "graphs").rename(artifact.parent / "elsewhere")
    (artifact / "graphs").symlink_to("../elsewhere")
    with pytest.raises(IntegrityError, match="a link that leaves the artifact"):
        infer.load(artifact)


def test_links_of_a_hub_cache_are_followed(artifact: Path) -> None:
    """Snapshots of a Hugging Face cache link to blobs beside them; other folders are out of bounds."""
    snapshot = artifact.parent / "models--a--b" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    artifact.rename(snapshot)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    (snapshot / GRAPH).rename(blobs / "1234")
    (snapshot / GRAPH).symlink_to("../../../blobs/1234")
    infer.load(snapshot).close()
    infer.load(snapshot / GRAPH).close()
    blobs.rename(blobs.with_name("other"))
    (snapshot / GRAPH).unlink()
    (snapshot / GRAPH).symlink_to("../../../other/1234")
    with pytest.raises(IntegrityError, match="a link that leaves"):
        infer.load(snapshot)


def _point_outside(artifact: Path, location: str) -> None:
    """Let the graph's first weight be read from `location`."""
    model = onnx.load(artifact / GRAPH)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "200")):
        tensor.external_data.add(key=key, value=value)
    (artifact / GRAPH).write_bytes(model.SerializeToString())


LOCATIONS = ["../../secret", "{secret}", "a/../../../secret", "secret", "./../../secret", ""]


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("listed", [True, False])
def test_weights_cannot_be_read_from_outside(artifact: Path, location: str, listed: bool) -> None:
    """External data out of the artifact, or inside but not listed, is refused, though the manifest may list
    the very path the graph names."""
    for secret in (artifact.parent / "secret", artifact / "graphs" / "secret"):
        secret.write_bytes(b"s" * 200)
    location = location.format(secret=artifact.parent / "secret")
    _point_outside(artifact, location)
    reseal(artifact)

    def edit(data: Any) -> None:
        data["files"].pop("graphs/secret")
        if listed and location != "secret":
            record = {"sha256": "0" * 64, "size_bytes": 200}
            data["files"] |= {location: record, f"graphs/{location}": record}

    edit_manifest(artifact, edit)
    with pytest.raises(IntegrityError):
        infer.load(artifact, verify=False)


@pytest.mark.parametrize("spelling", [(1 << 32, 0), (1 << 34, 0), (0, 1), (0, 5)], ids=str)
def test_weights_cannot_hide_behind_an_odd_spelling(artifact: Path, spelling: tuple[int, int]) -> None:
    """A field number with a bit beyond 32, or padded with zeros, means external data to ONNX Runtime's
    parser, and does so here: the file is refused, as a lone graph and by convert."""
    _point_outside(artifact, "../../secret")
    (artifact.parent / "secret").write_bytes(b"s" * 200)
    high, padding = spelling
    model = onnx.load(artifact / GRAPH, load_external_data=False)
    tensor = model.graph.initializer[0]
    entries = b"".join(
        _varint((13 << 3 | 2) + high, padding) + _varint(e.ByteSize(), 0) + e.SerializeToString()
        for e in tensor.external_data
    )
    tensor.ClearField("external_data")
    content = tensor.SerializeToString() + entries
    del model.graph.initializer[0]
    graph = model.graph.SerializeToString() + b"\x2a" + _varint(len(content), 0) + content
    model.ClearField("graph")
    raw = model.SerializeToString() + b"\x3a" + _varint(len(graph), 0) + graph
    (artifact / GRAPH).write_bytes(raw)
    if padding < 5:
        seen = onnx.shape_inference.infer_shapes(raw).graph.initializer[-1]
        assert seen.external_data[0].value == "../../secret"
    with pytest.raises(ArtifactError, match=r"not a path inside|is damaged"):
        infer.load(artifact / GRAPH)
    assert infer_command("convert", artifact / GRAPH, "-o", artifact.parent / "out.infer").code == 1
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"not a file of this artifact|is damaged"):
        infer.load(artifact)


def _varint(value: int, padding: int) -> bytes:
    raw = bytearray()
    while value >= 0x80:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    raw.append(value)
    if padding:
        raw[-1] |= 0x80
        raw += b"\x80" * (padding - 1) + b"\0"
    return bytes(raw)


@pytest.mark.parametrize("location", [*LOCATIONS[:3], *LOCATIONS[4:]])
def test_a_plain_graph_cannot_read_from_outside(artifact: Path, location: str) -> None:
    """The same holds for a lone `.onnx` file, in load and in convert."""
    (artifact.parent / "secret").write_bytes(b"s" * 200)
    _point_outside(artifact, location.format(secret=artifact.parent / "secret"))
    with pytest.raises(ArtifactError):
        infer.load(artifact / GRAPH)
    converted = infer_command("convert", artifact / GRAPH, "-o", artifact.parent / "out.infer")
    assert converted.code == 1
    assert not (artifact.parent / "out.infer").exists()


@pytest.mark.parametrize("linked", ["net.onnx", "net.onnx.data"])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_no_graph_is_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: str, external: bool, there: bool
) -> None:
    """Where the graph or its weights go, a link out of the folder is replaced, or left as it is; the file
    behind it is not touched, and not made."""
    if external:
        monkeypatch.setattr("infer.graphwriting._EXTERNAL_BYTES", 0)
    outside, graph = tmp_path / "outside", tmp_path / "graphs" / "net.onnx"
    if there:
        outside.write_bytes(b"secret")
    graph.parent.mkdir()
    (graph.parent / linked).symlink_to("../outside")
    model = parse("g (float[n, 32] x) => (float[n, 32] y) { y = MatMul(x, w) }")
    weights = np.arange(1024, dtype=np.float32).reshape(32, 32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    save(onnx_ir.from_proto(model), graph)
    assert (outside.read_bytes() if outside.exists() else b"") == (b"secret" if there else b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graphs"] + ["outside"] * there
    (written,) = onnx.load(graph).graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(written), weights)


def test_no_artifact_is_written_through_the_links_of_another(artifact: Path) -> None:
    """Which it replaces as a whole."""
    outside = artifact.parent / "outside"
    outside.write_bytes(b"secret")
    for path in [path for path in artifact.rglob("*") if path.is_file() and path.name != "manifest.json"]:
        path.unlink()
        path.symlink_to(outside)
    graph = artifact.parent / "net.onnx"
    graph.write_bytes(classifier().SerializeToString())
    converters.convert(graph, artifact, overwrite=True)
    assert outside.read_bytes() == b"secret"
    assert not any(path.is_symlink() for path in artifact.rglob("*"))
    infer.load(artifact).close()


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", [GRAPH, FEEDS, "golden/0-outputs.npz"])
@pytest.mark.parametrize(
    "change",
    [_flip, lambda p: p.write_bytes(p.read_bytes()[:-3]), lambda p: p.write_bytes(b""), Path.unlink],
    ids=["one bit", "truncated", "emptied", "gone"],
)
def test_a_changed_file_is_found(artifact: Path, name: str, change: Callable[[Path], object]) -> None:
    """One flipped bit, a cut or absent file is an `IntegrityError` in load and exit 1 in run and verify."""
    change(artifact / name)
    with pytest.raises(IntegrityError, match=name):
        infer.load(artifact)
    for command in (["verify", artifact], ["run", artifact, "--feeds", artifact / FEEDS]):
        outcome = infer_command(*command)
        assert outcome.code == 1
        assert name in outcome.err


def test_golden_outputs_that_were_changed_with_their_hash_fail_verification(artifact: Path) -> None:
    """Hashes do not prove who made an artifact, but `verify` finds that it answers otherwise."""
    path = artifact / "golden/0-outputs.npz"
    outputs = load_npz(path)
    np.savez(path, **{name: array + 1 for name, array in outputs.items()})
    reseal(artifact)
    outcome = infer_command("verify", artifact)
    assert outcome.code == 1
    assert "does not answer here as it was proved to" in outcome.err


def test_golden_points_that_prove_nothing_are_no_proof(artifact: Path) -> None:
    """One that lacks an output fails; without any, "equal" is null; a marked mismatch is said."""
    np.savez(artifact / "golden/0-outputs.npz")
    reseal(artifact)
    outcome = infer_command("verify", artifact)
    assert outcome.code == 1
    assert "'logits': the golden point does not hold it" in outcome.err
    edit_manifest(artifact, lambda data: data["parity"].update(mismatch_allowed=True))

    def no_outputs(data: Any) -> None:
        for point in data["golden"]:
            point["outputs"] = None

    for change in (no_outputs, lambda data: data.update(golden=[])):
        edit_manifest(artifact, change)
        outcome = infer_command("verify", artifact, "--json")
        document = json.loads(outcome.out)
        assert (outcome.code, document["equal"], document["mismatch_allowed"]) == (0, None, True)
        outcome = infer_command("verify", artifact)
        assert "no golden outputs, so its answers could not be checked" in outcome.err
        assert "FAILED parity when it was made" in outcome.err


def test_a_golden_point_that_does_not_fit_is_named(artifact: Path, warming: Path) -> None:
    """Its feeds are refused under the point's name, by load and by verify; "x" alone says nothing."""
    np.savez(warming, x=np.ones((1, 11), np.float32))
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"golden point '[\w=]+' of .*'x' must have shape"):
        infer.load(artifact)
    outcome = infer_command("verify", artifact)
    assert outcome.code == 1
    assert re.search(r"the golden point '[\w=]+' of .* does not fit its graph", outcome.err)


def test_the_digest_pins_an_artifact(artifact: Path, whole_artifact: Path) -> None:
    """Whatever is changed and resealed, the digest is another one."""
    before = infer.Artifact.open(artifact).digest
    assert before == infer.Artifact.open(whole_artifact).digest
    _flip(artifact / FEEDS)
    reseal(artifact)
    opened = infer.Artifact.open(artifact)
    assert opened.digest != before
    shutil.copy(whole_artifact / "manifest.json", artifact / "manifest.json")
    assert opened.digest != before  # it speaks of what was opened, not of what lies there now


NESTED = 250_000
BOMBS: dict[str, tuple[bytes, str]] = {
    "deep lists": (b"[" * NESTED + b"]" * NESTED, "not valid JSON"),
    "deep objects": (b'{"a":' * NESTED + b"1" + b"}" * NESTED, "not valid JSON"),
    "deep inside": (b'{"structure": ' + b"[" * 80 + b"]" * 80 + b"}", "more than 64 deep"),
    "NaN": (b'{"format_version": NaN}', "NaN is not JSON"),
    "infinity": (b'{"format_version": 1, "x": 1e999}', "not valid JSON"),
    "half a character": (b'{"format_version": 1, "x": "\\ud800"}', "not valid JSON"),
    "not UTF-8": (b'{"format_version": "\xff"}', "not valid JSON"),
    "a key twice": (b'{"format_version": 2, "format_version": 1}', "given twice"),
    "many digits": (b'{"format_version": ' + b"9" * 100_000 + b"}", "not valid JSON"),
    "cut short": (b'{"format_version": 1, "na', "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "a list": (b"[1]", "has format version None"),
    "null": (b"null", "has format version None"),
    "huge": (b" " * (8 * 2**20 + 1), "a manifest may have"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs_are_refused(artifact: Path, bomb: str) -> None:
    """Deep, huge, ambiguous or invalid JSON is an `ArtifactError`, and exit 1 without a traceback."""
    content, words = BOMBS[bomb]
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        infer.load(artifact)
    outcome = infer_command("inspect", artifact)
    assert outcome.code == 1
    assert outcome.err.startswith("Error: '")


def test_a_manifest_that_never_ends_is_not_read(artifact: Path) -> None:
    """A pipe, a device, or a link out of the artifact in its place is refused at once."""
    manifest = artifact / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(ArtifactError, match="is not a file"):
        infer.load(artifact)
    manifest.unlink()
    manifest.symlink_to("/dev/zero")
    with pytest.raises(IntegrityError, match="a link that leaves"):
        infer.load(artifact)
    (artifact / GRAPH).unlink()
    os.mkfifo(artifact / GRAPH)
    with pytest.raises(ArtifactError, match="is not a file"):
        infer.load(artifact / GRAPH)


def test_a_zip_bomb_is_not_inflated(artifact: Path, warming: Path) -> None:
    """An .npz that grows from 0.3 to 320 MiB is refused by its index, before anything is read."""
    path = warming
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (80 * 2**20,)}
            )  # fmt: skip
            for _ in range(20):
                member.write(bytes(2**24))
    assert path.stat().st_size < 2**20
    reseal(artifact)
    with pytest.raises(ArtifactError, match="bytes more than the file"):
        infer.load(artifact)
    assert "bytes more than the file" in infer_command("run", artifact, "--feeds", path).err


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    """A header of 2^60 elements over no data ends in an error, not in memory."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x.npy", "w") as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (2**30, 2**30)}
            )  # fmt: skip
    with pytest.raises(ArtifactError, match="not a readable"):
        load_npz(path)


def test_unknown_versions_and_keys_are_refused_by_every_command(artifact: Path) -> None:
    """An artifact of another release is not guessed at."""
    edit_manifest(artifact, lambda data: data.update(format_version=2))
    for command in ("inspect", "run", "verify"):
        outcome = infer_command(command, artifact, *(["--explain"] if command == "run" else []))
        assert outcome.code == 1
        assert "format version 2, but this release of infer reads version 1" in outcome.err
    edit_manifest(artifact, lambda data: data.update(format_version=1, code="x"))
    assert "unknown keys ['code']" in infer_command("inspect", artifact).err


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize(
    "change", [{"dtype": "float64"}, {"name": "z"}, {"dims": ["batch"]}, {"dims": ["batch", 3]}]
)
def test_a_manifest_that_lies_about_the_graph_is_refused(
    artifact: Path, side: str, change: dict[str, object]
) -> None:
    """Another dtype, name, rank or size than the graph's is found before anything runs."""

    def lie(data: dict[str, Any]) -> None:
        before = data[side][0]["name"]
        data[side][0] |= change
        data["structure"] = json.loads(
            json.dumps(data["structure"]).replace(f'"{before}"', json.dumps(data[side][0]["name"]))
        )

    edit_manifest(artifact, lie)
    with pytest.raises(
        infer.ArtifactError, match=r"has .* where the manifest says .*do not belong together"
    ):
        infer.load(artifact)


def test_the_net_used_here_is_the_classifier(artifact: Path) -> None:
    """The graph that the attacks change is the one of `tests.tiny`."""
    assert (artifact / GRAPH).read_bytes() == classifier().SerializeToString()
