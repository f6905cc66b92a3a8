"""A folder that `docker build` makes a small image of: the artifact, what serves it, and nothing else.

    OUT/Dockerfile, .dockerignore
    OUT/requirements.txt      infer-onnx with the extras it needs, and all versions as they are here
    OUT/NAME.infer/           the artifact, or the .onnx file with its external data

Source: the rules of hadolint (https://github.com/hadolint/hadolint), which the tests hold it to.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from infer import __version__, backends, tasks
from infer.artifact import MANIFEST, Artifact
from infer.errors import InputError
from infer.manifest import Manifest
from infer.packaging.installed import OURS, Needed, needed
from infer.packaging.written import PORT, USER, Written, copy, model_name
from infer.wording import size

_SECRET = "/run/secrets/infer-token"

_DOCKERFILE = """\
# Made by: infer package --for docker
FROM {base}

# torch is not needed; versions are those of the machine that made this
COPY {context} /build/
RUN pip install --no-cache-dir --disable-pip-version-check --requirement /build/requirements.txt \\
    && useradd --no-log-init --uid {user} --create-home --shell /usr/sbin/nologin infer

# root's, so that the server cannot change what it serves
COPY {artifact} /models/{artifact}

USER {user}
EXPOSE {port}
HEALTHCHECK --interval=30s --timeout=3s --start-period=60s \\
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('{health}', timeout=2)"]
ENTRYPOINT ["infer", "serve", "/models/{served}", "--host", "0.0.0.0", "--port", "{port}"]
CMD {callers}
"""


@dataclass(frozen=True)
class Docker:
    """`name`: of the artifact in the image, by default its own. `wheel`: infer-onnx from this file and not
    from the index. `auth`: whether callers need a token, which is a secret of the container."""

    name: str | None = None
    wheel: Path | None = None
    auth: bool = True

    def write(self, artifact: Artifact, folder: Path, output: Path) -> Written:
        """Raises `ArtifactError`, and `InputError` for a name that cannot be, or a wheel that is none."""
        manifest, name = artifact.manifest, model_name(artifact, self.name)
        extras = extras_of(manifest)
        found = needed(extras)
        artifact.verify_files()
        inside, served = _copy_artifact(artifact, folder, name)
        context = ["requirements.txt"]
        if self.wheel is not None:
            context.append(_copy_wheel(self.wheel, folder))
        (folder / "requirements.txt").write_text(
            requirements(extras, found, context[-1] if self.wheel else None), encoding="utf-8"
        )
        base = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm"
        (folder / "Dockerfile").write_text(
            _DOCKERFILE.format(
                base=base,
                context=" ".join(context),
                user=USER,
                artifact=inside,
                served=served,
                port=PORT,
                health=f"http://127.0.0.1:{PORT}/v2/health/live",
                callers=f'["--token-file", "{_SECRET}"]' if self.auth else '["--no-auth"]',
            ),
            encoding="utf-8",
        )
        ignore = "\n".join(["*", *(f"!{each}" for each in (*context, inside))]) + "\n"
        (folder / ".dockerignore").write_text(ignore, encoding="utf-8")
        for path in folder.rglob("*"):  # COPY keeps modes, and the image's user is none of this machine's
            path.chmod(0o755 if path.is_dir() else 0o644)
        tag = f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}:1"
        token = f"-v ./TOKEN_FILE:{_SECRET}:ro " if self.auth else ""
        return Written(
            name=name,
            decided={
                "base": base,
                "installs": f"{OURS}[{','.join(extras)}], no torch",
                "size": _said_size(found, sum(record.size_bytes for record in manifest.files.values())),
                "variant": "what was measured to be fastest on the machine it runs on, else the reference",
                "user": f"{USER}, who may not write to the artifact",
                "callers": (
                    f"need the token in {_SECRET}, which user {USER} must be able to read; docker run …"
                    f" --no-auth takes that away"
                    if self.auth
                    else "need no token: whoever reaches the port may ask"
                ),
            },
            checked=("the artifact's files are what its manifest recorded",),
            unchecked=("no image was built or started",),
            lost=(),
            next=(
                f"docker build -t {tag} {output}",
                f"docker run --read-only --tmpfs /tmp --cap-drop ALL {token}-p {PORT}:{PORT} {tag}",
            ),
        )


def extras_of(manifest: Manifest) -> tuple[str, ...]:
    """The extras of infer-onnx that serving needs: backends of variants, the server, the task's."""
    used = {variant.backend for variant in manifest.variants} | {next(iter(backends.BACKENDS))}
    task = tasks.EXTRAS.get(manifest.task.name, ()) if manifest.task else ()
    return (*(extra for name, extra in backends.EXTRAS.items() if name in used), "serve", *task)


def requirements(extras: tuple[str, ...], found: Needed, wheel: str | None) -> str:
    """A requirements file: infer-onnx, from a wheel of the context if there is one, then every package that
    is installed here, in its version."""
    where = f" @ file:///build/{wheel}" if wheel else f"=={__version__}"
    lines = [f"{OURS}[{','.join(extras)}]{where}"]
    # a local version, of a build that no index has, is left out
    lines += [
        f"{each.name}=={each.version.partition('+')[0]}" for each in found.packages if each.name != OURS
    ]
    return "\n".join(lines) + "\n"


def _copy_artifact(artifact: Artifact, folder: Path, name: str) -> tuple[str, str]:
    """Copies it; its folder's name, and the path below that which is served, after which it is called."""
    bare = artifact.manifest_sha256 is None
    inside = f"{name}.model" if bare else f"{name}.infer"
    graph = artifact.manifest.variants[0].graph
    for file in artifact.manifest.files:
        called = f"{name}.onnx" if bare and file == graph else file
        copy(artifact.file(file), folder / inside / called)
    if bare:
        return inside, f"{inside}/{name}.onnx"
    copy(artifact.path / MANIFEST, folder / inside / MANIFEST)
    return inside, inside


def _copy_wheel(wheel: Path, folder: Path) -> str:
    if not wheel.is_file() or not wheel.name.startswith("infer_onnx-") or wheel.suffix != ".whl":
        raise InputError(
            f"'{wheel}' is no wheel of {OURS}; make one with: pip wheel --no-deps, and give its .whl file"
        )
    copy(wheel, folder / wheel.name)
    return wheel.name


def _said_size(found: Needed, artifact_bytes: int) -> str:
    packages = sum(each.size_bytes for each in found.packages)
    largest = max(found.packages, key=lambda each: each.size_bytes, default=None)
    most = f", of which {largest.name} {size(largest.size_bytes)}" if largest else ""
    absent = f", without {', '.join(found.absent)}, not installed here" if found.absent else ""
    return (
        f"about {size(packages + artifact_bytes)} on top of the base image, an estimate: packages as they"
        f" are installed here {size(packages)}{most}{absent}; the artifact {size(artifact_bytes)}"
    )
