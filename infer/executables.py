"""From a plan to the executable that runs it: one, or two between which the rows of the feeds decide."""

from __future__ import annotations

from infer.artifact import Artifact
from infer.backends import Executable, Switch, load_backend
from infer.guard import Feeds
from infer.integrity import check_graph
from infer.plan import Plan
from infer.signature import Array


def prepare(artifact: Artifact, plan: Plan) -> Executable:
    """Load what `plan` names. Raises `ArtifactError`, `BackendError` or `DeviceError`."""
    graph = artifact.file(plan.loaded)
    check_graph(artifact, graph)
    executable = load_backend(plan.backend).prepare(graph, plan, artifact.manifest.signature)
    if plan.larger is None:
        return executable
    try:
        larger = prepare(artifact, plan.larger)
    except BaseException:
        executable.close()
        raise
    return ByRows(executable, larger, plan.larger.rows_from)


class ByRows:
    """Feeds of `rows_from` rows or more go to `larger`."""

    def __init__(self, executable: Executable, larger: Executable, rows_from: int) -> None:
        self._executable, self._larger, self._rows_from = executable, larger, rows_from

    def run(self, feeds: Feeds, outputs: tuple[str, ...]) -> dict[str, Array]:
        if feeds.rows >= self._rows_from:
            return self._larger.run(feeds, outputs)
        return self._executable.run(feeds, outputs)

    def watched(self, switch: Switch) -> ByRows:
        return ByRows(self._executable.watched(switch), self._larger.watched(switch), self._rows_from)

    def close(self) -> None:
        self._executable.close()
        self._larger.close()
