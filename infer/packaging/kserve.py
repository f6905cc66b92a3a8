"""A KServe InferenceService that runs `infer serve`, in two spellings.

    a container of your own     the image holds the artifact, as `infer package --for docker` makes it
    a storage URI               KServe downloads the artifact, and a ServingRuntime says what serves it

Source: KServe's v1beta1 InferenceService and v1alpha1 ServingRuntime; Knative, on which KServe may run a
container, takes no name of a port but http1 and h2c, and no securityContext but a container's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from infer.artifact import Artifact
from infer.errors import InputError
from infer.manifest import FORMAT_VERSION
from infer.options import PlanOptions
from infer.packaging.written import PORT, USER, Written, model_name
from infer.packaging.yaml import Value, document
from infer.plan import Plan

_TOKEN_FOLDER = "/var/run/secrets/infer"
_LAME_DUCK = "5s"  # a pod gets requests until all nodes have heard that it ends
_MODELS = "/mnt/models"  # where KServe puts what it downloads
_MEMORY = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi|Ti)")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:-]*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+")
_STEP_MIB = 128


@dataclass(frozen=True)
class Kserve:
    """`name`: the service's, by default the artifact's, in lower case. `image`: what runs, with its tag or
    digest. `storage_uri`: where KServe finds the artifact, if the image does not hold it. `num_threads`:
    CPUs to ask for, by default those of the plan here. `memory`: as Kubernetes writes it, by default a
    guess from the size of the largest graph. `auth`: whether callers need a token."""

    name: str | None = None
    image: str = ""
    storage_uri: str | None = None
    num_threads: int | None = None
    memory: str | None = None
    auth: bool = True

    def write(self, artifact: Artifact, folder: Path, output: Path) -> Written:
        """Raises `InputError` for an option that Kubernetes would not take, `MissingPackageError` without
        a backend."""
        name = service_name(model_name(artifact, self.name))
        self._check()
        plan = self._plan(artifact)
        memory = self.memory or guessed_memory(artifact, plan.streams)
        bare = artifact.manifest_sha256 is None
        path = f"{_MODELS}/{artifact.manifest.variants[0].graph}" if bare else _MODELS
        served = f"{name}={path}"  # the folder is called the same for all
        files = self._documents(name, served, plan.cores, memory)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        secret = f"kubectl create secret generic {name}-token --from-file=token=TOKEN_FILE"
        guess = (
            "as asked"
            if self.memory
            else "a guess: 256 MiB, as much for each run at once, and three times the largest graph;"
            " measure it"
        )
        where = self.storage_uri or "in the image"
        url = f"/v2/models/{name}/infer"
        return Written(
            name=name,
            decided={
                "image": self.image,
                "artifact": where,
                "model": url if self.storage_uri else "called as in the image",
                "cpu": f"{plan.cores}, as request and as limit: infer takes as many threads as the limit"
                " allows",
                "memory": f"{memory}, {guess}",
                "callers": (
                    f"need the token in the secret {name}-token, Prometheus among them; probes do not"
                    if self.auth
                    else "need no token: whoever reaches the service may ask it"
                ),
            },
            checked=(),
            unchecked=(
                "no cluster was asked: kubectl apply --dry-run=server does",
                "the image was not pulled",
            ),
            lost=(),
            next=(
                *((secret,) if self.auth else ()),
                *(f"kubectl apply -f {output / file}" for file in files),
            ),
        )

    def _check(self) -> None:
        if not _IMAGE.fullmatch(self.image) or self.image.endswith(":latest"):
            raise InputError(
                f"--image must name what is to run with its tag, as in registry.example.com/net:1, or its"
                f" digest, and not 'latest', which may be another one tomorrow; it is {self.image!r:.200}"
            )
        if self.storage_uri is not None and not _URI.fullmatch(self.storage_uri):
            raise InputError(
                f"--storage-uri must be a URI as in s3://bucket/net.infer, but is {self.storage_uri!r:.200}"
            )
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise InputError(f"--memory must be like 512Mi or 2Gi, but is {self.memory!r:.60}")

    def _plan(self, artifact: Artifact) -> Plan:
        from infer.machine import this_machine
        from infer.planner import make_plan

        asked = PlanOptions(device="cpu", num_threads=self.num_threads, spinning=False)
        return make_plan(artifact.manifest, this_machine(), asked)

    def _documents(self, name: str, served: str, cpus: int, memory: str) -> dict[str, str]:
        """File → its text, in the order in which they are applied."""
        container = self._container(served, cpus, memory)
        volumes = self._volumes(name)
        if self.storage_uri is None:
            predictor: dict[str, Value] = {"containers": [container], "volumes": volumes}
            return {"inferenceservice.yaml": self._service(name, predictor)}
        runtime = f"{name}-runtime"
        predictor = {
            "model": {
                "modelFormat": {"name": "infer", "version": str(FORMAT_VERSION)},
                "protocolVersion": "v2",
                "runtime": runtime,
                "storageUri": self.storage_uri,
            }
        }
        return {
            "servingruntime.yaml": document(
                ["What serves artifacts that KServe downloads.", "Made by: infer package --for kserve"],
                {
                    "apiVersion": "serving.kserve.io/v1alpha1",
                    "kind": "ServingRuntime",
                    "metadata": {"name": runtime},
                    "spec": {
                        "supportedModelFormats": [{"name": "infer", "version": str(FORMAT_VERSION)}],
                        "protocolVersions": ["v2"],
                        "containers": [container],
                        "volumes": volumes,
                    },
                },
            ),
            "inferenceservice.yaml": self._service(name, predictor),
        }

    def _service(self, name: str, predictor: dict[str, Value]) -> str:
        scraped: dict[str, Value] = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(PORT),
            "prometheus.io/path": "/metrics",
        }
        return document(
            ["An artifact behind the Open Inference Protocol.", "Made by: infer package --for kserve"],
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                # annotations have no place for a token
                "metadata": {"name": name, **({} if self.auth else {"annotations": scraped})},
                "spec": {"predictor": predictor},
            },
        )

    def _container(self, served: str, cpus: int, memory: str) -> dict[str, Value]:
        resources: dict[str, Value] = {"cpu": str(cpus), "memory": memory}
        command: list[Value] = ["infer", "serve", served, "--host", "0.0.0.0", "--port", str(PORT)]
        access: list[Value] = ["--token-file", f"{_TOKEN_FOLDER}/token"] if self.auth else ["--no-auth"]
        token: dict[str, Value] = {"name": "token", "mountPath": _TOKEN_FOLDER, "readOnly": True}
        return {
            "name": "kserve-container",
            "image": self.image,
            # an image with an artifact begins so by itself
            **({"command": command} if self.storage_uri else {}),
            "args": [*access, "--lame-duck", _LAME_DUCK],
            "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
            "readinessProbe": _probe("/v2/health/ready", period_s=5),
            "livenessProbe": {**_probe("/v2/health/live", period_s=10), "initialDelaySeconds": 30},
            "resources": {"requests": resources, "limits": resources},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *([token] if self.auth else [])],
        }

    def _volumes(self, name: str) -> list[Value]:
        token: dict[str, Value] = {"name": "token", "secret": {"secretName": f"{name}-token"}}
        return [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, *([token] if self.auth else [])]


def service_name(name: str) -> str:
    """`name` as Kubernetes wants it, short enough for what KServe adds to it. Raises `InputError`."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", found):
        raise InputError(
            f"a service cannot be called '{name:.140}': its name must have at most 40 letters, digits and"
            f" '-', with a letter first; give another one with --name"
        )
    return found


def guessed_memory(artifact: Artifact, streams: int) -> str:
    """512 MiB for Python, the libraries and a run, half of that for each further run that goes on at once,
    and thrice the largest graph: its file, what the backend packs of it, and what runs hold. In steps of
    128 MiB."""
    largest = max(variant.size_bytes for variant in artifact.manifest.variants)
    needed = (256 + 256 * streams) * 2**20 + 3 * largest
    return f"{-(-needed // (_STEP_MIB * 2**20)) * _STEP_MIB}Mi"


def _probe(path: str, *, period_s: int) -> dict[str, Value]:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": 3,
    }
