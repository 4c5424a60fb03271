"""What the commands that talk to a cluster share: options, and how a job is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from corebound.k8s.apply import job_of
from corebound.k8s.cluster import KubernetesCluster, Reference, connect
from corebound.k8s.documents import Document, read_documents
from corebound.k8s.job import JobStatus
from corebound.k8s.logs import Line

_Command = TypeVar("_Command", bound=Callable[..., Any])
EXIT_INTERRUPTED = 130


def cluster_options(command: _Command) -> _Command:
    """Add --context and --namespace."""
    context = click.option("--context", metavar="NAME", help="Context of kubectl's configuration; the current one.")
    namespace = click.option("-n", "--namespace", metavar="NAME", help="Namespace; that of the manifest or context.")
    return namespace(context(command))


def open_job(target: str, context: str | None, namespace: str | None) -> tuple[KubernetesCluster, Reference]:
    """Return a cluster, and the job that a name or a manifest's file means.

    Raises: ConfigError for a file that cannot be read or holds no job; HostError when the cluster does not answer.
    """
    documents = manifest(target)
    cluster = connect(context, namespace)
    return cluster, job_of(target, documents, cluster, namespace)


def manifest(target: str) -> list[Document] | None:
    """Return the documents of a file, None for what is the name of a job.

    Raises: ConfigError for a file that cannot be read.
    """
    if target == "-" or "/" in target or target.endswith((".yaml", ".yml")):
        return read_documents(Path(target))
    return None


def print_line(line: Line, *, err: bool = False, prefix: bool = True) -> None:
    """Print a line of a log with its origin."""
    err = err or line.is_note
    click.echo(f"[{line.origin}] {line.text}" if prefix or line.is_note else line.text, err=err)


def note(text: str) -> None:
    """Say what changed, on standard error."""
    click.echo(text, err=True)


def status_as_json(status: JobStatus) -> str:
    """Return a status as JSON."""
    return json.dumps(status_as_dict(status), indent=2)


def status_as_dict(status: JobStatus) -> dict[str, Any]:
    """Return a status as plain data, without what only log streams need."""
    data = asdict(status)
    for pod in data["pods"]:
        del pod["containers"]
    return data
