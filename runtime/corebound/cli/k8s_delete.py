"""`corebound k8s delete`: a job and all that came with it, away."""

from __future__ import annotations

import click

from corebound.cli.k8s_options import cluster_options, manifest, note
from corebound.k8s.apply import delete_references, references
from corebound.k8s.cluster import connect
from corebound.k8s.job import job_reference


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="FILE|JOB...")
@click.option("--timeout_s", default=120.0, show_default=True, metavar="SECONDS", help="Stop waiting after this long.")
@cluster_options
def delete(targets: tuple[str, ...], timeout_s: float, context: str | None, namespace: str | None) -> int:
    """Remove what manifests name, or a job by its name, and wait until its pods are gone.

    What is not there is no error. Exit status: 0 when all is gone, 3 when something still is there.

    \b
    Examples:
      corebound k8s delete k8s/mpijob-bloom.yaml
      corebound k8s delete bloom --namespace inference
    """  # noqa: D301  click reads the \b
    cluster = connect(context, namespace)
    found = []
    for target in targets:
        documents = manifest(target)
        found += (
            [job_reference(target, cluster.namespace)]
            if documents is None
            else references(documents, cluster, namespace)
        )
    deleted = delete_references(cluster, found, timeout_s=timeout_s)
    for reference in found:
        note(f"{reference} {'deleted' if reference in deleted else 'was not there'}")
    return 0
