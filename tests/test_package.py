"""`infer package`: each target's files hold to that target's own rules, and to the artifact."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import converters
import infer
from infer import backends, tasks
from infer.artifact import Artifact
from infer.errors import ArtifactError, InputError, missing_package
from infer.npz import load_npz, save_npz
from infer.packaging import RECORD, TARGETS, Target, package
from infer.packaging import yaml as ours
from infer.packaging.docker import Docker
from infer.packaging.installed import needed
from infer.packaging.kserve import Kserve, guessed_memory, service_name
from infer.packaging.triton import DATA_TYPES, Triton, config, quoted
from infer.session import open_artifact
from infer.signature import DTYPES, TensorSpec
from tests import tiny
from tests.command import infer_command
from tests.kserve_schema import INFERENCE_SERVICE, SERVING_RUNTIME

IMAGE = "registry.example.com/net:1"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_artifact(tmp_path_factory.mktemp("package") / "net.infer")


@pytest.fixture
def changed(artifact: Path, tmp_path: Path) -> Path:
    """A copy whose manifest may be edited."""
    return Path(shutil.copytree(artifact, tmp_path / "changed.infer"))


def adopted(folder: Path, text: str) -> Path:
    """An artifact of the graph `text`."""
    converters.convert(tiny.write(folder, text), folder / "adopted.infer")
    return folder / "adopted.infer"


# Triton


@pytest.fixture(scope="module")
def triton() -> Any:
    """Triton's own protocol buffers, and protobuf's reader of text."""
    with warnings.catch_warnings():
        # made for the protobuf before the one that is installed, which still reads them
        warnings.simplefilter("ignore")
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2

    def parse(text: str) -> Any:
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    return parse


def packaged(path: Path, out: Path, triton: Any, **options: Any) -> Any:
    """The parsed configuration of the model at `path`."""
    written = package(open_artifact(path), Triton(**options), out)
    return triton((out / written.name / "config.pbtxt").read_text(encoding="utf-8"))


def test_triton_runs_rows_together_where_golden_rows_do(
    artifact: Path, tmp_path: Path, triton: Any
) -> None:
    """The configuration is Triton's own message, says all of the signature, and batches the classifier."""
    found = packaged(artifact, tmp_path / "out", triton, num_threads=3)
    assert (found.name, found.platform) == ("net", "onnxruntime_onnx")
    (taken,), (given_back,) = found.input, found.output
    assert (taken.name, list(taken.dims), given_back.name, list(given_back.dims)) == (
        "x",
        [10],
        "logits",
        [2],
    )
    assert found.max_batch_size == 64
    assert found.HasField("dynamic_batching")
    (group,) = found.instance_group
    assert (group.count, group.KIND_CPU) == (1, group.kind)
    assert found.parameters["intra_op_thread_count"].string_value == "3"


def test_the_repository_holds_a_graph_that_answers(tmp_path: Path) -> None:
    """Weights that lie beside the graph are found from where Triton opens it."""
    onnx.save(
        tiny.classifier(),
        tmp_path / "big.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    package(open_artifact(tmp_path / "big.onnx"), Triton(), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out/big/1").iterdir()} == {"model.onnx", "w.bin"}
    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10)
    with infer.load(tmp_path / "out/big/1/model.onnx") as session:
        logits = session.run({"x": x})["logits"]
    np.testing.assert_allclose(logits, tiny.classify(tiny.classifier(), x), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_tritons(tmp_path: Path, triton: Any, dtype: str) -> None:
    """By the client's own table of numpy's dtypes; a graph that proves nothing is not batched."""
    from tritonclient.utils import np_to_triton_dtype

    theirs = np_to_triton_dtype(DTYPES[dtype])
    graph = tiny.write(tmp_path, tiny.identity(dtype))
    found = packaged(graph, tmp_path / "out", triton)
    kind = found.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type
    name = kind.values_by_number[found.input[0].data_type].name
    assert name == f"TYPE_{theirs.replace('BYTES', 'STRING')}"
    assert (found.max_batch_size, list(found.input[0].dims)) == (0, [-1, -1])
    assert not found.HasField("dynamic_batching")


def test_rows_that_answer_otherwise_beside_others_are_not_batched(tmp_path: Path, triton: Any) -> None:
    """A graph that takes the mean over its batch is run as it is asked, and the reason is said."""
    path = adopted(
        tmp_path,
        "g (float[batch, 3] x) => (float[batch, 3] y)"
        " { m = ReduceMean<axes = [0], keepdims = 1>(x) y = Sub(x, m) }",
    )
    written = package(open_artifact(path), Triton(), tmp_path / "out")
    found = triton((tmp_path / "out" / written.name / "config.pbtxt").read_text())
    assert (found.max_batch_size, list(found.input[0].dims)) == (0, [-1, 3])
    assert not found.HasField("dynamic_batching")
    assert "golden rows answer otherwise beside others than alone" in written.decided["batching"]


def test_batches_are_no_larger_than_the_model_takes(changed: Path, tmp_path: Path, triton: Any) -> None:
    """Where a limit of the manifest is below that of infer's own batches, it is Triton's, too."""
    tiny.edit_manifest(changed, lambda data: data.update(limits={"batch": {"least": 1, "most": 4}}))
    assert packaged(changed, tmp_path / "out", triton).max_batch_size == 4


def test_a_model_that_takes_no_single_row_is_not_batched(
    changed: Path, tmp_path: Path, triton: Any
) -> None:
    """Triton would run one that comes alone; as it is asked, it gets what it needs."""
    for point in Artifact.open(changed).manifest.golden:
        for path in (changed / point.feeds, changed / point.outputs):
            save_npz(path, {name: np.repeat(array, 2, 0) for name, array in load_npz(path).items()})
    tiny.reseal(changed)
    tiny.edit_manifest(changed, lambda data: data.update(limits={"batch": {"least": 2, "most": None}}))
    found = packaged(changed, tmp_path / "out", triton)
    assert (found.max_batch_size, list(found.input[0].dims)) == (0, [-1, 10])


def test_a_tensor_of_rows_alone_gets_a_dim_that_the_graph_does_not_see(triton: Any) -> None:
    """As Triton's documentation of `reshape` has it for shape [ batch-size ]."""
    spec = TensorSpec("y", "int64", ("batch",))
    found = triton(config("n", (spec,), (spec,), 8, 1))
    assert (list(found.input[0].dims), list(found.input[0].reshape.shape)) == ([1], [])
    assert found.input[0].HasField("reshape")


@pytest.mark.parametrize("dims", [(), (3, 0)])
def test_tensors_that_triton_has_not_are_refused(dims: tuple[int, ...]) -> None:
    """Scalars, and tensors that are always empty, by name and with the cure."""
    with pytest.raises(ArtifactError, match=r"'y: int64.*infer serve"):
        config("n", (TensorSpec("y", "int64", dims),), (), 0, 1)


def test_a_variant_for_another_backend_is_refused(changed: Path, tmp_path: Path) -> None:
    """The error names the backend, and the variants that can be had; nothing is written."""
    tiny.edit_manifest(
        changed,
        lambda data: data["variants"].append(
            {**data["variants"][0], "name": "fast", "backend": "openvino", "evidence": None}
        ),
    )
    with pytest.raises(ArtifactError, match=r"'fast' was made for openvino.*--variant: onnx"):
        package(open_artifact(changed), Triton(variant="fast"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_name_is_read_back(triton: Any, text: str) -> None:
    """Protobuf reads what `quoted` writes as what it was."""
    spec = TensorSpec(text, "bool", (2,))
    found = triton(config(text, (spec,), (spec,), 0, 1))
    assert (found.name, found.input[0].name, quoted(text).isascii()) == (text, text, True)


# KServe


def documents(folder: Path) -> dict[str, Any]:
    """Kind → what the folder's files say."""
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("*.yaml")]
    return {each["kind"]: each for each in found}


@pytest.mark.parametrize("auth", [True, False])
def test_an_inference_service_with_a_container_of_its_own(
    artifact: Path, tmp_path: Path, auth: bool
) -> None:
    """It follows the schema; the image's entry point stays, and only its arguments are replaced."""
    package(open_artifact(artifact), Kserve(image=IMAGE, num_threads=2, auth=auth), tmp_path / "out")
    found = documents(tmp_path / "out")
    assert set(found) == {"InferenceService"}
    jsonschema.validate(found["InferenceService"], INFERENCE_SERVICE)
    (container,) = found["InferenceService"]["spec"]["predictor"]["containers"]
    assert (container["image"], "command" in container) == (IMAGE, False)
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness")}
    assert paths == {"readiness": "/v2/health/ready", "liveness": "/v2/health/live"}
    assert container["resources"]["limits"]["cpu"] == "2"
    assert container["securityContext"]["runAsNonRoot"] is True
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {
        volume["name"]: volume for volume in found["InferenceService"]["spec"]["predictor"]["volumes"]
    }
    assert mounts.keys() == volumes.keys()
    if auth:
        assert container["args"] == ["--token-file", f"{mounts['token']}/token", "--lame-duck", "5s"]
        assert volumes["token"]["secret"] == {"secretName": "net-token"}
        assert "annotations" not in found["InferenceService"]["metadata"]  # Prometheus would have no token
    else:
        assert (container["args"], set(mounts)) == (["--no-auth", "--lame-duck", "5s"], {"tmp"})


def test_an_inference_service_that_downloads_the_artifact(artifact: Path, tmp_path: Path) -> None:
    """A runtime and a service that name each other; what is served lies where KServe puts it."""
    wish = Kserve(image=IMAGE, storage_uri="s3://bucket/net.infer", name="My_Net")
    written = package(open_artifact(artifact), wish, tmp_path / "out")
    found = documents(tmp_path / "out")
    jsonschema.validate(found["InferenceService"], INFERENCE_SERVICE)
    jsonschema.validate(found["ServingRuntime"], SERVING_RUNTIME)
    model, runtime = found["InferenceService"]["spec"]["predictor"]["model"], found["ServingRuntime"]
    assert model["runtime"] == runtime["metadata"]["name"] == "my-net-runtime"
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert model["storageUri"] == "s3://bucket/net.infer"
    assert runtime["spec"]["containers"][0]["command"][:3] == ["infer", "serve", "my-net=/mnt/models"]
    applied = [line.rpartition("/")[2] for line in written.next if line.startswith("kubectl apply")]
    assert applied == ["servingruntime.yaml", "inferenceservice.yaml"]


def test_a_graph_that_is_downloaded_is_served_by_its_file(tmp_path: Path) -> None:
    """KServe puts a file into the folder where artifacts are put as they are."""
    graph = tiny.write(tmp_path, tiny.identity("float32"), "copy.onnx")
    written = package(
        open_artifact(graph), Kserve(image=IMAGE, storage_uri="s3://b/copy.onnx"), tmp_path / "out"
    )
    (container,) = documents(tmp_path / "out")["ServingRuntime"]["spec"]["containers"]
    assert container["command"][2] == "copy=/mnt/models/copy.onnx"
    assert written.decided["model"] == "/v2/models/copy/infer"


BAD = {
    "no tag": {"image": "registry.example.com:5000/net"},
    "latest": {"image": "net:latest"},
    "a blank": {"image": "net:1 2"},
    "no image": {},
    "a path": {"image": IMAGE, "storage_uri": "/models/net"},
    "a number": {"image": IMAGE, "memory": "2"},
    "a digit first": {"image": IMAGE, "name": "1net"},
    "too long": {"image": IMAGE, "name": "n" * 41},
    "a folder": {"image": IMAGE, "name": "../net"},
}


@pytest.mark.parametrize("case", BAD)
def test_what_kubernetes_would_not_take_is_refused(artifact: Path, tmp_path: Path, case: str) -> None:
    """Before anything is written."""
    with pytest.raises(InputError):
        package(open_artifact(artifact), Kserve(**BAD[case]), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_services_have_names_that_kubernetes_takes(text: str) -> None:
    """Labels of RFC 1035, with room for what KServe adds; or an error."""
    try:
        found = service_name(text)
    except InputError:
        return
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert len(found + "-predictor-00001") <= 63


def test_memory_is_guessed_from_the_largest_graph(artifact: Path) -> None:
    """512 MiB and a little for a tiny one, in steps, and more where several runs go on at once."""
    assert guessed_memory(open_artifact(artifact), 1) == "640Mi"
    assert guessed_memory(open_artifact(artifact), 4) == "1408Mi"


KEYS = st.from_regex(r"[a-zA-Z]{1,3}[A-Z][a-zA-Z]{0,8}", fullmatch=True) | st.sampled_from(
    ["y", "N", "yes", "No", "ON", "off", "True", "false", "NULL"]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "yes",
        "1e3",
        "0x10",
        "null",
        "~",
        "2026-11-28",
        "- a",
        "a: b",
        "# c",
        "{",
        "*x",
        "&x",
        "'",
        '"',
        "\\",
        "",
    ]
)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_yaml_is_read_back(value: dict[str, Any]) -> None:
    """A YAML 1.1 parser, the laxest about what is a Boolean or a date, gives what was written."""
    assert yaml.safe_load(ours.document(["a comment"], value)) == value


# Docker


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile and its arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def of(found: list[tuple[str, str]], kind: str) -> list[str]:
    return [arguments for name, arguments in found if name == kind]


def ignored(folder: Path, name: str) -> bool:
    """Whether .dockerignore keeps `name`, in `folder`, from Docker; its last line that fits says."""
    kept = False
    for line in (folder / ".dockerignore").read_text().split():
        if fnmatch(name, line.removeprefix("!")):
            kept = line.startswith("!")
    return not kept


@pytest.mark.parametrize("wheel", [False, True])
def test_the_dockerfile_follows_hadolints_rules(artifact: Path, tmp_path: Path, wheel: bool) -> None:
    """DL3002, DL3006, DL3007, DL3013, DL3020, DL3025, DL3042, DL3045, DL3046, DL3057, DL3059, DL4000."""
    file = tmp_path / "infer_onnx-0.1.0-py3-none-any.whl"
    file.touch()
    package(open_artifact(artifact), Docker(wheel=file if wheel else None), tmp_path / "out")
    found = instructions(tmp_path / "out/Dockerfile")
    (base,) = of(found, "FROM")
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)
    assert of(found, "USER")[-1] == "10001"
    assert not {"ADD", "MAINTAINER"} & {name for name, _ in found}
    (ran,) = of(found, "RUN")
    assert "apt-get" not in ran
    (installed,) = [part for part in ran.split("&&") if "pip install" in part]
    assert {"--no-cache-dir", "--requirement"} <= set(installed.split())
    assert "--no-log-init" in ran
    assert all(copied.split()[-1].startswith("/") for copied in of(found, "COPY"))
    for name in ("ENTRYPOINT", "CMD"):
        (form,) = of(found, name)
        assert all(isinstance(part, str) for part in json.loads(form))
    (health,) = of(found, "HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2])[0] == "python"
    assert found.index(("USER", "10001")) > max(
        i for i, each in enumerate(found) if each[0] in ("RUN", "COPY")
    )


def test_the_context_holds_what_is_copied_and_nothing_else(artifact: Path, tmp_path: Path) -> None:
    """The artifact in it is whole, readable for everyone, and is what the entry point serves."""
    out = tmp_path / "out"
    written = package(open_artifact(artifact), Docker(), out)
    found = instructions(out / "Dockerfile")
    sources = [name for copied in of(found, "COPY") for name in copied.split()[:-1]]
    assert {path.name for path in out.iterdir() if not ignored(out, path.name)} == set(sources)
    (entry,) = (json.loads(form) for form in of(found, "ENTRYPOINT"))
    served = Path(entry[2]).relative_to("/models")
    assert ["/models/" + sources[-1]] == [copied.split()[-1] for copied in of(found, "COPY")[1:]]
    copied = Artifact.open(out / served)
    copied.verify_files()
    assert copied.digest == Artifact.open(artifact).digest
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.rglob("*"))
    assert entry[entry.index("--host") + 1] == "0.0.0.0"
    assert of(found, "EXPOSE") == [entry[entry.index("--port") + 1]]
    assert "infer-onnx[cpu,serve]" in written.decided["installs"]


def test_a_plain_graph_goes_with_its_weights(tmp_path: Path) -> None:
    """An image of an .onnx file serves that file, from a folder of its own."""
    model = tiny.classifier()
    onnx.save(
        model, tmp_path / "Dockerfile.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    package(open_artifact(tmp_path / "Dockerfile.onnx"), Docker(auth=False), tmp_path / "out")
    found = instructions(tmp_path / "out/Dockerfile")
    served = Path(json.loads(of(found, "ENTRYPOINT")[0])[2]).relative_to("/models")
    assert served.name == "Dockerfile.onnx"  # infer serve calls a model after its file
    open_artifact(tmp_path / "out" / served)  # raises if weights are not beside it
    assert json.loads(of(found, "CMD")[0]) == ["--no-auth"]


def test_what_the_image_is_told_to_do_infer_serve_understands(artifact: Path, tmp_path: Path) -> None:
    """The entry point and its arguments, with a token or without, are a command line of `infer serve`."""
    serve = pytest.importorskip("infer.cli.serve", reason="this release has no server yet")
    package(open_artifact(artifact), Docker(), tmp_path / "docker")
    found = instructions(tmp_path / "docker/Dockerfile")
    entry, args = (json.loads(of(found, name)[0]) for name in ("ENTRYPOINT", "CMD"))
    (tmp_path / "token").write_text("a secret of some length")
    here = {entry[2]: str(artifact), args[1]: str(tmp_path / "token")}
    for given_args in (args, ["--no-auth"]):
        line = [here.get(part, part) for part in (*entry[2:], *given_args)]
        serve.command.make_context("serve", line)  # parses, and does not run


@pytest.mark.parametrize("task", [None, *tasks.TASKS])
def test_extras_are_those_of_the_task(changed: Path, tmp_path: Path, task: str | None) -> None:
    """What the image installs brings what the task asks for, and no torch."""
    spec = None if task is None else {"name": task, "spec": {}}
    tiny.edit_manifest(changed, lambda data: data.update(task=spec))
    package(open_artifact(changed), Docker(), tmp_path / "out")
    first, *pinned = (tmp_path / "out/requirements.txt").read_text().splitlines()
    extras = ",".join(["cpu", "serve", *tasks.EXTRAS.get(task or "", ())])
    assert first == f"infer-onnx[{extras}]=={infer.__version__}"
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!-]+", line) for line in pinned)
    names = {line.partition("==")[0] for line in pinned}
    assert {"numpy", "onnxruntime", "click"} <= names
    assert not {"torch", "onnx", "transformers"} & names


def test_a_variant_for_openvino_brings_openvino(changed: Path, tmp_path: Path) -> None:
    """Beside onnxruntime, which runs the reference where OpenVINO was not measured to be faster."""
    tiny.edit_manifest(changed, lambda data: data["variants"][0].update(backend="openvino"))
    package(open_artifact(changed), Docker(), tmp_path / "out")
    first = (tmp_path / "out/requirements.txt").read_text().splitlines()[0]
    assert first.startswith("infer-onnx[cpu,openvino,serve]==")


def test_a_wheel_takes_the_place_of_the_index(artifact: Path, tmp_path: Path) -> None:
    """It is copied into the context and named in the requirements; another file is refused."""
    wheel = tmp_path / "infer_onnx-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK")
    package(open_artifact(artifact), Docker(wheel=wheel), tmp_path / "out")
    first = (tmp_path / "out/requirements.txt").read_text().splitlines()[0]
    assert first == f"infer-onnx[cpu,serve] @ file:///build/{wheel.name}"
    assert (tmp_path / "out" / wheel.name).read_bytes() == b"PK"
    with pytest.raises(InputError, match="no wheel of infer-onnx"):
        package(open_artifact(artifact), Docker(wheel=tmp_path / "out/Dockerfile"), tmp_path / "other")


def asked_for(module: str, seen: set[str]) -> Iterator[str]:
    """Extras that `module`, and what it may import of infer.tasks, name when a package is missing."""
    if module in seen or module == "infer.tasks":
        return
    seen.add(module)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found = node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = node.value  # readers of scans are named so
        else:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == missing_package.__name__:
                extra = node.args[1]
                assert isinstance(extra, ast.Constant)
                yield str(extra.value)
            continue
        if re.fullmatch(r"infer\.tasks(\.[a-z_]+)+", found):
            yield from asked_for(found, seen)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_table_of_extras_is_what_tasks_ask_for(task: str) -> None:
    """Read from the sources of the task and of all that it imports."""
    module = tasks.TASKS[task].partition(":")[0]
    assert set(asked_for(module, set())) == set(tasks.EXTRAS.get(task, ()))


def test_every_backend_has_an_extra() -> None:
    """So that an image can bring it."""
    assert backends.EXTRAS.keys() == backends.BACKENDS.keys()


# what is installed


def install(folder: Path, name: str, requires: list[str], extras: list[str], files: dict[str, str]) -> None:
    """A package as pip leaves it."""
    info = folder / f"{name}-1.0+local.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0+local"]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    for file, text in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))


def test_what_extras_bring_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras of extras, requirements in circles, those of other machines, and what is absent."""
    monkeypatch.syspath_prepend(tmp_path)
    install(
        tmp_path,
        "aa_root",
        [
            "aa_base>=1",
            'aa_lib[fast] ; (python_version >= "3") and extra == "run"',
            'aa_no; extra == "other"',
        ],
        ["run", "other"],
        {},
    )
    install(tmp_path, "aa_base", [], [], {"aa/__init__.py": "x = 1\n", "aa/data.bin": "12345"})
    install(
        tmp_path,
        "aa_lib",
        ["aa-root", 'aa_quick; extra == "fast"', 'aa_windows; sys_platform == "win32"', "aa_lost"],
        ["fast"],
        {"aa/__pycache__/x.pyc": "not counted"},
    )
    install(tmp_path, "aa_quick", [], [], {"aa/q": "1"})
    found = needed(["run", "none"], "aa-root")
    assert [each.name for each in found.packages] == ["aa-root", "aa-base", "aa-lib", "aa-quick"]
    assert set(found.absent) == {"aa-root[none]", "aa-lost"}
    sizes = {each.name: each.size_bytes for each in found.packages}
    metadata = {name: len((tmp_path / f"{name}-1.0+local.dist-info/METADATA").read_text()) for name in
                ("aa_base", "aa_lib", "aa_quick")}  # fmt: skip
    assert sizes["aa-base"] == metadata["aa_base"] + len("x = 1\n") + int(1.6 * len("x = 1\n")) + 5
    assert sizes["aa-lib"] == metadata["aa_lib"]
    assert sizes["aa-quick"] == metadata["aa_quick"] + 1


# the command


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_says_what_was_done_and_what_was_not(
    artifact: Path, tmp_path: Path, target: str
) -> None:
    """One JSON document; the same, in words, without --json; the record is in the package."""
    options = ["--image", IMAGE] if target == "kserve" else []
    out = tmp_path / "out"
    done = infer_command("package", artifact, "--for", target, "-o", out, *options, "--json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    assert said["unchecked"]
    assert (
        sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
        == said["files"]
    )
    record = json.loads((out / RECORD).read_text())
    assert record == {key: said[key] for key in record}
    done = infer_command("package", artifact, "--for", target, "-o", out, *options, "--force")
    assert done.code == 0
    for sentence in (*said["unchecked"], *said["lost"], *said["next"], *said["decided"].values()):
        assert sentence in done.out


@pytest.mark.parametrize(
    "line",
    [
        "--for triton --image net:1",
        "--for docker --threads 2",
        "--for kserve",
        "--for kserve --image net:1 --wheel x.whl",
        "--for nothing",
        "--for triton --no-auth",
    ],
)
def test_options_of_another_target_are_wrong_usage(artifact: Path, tmp_path: Path, line: str) -> None:
    """Exit code 2, and nothing is written."""
    done = infer_command("package", artifact, "-o", tmp_path / "out", *shlex.split(line))
    assert done.code == 2
    assert not list(tmp_path.iterdir())


def test_only_packages_are_replaced(artifact: Path, tmp_path: Path) -> None:
    """An earlier one with --force; another folder never."""
    out = tmp_path / "out"
    line = ["package", artifact, "--for", "docker", "-o", out]
    assert infer_command(*line).code == 0
    refused = infer_command(*line)
    assert (refused.code, "--force" in refused.err) == (1, True)
    assert infer_command(*line, "--force", "--no-auth").code == 0
    (tmp_path / "thesis").mkdir()
    done = infer_command("package", artifact, "--for", "docker", "-o", tmp_path / "thesis", "--force")
    assert (done.code, "is not a package" in done.err) == (1, True)
    assert not list((tmp_path / "thesis").iterdir())


def test_a_damaged_artifact_is_not_packaged(changed: Path, tmp_path: Path) -> None:
    """Its hashes are compared first, and no draft stays."""
    graph = changed / Artifact.open(changed).manifest.variants[0].graph
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    for target in (Docker(), Triton()):
        with pytest.raises(ArtifactError):
            package(open_artifact(changed), target, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed.infer"]


@pytest.mark.parametrize("target", [Docker(), Triton(), Kserve(image=IMAGE)])
@pytest.mark.parametrize(
    "name", ["../out", "a/b", ".", "", "a b", 'a"\nUSER root', "a\nname: b", "n" * 129]
)
def test_a_name_cannot_leave_the_package(changed: Path, tmp_path: Path, target: Target, name: str) -> None:
    """What an artifact calls itself is refused as a folder, or as lines of what is written."""
    tiny.edit_manifest(changed, lambda data: data.update(name=name))
    with pytest.raises(InputError, match="--name"):
        package(open_artifact(changed), target, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed.infer"]


def test_triton_says_that_the_task_stays_behind(changed: Path, tmp_path: Path) -> None:
    """By its name, before anyone misses it."""
    tiny.edit_manifest(changed, lambda data: data.update(task={"name": "text-embedding", "spec": {}}))
    written = package(open_artifact(changed), Triton(), tmp_path / "out")
    assert "the task text-embedding" in written.lost[0]


def test_all_dtypes_have_a_name_in_triton() -> None:
    """So that no artifact fails for its dtype."""
    assert DATA_TYPES.keys() == DTYPES.keys()
