"""Values to the text of a manifest, through the templates of this package."""

from __future__ import annotations

import dataclasses
import json

from corebound.k8s.extra import load
from corebound.k8s.values import MODEL_MOUNT, ServerValues, Values
from corebound.version import __version__

JOB_LABEL = "training.kubeflow.org/job-name"
ROLE_LABEL = "training.kubeflow.org/job-role"
LAUNCHERS = {"Intel": "impi", "OpenMPI": "openmpi", "MPICH": "mpich"}
SSH_PORT = 2222
USER_ID = 1000
HOME = "/home/corebound"


def render(values: Values | ServerValues) -> str:
    """Return the manifest of an MPIJob or of a server, with what belongs to its pods before it."""
    jinja2 = load("jinja2", "jinja2")
    # YAML, not HTML: every value goes through `quoted`.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corebound.k8s"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = quoted
    if isinstance(values, ServerValues):
        name, special = "server.yaml.j2", {"arguments": server_arguments(values)}
    else:
        name, special = "mpijob.yaml.j2", {"launcher_arguments": launcher_arguments(values)}
    text = environment.get_template(name).render(
        **special,
        values=values,
        version=values.version or __version__,
        fetch_arguments=fetch_arguments(values),
        model_mount=MODEL_MOUNT,
        job_label=JOB_LABEL,
        role_label=ROLE_LABEL,
        ssh_port=SSH_PORT,
        user_id=USER_ID,
        home=HOME,
    )
    return str(text)


def quoted(value: object) -> str:
    """Return a scalar as double-quoted YAML, so that no value is read as another type."""
    return json.dumps(str(value), ensure_ascii=False)


def launcher_arguments(values: Values) -> list[str]:
    """Return the arguments of the launcher's container. --model comes first after the verb: overlays count on it."""
    return [
        "corebound-launcher",
        "generate",
        f"--model={values.model.path}",
        f"--launcher={LAUNCHERS[values.launcher.mpi]}",
        "--hostfile=/etc/mpi/hostfile",
        f"--ssh_port={SSH_PORT}",
        f"--wait_for_hosts={values.launcher.wait_for_workers_s}",
        "--bind_cores_to_rank",
        f"--max-new-tokens={values.max_new_tokens}",
        "--json",
        *(f"--prompt={prompt}" for prompt in values.prompts),
    ]


def server_arguments(values: ServerValues) -> list[str]:
    """Return the arguments of each pod's container: how many pods there are, then those of `corebound serve`."""
    return [
        "corebound-server",
        str(values.pods.replicas),
        str(values.pods.ranks),
        f"{values.name}-pods",
        f"--model={values.model.path}",
        "--host=0.0.0.0",
        f"--port={values.port}",
        f"--drain-s={values.drain_s}",
        f"--ssh_port={SSH_PORT}",
        f"--wait_for_hosts={values.wait_for_pods_s}",
        "--bind_cores_to_rank",
    ]


def fetch_arguments(values: Values | ServerValues) -> list[str]:
    """Return the arguments of the container that gets the model's archive."""
    model = values.model
    return ["corebound", "k8s", "fetch", model.url, f"--sha256={model.sha256}", f"--to={MODEL_MOUNT}"]


def with_image(values: Values | ServerValues, image: str | None) -> Values | ServerValues:
    """Return the values with another image, or as they are for None."""
    return values if image is None else dataclasses.replace(values, image=image)
