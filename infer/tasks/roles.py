"""The tensors that a task's spec names, held to the graph's signature before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from infer.errors import ArtifactError
from infer.signature import TensorSpec
from infer.tasks import Setting


def takes(setting: Setting, name: str, dtypes: Collection[str], rank: int) -> TensorSpec:
    """The graph's input called `name`, of one of `dtypes` and `rank` dims. Raises `ArtifactError`."""
    return _fitting(setting, "input", name, setting.signature.inputs, dtypes, rank)


def gives(setting: Setting, name: str, dtypes: Collection[str], rank: int) -> TensorSpec:
    """The graph's output called `name`, of one of `dtypes` and `rank` dims. Raises `ArtifactError`."""
    return _fitting(setting, "output", name, setting.signature.outputs, dtypes, rank)


def feeds_all(setting: Setting, names: Collection[str]) -> None:
    """Raise `ArtifactError` if the graph has inputs beside `names`."""
    if left := [spec.name for spec in setting.signature.inputs if spec.name not in names]:
        raise ArtifactError(
            f"the task '{setting.name}' does not feed the graph's input {', '.join(map(repr, left))};"
            f" convert the model again with a spec that names it, or without it"
        )


def _fitting(
    setting: Setting,
    kind: str,
    name: str,
    specs: Sequence[TensorSpec],
    dtypes: Collection[str],
    rank: int,
) -> TensorSpec:
    found = next((spec for spec in specs if spec.name == name), None)
    if found is None:
        raise ArtifactError(
            f"the spec of task '{setting.name}' names the {kind} {name!r:.60}, which the graph lacks; it"
            f" has {', '.join(spec.name for spec in specs)}; convert the model again with one of these"
        )
    if found.dtype not in dtypes or len(found.dims) != rank:
        raise ArtifactError(
            f"the task '{setting.name}' needs an {kind} of {' or '.join(dtypes)} with {rank} dims, but the"
            f" graph has {found}; convert the model again with a spec that names another"
        )
    return found
