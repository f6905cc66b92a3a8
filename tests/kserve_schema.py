"""What of KServe's custom resources `infer package` may write, as JSON Schema kept by hand.

Sources: the Go types of kserve/kserve, pkg/apis/serving/v1beta1 (InferenceService, PredictorSpec,
ModelSpec) and v1alpha1 (ServingRuntime), and of Kubernetes' core/v1 (Container, Probe, SecurityContext).
Fields that are not written are left out, so that a misspelt one is an error.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY: Schema = {"type": "string", "pattern": "^[0-9]+(m|Ki|Mi|Gi|Ti)?$"}
TEXT: Schema = {"type": "string", "minLength": 1}


def fields(required: Schema, **optional: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema: Schema) -> Schema:
    return {"type": "array", "items": schema, "minItems": 1}


PROBE = fields(
    {"httpGet": fields({"path": {"type": "string", "pattern": "^/"}, "port": {"type": "integer"}})},
    periodSeconds={"type": "integer", "minimum": 1},
    timeoutSeconds={"type": "integer", "minimum": 1},
    failureThreshold={"type": "integer", "minimum": 1},
    initialDelaySeconds={"type": "integer", "minimum": 0},
)
RESOURCES = fields({"cpu": QUANTITY, "memory": QUANTITY})
CONTAINER = fields(
    {
        "name": {"const": "kserve-container"},
        "image": TEXT,
        "args": items(TEXT),
        # Knative tells protocols by these names
        "ports": items(
            fields({"containerPort": {"const": 8080}, "name": {"enum": ["http1", "h2c"]}, "protocol": TEXT})
        ),
        "readinessProbe": PROBE,
        "livenessProbe": PROBE,
        "resources": fields({"requests": RESOURCES, "limits": RESOURCES}),
        "securityContext": fields(
            {
                "runAsNonRoot": {"const": True},
                "runAsUser": {"type": "integer", "minimum": 1000},
                "allowPrivilegeEscalation": {"const": False},
                "readOnlyRootFilesystem": {"const": True},
                "capabilities": fields({"drop": {"const": ["ALL"]}}),
                "seccompProfile": fields({"type": {"const": "RuntimeDefault"}}),
            }
        ),
        "volumeMounts": items(fields({"name": NAME, "mountPath": TEXT}, readOnly={"type": "boolean"})),
    },
    command=items(TEXT),
)
VOLUME = {
    "oneOf": [
        fields({"name": NAME, "emptyDir": fields({"sizeLimit": QUANTITY})}),
        fields({"name": NAME, "secret": fields({"secretName": NAME})}),
    ]
}
FORMAT = fields({"name": NAME, "version": TEXT})

INFERENCE_SERVICE = fields(
    {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": fields(
            {"name": NAME}, annotations={"type": "object", "additionalProperties": {"type": "string"}}
        ),
        "spec": fields(
            {
                "predictor": {
                    "oneOf": [
                        fields({"containers": items(CONTAINER), "volumes": items(VOLUME)}),
                        fields(
                            {
                                "model": fields(
                                    {
                                        "modelFormat": FORMAT,
                                        "protocolVersion": {"enum": ["v1", "v2", "grpc-v2"]},
                                        "runtime": NAME,
                                        "storageUri": TEXT,
                                    }
                                )
                            }
                        ),
                    ]
                }
            }
        ),
    }
)
SERVING_RUNTIME = fields(
    {
        "apiVersion": {"const": "serving.kserve.io/v1alpha1"},
        "kind": {"const": "ServingRuntime"},
        "metadata": fields({"name": NAME}),
        "spec": fields(
            {
                "supportedModelFormats": items(FORMAT),
                "protocolVersions": items({"enum": ["v1", "v2", "grpc-v2"]}),
                "containers": items(CONTAINER),
                "volumes": items(VOLUME),
            }
        ),
    }
)
