"""Plans, made from machines that do not exist and backends that are not installed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from infer import planner
from infer.errors import ArtifactError, DeviceError, MissingPackageError
from infer.machine import Machine
from infer.manifest import Compiled, Manifest, Prepared, Tuned, Variant
from infer.options import PlanOptions
from infer.planner import make_plan
from tests.test_manifest import example

MACHINE = Machine("a cpu", ("avx2",), 3, 8, 2.5, 2**30, ("cpu",), "Linux-x86_64")
GPU = replace(MACHINE, devices=("cpu", "cuda:0", "cuda:1"))
FP32 = example().variants[0]
MANIFEST = replace(example(), variants=(FP32, Variant("int8", "graphs/int8.onnx", "int8", 21, 9)), tuned=())


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The device kinds that the backend "pretend" can drive; tests may add to them. "other" is for the CPU
    and does not spin, and "absent" is not installed."""
    found = ["cpu"]
    installed = {
        "pretend": SimpleNamespace(
            name="pretend",
            version="1.2",
            spins=True,
            overlaps=True,
            has_arena=True,
            shared_threads=None,
            device_kinds=lambda: tuple(found),
            compute_dtypes=lambda machine, signature: (),
        ),
        "other": SimpleNamespace(
            name="other",
            version="3",
            spins=False,
            overlaps=False,
            has_arena=False,
            shared_threads=None,
            device_kinds=lambda: ("cpu",),
            compute_dtypes=lambda machine, signature: ("bfloat16",) if "avx512_bf16" in machine.isa else (),
        ),
    }

    def load(name: str) -> object:
        if name not in installed:
            raise MissingPackageError(f"{name} is missing; pip install it")
        return installed[name]

    monkeypatch.setattr(planner, "BACKENDS", dict.fromkeys((*installed, "absent"), ""))
    monkeypatch.setattr(planner, "load_backend", load)
    return found


def test_the_default_is_the_first_variant_on_all_cores_at_hand(kinds: list[str]) -> None:
    """Everything else in a plan follows the options' defaults, and the reasons say why."""
    plan = make_plan(MANIFEST, MACHINE, PlanOptions())
    assert (plan.variant, plan.graph, plan.precision) == ("fp32", "graphs/fp32.onnx", "float32")
    assert (plan.backend, plan.device, plan.num_threads, plan.spinning) == ("pretend", "cpu", 3, True)
    assert plan.reasons == ("3 threads: affinity 8, cgroup quota 2.5",)


def test_wishes_are_met(kinds: list[str]) -> None:
    """A variant by name, threads by number, spinning off."""
    plan = make_plan(MANIFEST, MACHINE, PlanOptions(variant="int8", num_threads=1, spinning=False))
    assert (plan.variant, plan.num_threads, plan.spinning) == ("int8", 1, False)
    assert "1 threads, as asked" in str(plan)
    assert plan.to_dict()["num_threads"] == 1


def tuned(machine: Machine = MACHINE, device: str = "cpu", num_threads: int = 2) -> Manifest:
    plan = Tuned(
        machine.fingerprint, device, "int8", num_threads, "pretend 1.2", "2026-01-02T03:04:05+00:00"
    )
    return replace(MANIFEST, tuned=(plan,))


def test_what_was_tuned_for_this_machine_is_the_default(kinds: list[str]) -> None:
    """Variant and threads; a wish goes first, and the reasons say what was measured when."""
    plan = make_plan(tuned(), MACHINE, PlanOptions())
    assert (plan.variant, plan.num_threads) == ("int8", 2)
    assert plan.reasons == (
        "int8: measured to be the fastest on this kind of machine, 2026-01-02, with pretend 1.2",
        "2 of 3 cores: measured to be faster here than all",
    )
    assert make_plan(tuned(), MACHINE, PlanOptions(variant="fp32")).variant == "fp32"
    assert make_plan(tuned(), MACHINE, PlanOptions(variant="fp32")).num_threads == 3
    assert make_plan(tuned(), MACHINE, PlanOptions(num_threads=1)).num_threads == 1


@pytest.mark.parametrize(
    "other", [{"machine": replace(MACHINE, isa=("avx2", "avx_vnni"))}, {"device": "cuda:0"}]
)
def test_what_was_tuned_elsewhere_is_not_used(kinds: list[str], other: dict[str, Any]) -> None:
    """On another kind of machine, or another device, the reference runs, and one command is named."""
    plan = make_plan(tuned(**other), MACHINE, PlanOptions())
    assert (plan.variant, plan.num_threads) == ("fp32", 3)
    assert "tuned for other machines or devices" in plan.reasons[0]
    assert "infer optimize" in plan.reasons[0]


def with_backend(name: str) -> Manifest:
    """As `tuned`, where the variant was made for a backend of its own."""
    manifest = tuned()
    fp32, int8 = manifest.variants
    return replace(manifest, variants=(fp32, replace(int8, backend=name)))


def test_a_variant_runs_on_the_backend_it_was_made_for(kinds: list[str]) -> None:
    """Whether it is the fastest here or asked for; the reference keeps the first backend."""
    for options in (PlanOptions(), PlanOptions(variant="int8")):
        plan = make_plan(with_backend("other"), MACHINE, options)
        assert (plan.variant, plan.backend, plan.spinning) == ("int8", "other", False)
    plan = make_plan(with_backend("other"), MACHINE, PlanOptions(variant="fp32"))
    assert (plan.variant, plan.backend, plan.spinning) == ("fp32", "pretend", True)


def test_a_backend_that_is_asked_for_is_taken(kinds: list[str]) -> None:
    """For the reference, or for the variant named; what was tuned for another one is not meant then."""
    plan = make_plan(with_backend("other"), MACHINE, PlanOptions(backend="other"))
    assert (plan.variant, plan.backend) == ("fp32", "other")
    plan = make_plan(with_backend("other"), MACHINE, PlanOptions(backend="pretend", variant="int8"))
    assert (plan.variant, plan.backend) == ("int8", "pretend")
    with pytest.raises(MissingPackageError, match="absent is missing"):
        make_plan(MANIFEST, MACHINE, PlanOptions(backend="absent"))
    with pytest.raises(DeviceError, match="no backend 'tvm'; choose from pretend, other, absent"):
        make_plan(MANIFEST, MACHINE, PlanOptions(backend="tvm"))
    with pytest.raises(DeviceError, match="backend other was asked for, and cannot use cuda"):
        make_plan(MANIFEST, GPU, PlanOptions(backend="other", device="cuda"))


def test_what_was_prepared_is_used_with_the_release_it_was_made_with(kinds: list[str]) -> None:
    """And by nobody who asks for a variant; with another release the plan says how to make it anew."""
    manifest = tuned()
    found = replace(manifest.tuned[0], prepared=Prepared("prepared/int8.onnx", 0.25))
    plan = make_plan(replace(manifest, tuned=(found,)), MACHINE, PlanOptions())
    assert (plan.graph, plan.prepared) == ("graphs/int8.onnx", "prepared/int8.onnx")
    assert "prepared/int8.onnx: loads in ×0.25 of the time" in plan.reasons
    assert "graphs/int8.onnx, prepared as prepared/int8.onnx" in str(plan)
    asked = make_plan(replace(manifest, tuned=(found,)), MACHINE, PlanOptions(variant="int8"))
    assert asked.prepared is None
    plain = PlanOptions(graph_optimization="none")
    assert make_plan(replace(manifest, tuned=(found,)), MACHINE, plain).prepared is None
    old = replace(found, runtime="pretend 1.1")
    plan = make_plan(replace(manifest, tuned=(old,)), MACHINE, PlanOptions())
    assert (plan.variant, plan.prepared) == ("int8", None)
    assert any("not prepared for pretend 1.2, but for pretend 1.1" in reason for reason in plan.reasons)
    assert any("measured with pretend 1.1, and not with pretend 1.2" in reason for reason in plan.reasons)


def test_what_was_compiled_before_is_used_with_the_release_that_compiled_it(kinds: list[str]) -> None:
    """Under the same conditions as what was prepared; the reason says that the cache must still have it."""
    found = replace(tuned().tuned[0], compiled=Compiled("ab" * 32, 0.25))
    manifest = replace(tuned(), tuned=(found,))
    plan = make_plan(manifest, MACHINE, PlanOptions())
    assert plan.compiled == "ab" * 32
    assert "compiled before: loads in ×0.25 of the time while this user's cache has it" in plan.reasons
    assert make_plan(manifest, MACHINE, PlanOptions(variant="int8")).compiled is None
    assert make_plan(manifest, MACHINE, PlanOptions(graph_optimization="none")).compiled is None
    assert make_plan(manifest, replace(MACHINE, cpu="another"), PlanOptions()).compiled is None
    old = replace(manifest, tuned=(replace(found, runtime="pretend 1.1"),))
    assert make_plan(old, MACHINE, PlanOptions()).compiled is None


def test_settings_that_were_measured_to_be_faster_are_taken(kinds: list[str]) -> None:
    """With a reason each, unless something else is asked for."""
    found = replace(tuned().tuned[0], spinning=False, prepacking=False)
    manifest = replace(tuned(), tuned=(found,))
    plan = make_plan(manifest, MACHINE, PlanOptions())
    assert (plan.spinning, plan.prepacking) == (False, False)
    assert "no spinning: measured to be faster here" in plan.reasons
    assert "weights as they are, not packed: measured to be faster here" in plan.reasons
    assert "prepacking  off" in str(plan)
    asked = make_plan(manifest, MACHINE, PlanOptions(spinning=True, prepacking=True))
    assert (asked.spinning, asked.prepacking) == (True, True)
    assert not any("measured to be faster here" in reason for reason in asked.reasons[2:])
    elsewhere = make_plan(manifest, replace(MACHINE, cpu="another"), PlanOptions())
    assert (elsewhere.spinning, elsewhere.prepacking) == (True, True)


def test_without_its_backend_the_fastest_is_not_the_default(kinds: list[str]) -> None:
    """The reference runs, and the plan says what to install; who asks for the variant gets the error."""
    plan = make_plan(with_backend("absent"), MACHINE, PlanOptions())
    assert (plan.variant, plan.backend) == ("fp32", "pretend")
    assert "int8 is the fastest here, but absent is missing; pip install it" in plan.reasons[0]
    with pytest.raises(MissingPackageError, match="absent is missing"):
        make_plan(with_backend("absent"), MACHINE, PlanOptions(variant="int8"))


def test_a_variant_for_the_cpu_is_refused_on_a_gpu(kinds: list[str]) -> None:
    """Its backend cannot use that device; where the choice is left to the planner, it takes the CPU."""
    kinds += ["cuda"]
    plan = make_plan(with_backend("other"), GPU, PlanOptions(variant="int8"))
    assert (plan.backend, plan.device) == ("other", "cpu")
    assert any("made for other, which cannot use cuda:0" in reason for reason in plan.reasons)
    with pytest.raises(DeviceError, match="'int8' was made for other, which cannot use cuda:0"):
        make_plan(with_backend("other"), GPU, PlanOptions(variant="int8", device="cuda"))


def test_an_unknown_variant_is_refused_with_the_known_ones(kinds: list[str]) -> None:
    """No silent fallback to another precision."""
    with pytest.raises(ArtifactError, match="no variant 'int4'; it has: fp32, int8"):
        make_plan(MANIFEST, MACHINE, PlanOptions(variant="int4"))


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cpu:0", "cuda:0 ", None, 0])
def test_an_unknown_device_is_refused(kinds: list[str], device: Any) -> None:
    """The message lists what may be asked for."""
    with pytest.raises(DeviceError, match="use auto, cpu, cuda or cuda:N"):
        make_plan(MANIFEST, GPU, PlanOptions(device=device))


def test_devices_may_be_written_in_capitals(kinds: list[str]) -> None:
    """CPU is cpu, and the plan says it so."""
    assert make_plan(MANIFEST, GPU, PlanOptions(device="CPU")).device == "cpu"


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**40, 1.5, "2", True])
def test_threads_must_be_a_possible_number(kinds: list[str], threads: Any) -> None:
    """Zero would mean "all of the host" to a backend, and a large number would all be started."""
    with pytest.raises(DeviceError, match="num_threads must be an int from 1 to 1024, but is"):
        make_plan(MANIFEST, MACHINE, PlanOptions(num_threads=threads))


def test_more_threads_than_cores_do_not_spin(kinds: list[str]) -> None:
    """They would take time from each other; the plan says so, and an equal number is no reason."""
    plan = make_plan(MANIFEST, MACHINE, PlanOptions(num_threads=MACHINE.cores + 1))
    assert (plan.num_threads, plan.spinning) == (MACHINE.cores + 1, False)
    assert any(f"more threads than cores ({MACHINE.cores})" in reason for reason in plan.reasons)
    plan = make_plan(MANIFEST, MACHINE, PlanOptions(num_threads=MACHINE.cores))
    assert plan.spinning


def test_runs_go_on_at_once_where_they_share_free_threads(kinds: list[str]) -> None:
    """As many as threads that do not spin, on a CPU, with a backend that lets them; or as asked."""

    def streams(**options: Any) -> int:
        return make_plan(MANIFEST, MACHINE, PlanOptions(**options)).streams

    assert streams() == 1  # threads that spin keep the cores from other runs
    assert streams(spinning=False) == MACHINE.cores
    assert streams(spinning=False, num_threads=2) == 2
    assert streams(spinning=False, num_threads=MACHINE.cores + 1) == MACHINE.cores
    assert streams(spinning=False, streams=1) == 1
    assert streams(backend="other") == 1
    assert streams(backend="other", streams=2) == 2
    many = replace(MACHINE, cores=64)
    assert make_plan(MANIFEST, many, PlanOptions(spinning=False)).streams == 8
    kinds.append("cuda")
    assert make_plan(MANIFEST, GPU, PlanOptions(spinning=False)).streams == 1


def test_streams_that_are_asked_for_do_not_spin(kinds: list[str]) -> None:
    """Unless spinning was asked for, too; the plan says why."""
    plan = make_plan(MANIFEST, MACHINE, PlanOptions(streams=2))
    assert (plan.streams, plan.spinning) == (2, False)
    assert any("no spinning" in reason for reason in plan.reasons)
    both = make_plan(MANIFEST, MACHINE, PlanOptions(streams=2, spinning=True))
    assert (both.streams, both.spinning) == (2, True)
    with pytest.raises(DeviceError, match="streams must be an int from 1 to 1024, but is 0"):
        make_plan(MANIFEST, MACHINE, PlanOptions(streams=0))


@pytest.mark.parametrize(
    "options",
    [{"graph_optimization": "basic"}, {"graph_optimization": None}, {"spinning": "no"}, {"prepacking": 1}],
)
def test_an_option_that_is_none_is_refused_by_name(kinds: list[str], options: dict[str, Any]) -> None:
    """The name, what it may be, and what came."""
    (name,) = options
    with pytest.raises(DeviceError, match=f"{name} must be .*, but is {options[name]!r}"):
        make_plan(MANIFEST, MACHINE, PlanOptions(**options))


@pytest.mark.parametrize(
    ("machine", "able", "wanted", "device"),
    [
        (MACHINE, True, "auto", "cpu"),
        (GPU, False, "auto", "cpu"),
        (GPU, True, "auto", "cuda:0"),
        (GPU, True, "cpu", "cpu"),
        (GPU, True, "cuda", "cuda:0"),
        (GPU, True, "cuda:1", "cuda:1"),
    ],
)
def test_the_device_is_the_asked_for_or_the_best(
    kinds: list[str], machine: Machine, able: bool, wanted: str, device: str
) -> None:
    """`auto` takes the first GPU that a backend can use, else the CPU, and says so."""
    kinds += ["cuda"] if able else []
    plan = make_plan(MANIFEST, machine, PlanOptions(device=wanted))
    assert plan.device == device
    if machine is GPU and wanted == "auto":
        assert any("cuda:0" in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("machine", "able", "wanted", "words"),
    [
        (MACHINE, True, "cuda", "this machine has only: cpu"),
        (GPU, True, "cuda:2", "has only: cpu, cuda:0, cuda:1"),
        (GPU, False, "cuda", r'pip install "infer-onnx\[gpu\]"'),
    ],
)
def test_a_demanded_device_is_never_replaced(
    kinds: list[str], machine: Machine, able: bool, wanted: str, words: str
) -> None:
    """An absent GPU, or one that no backend can use, is an error with a cure."""
    kinds += ["cuda"] if able else []
    with pytest.raises(DeviceError, match=words):
        make_plan(MANIFEST, machine, PlanOptions(device=wanted))


def test_without_a_backend_the_error_is_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare installation says what to install."""

    def absent(name: str) -> object:
        raise MissingPackageError('pip install "infer-onnx[cpu]"')

    monkeypatch.setattr(planner, "load_backend", absent)
    with pytest.raises(MissingPackageError, match="infer-onnx"):
        make_plan(MANIFEST, MACHINE, PlanOptions())


def test_a_variant_computes_in_another_type_where_there_are_kernels(kinds: list[str]) -> None:
    """Elsewhere, or on a backend without, it computes in float32, and the plan says so."""
    variants = (FP32, replace(FP32, name="fast", backend="other", compute_dtype="bfloat16"))
    manifest, wish = replace(MANIFEST, variants=variants), PlanOptions(variant="fast")
    plan = make_plan(manifest, replace(MACHINE, isa=("avx2", "avx512_bf16")), wish)
    assert (plan.compute_dtype, plan.to_dict()["compute_dtype"]) == ("bfloat16", "bfloat16")
    assert not any("float32" in reason for reason in plan.reasons)
    plan = make_plan(manifest, MACHINE, wish)
    assert plan.compute_dtype is None
    assert "in float32: other has no faster bfloat16 on this machine" in plan.reasons
    plan = make_plan(manifest, MACHINE, replace(wish, backend="pretend"))
    assert "in float32: pretend has no faster bfloat16 on this machine" in plan.reasons
