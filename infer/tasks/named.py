"""The tensors a task's spec names, held to the artifact's signature before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from infer.errors import ArtifactError
from infer.signature import TensorSpec
from infer.tasks import Setting
from infer.tasks.pixels import Step, check_steps, fixed_size


def named_input(setting: Setting, name: str) -> TensorSpec:
    """The input called `name`. Raises `ArtifactError`."""
    return _named(setting, name, "input", setting.signature.inputs)


def named_output(setting: Setting, name: str) -> TensorSpec:
    """The output called `name`. Raises `ArtifactError`."""
    return _named(setting, name, "output", setting.signature.outputs)


def picture_input(setting: Setting, name: str, steps: Sequence[Step]) -> TensorSpec:
    """The input called `name`, which must take what `steps` make of pictures. Raises `ArtifactError`."""
    check_steps(steps)
    spec = named_input(setting, name)
    if spec.dtype != "float32" or len(spec.dims) != 4 or spec.dims[1] not in (3, str(spec.dims[1])):
        raise ArtifactError(
            f"the task '{setting.name}' gives float32 pictures [batch, 3, height, width], but the model"
            f" takes {spec}; convert it again with the input that takes pictures"
        )
    size = fixed_size(steps)
    for made, taken in zip(size or (), spec.dims[2:], strict=False):
        if isinstance(taken, int) and made != taken:
            raise ArtifactError(
                f"the image steps of task '{setting.name}' make {size} of every picture (height, width),"
                f" but the model takes {spec}; change the steps to its size"
            )
    return spec


def all_inputs_given(setting: Setting, given: Iterable[str]) -> None:
    """Raises `ArtifactError` if the graph has inputs that the task does not feed."""
    if missing := {spec.name for spec in setting.signature.inputs} - set(given):
        raise ArtifactError(
            f"the task '{setting.name}' does not give the model's input {', '.join(sorted(missing))};"
            f" convert the model again without it"
        )


def _named(setting: Setting, name: str, kind: str, specs: Sequence[TensorSpec]) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ArtifactError(
        f"the task '{setting.name}' names the {kind} '{name}', which the model does not have; it has"
        f" {', '.join(spec.name for spec in specs)}"
    )
