"""A session as its recipe: plain data from which another process opens the same again."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass

from infer.artifact import Artifact, sha256
from infer.errors import ArtifactError, InferError
from infer.options import PlanOptions, SessionOptions
from infer.plan import Plan


@dataclass(frozen=True)
class Recipe:
    """How a session was opened.

    Attributes:
        path: of the artifact, absolute.
        digest: the artifact's; of a plain `.onnx` file, a sha256 over it and its weights.
        source: the wishes from which the other process makes its plan, or a plan that was given.
    """

    path: str
    digest: str
    source: PlanOptions | Plan
    options: SessionOptions

    def check(self, artifact: Artifact) -> None:
        """Raises `ArtifactError` if this is not the artifact that the recipe was made of."""
        if (found := _digest(artifact)) != self.digest:
            raise ArtifactError(
                f"'{self.path}' is another artifact than the session was opened with: its digest is"
                f" {found[:12]}…, expected {self.digest[:12]}…; copy the same version there"
            )


def recipe_of(artifact: Artifact, source: PlanOptions | Plan, options: SessionOptions) -> Recipe:
    """The recipe of a session on `artifact`, whose path is absolute. Raises `InferError` if `options` have
    functions that cannot be pickled."""
    for name, function in (("encode", options.encode), ("decode", options.decode)):
        try:
            pickle.dumps(function)
        except Exception as error:  # whatever a callable's own pickling raises
            raise InferError(
                f"a session with {name}={function!r:.60} cannot be pickled, because that cannot ({error});"
                f" use a function of a module, or call infer.load('{artifact.location}') where it is needed"
            ) from error
    return Recipe(str(artifact.location), _digest(artifact), source, options)


def _digest(artifact: Artifact) -> str:
    if artifact.manifest_sha256 is not None:
        return artifact.digest
    files = sorted(artifact.manifest.files)
    return hashlib.sha256("".join(sha256(artifact.file(name)) for name in files).encode()).hexdigest()
