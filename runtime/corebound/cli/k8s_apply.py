"""`corebound k8s apply`: a manifest to the cluster, and with --wait its job to the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from corebound.cli.k8s_options import (
    EXIT_INTERRUPTED,
    cluster_options,
    note,
    print_line,
    status_as_dict,
)
from corebound.cli.k8s_validate import level_option
from corebound.config import env
from corebound.errors import ConfigError
from corebound.k8s.apply import (
    Applied,
    apply_documents,
    default_timeout_s,
    delete_references,
    jobs_of,
    references,
    wait_for_definition,
)
from corebound.k8s.cluster import Cluster, Reference, connect
from corebound.k8s.documents import Document, read_documents
from corebound.k8s.follow import Follower, failure
from corebound.k8s.job import JobStatus
from corebound.k8s.rules.security import Level
from corebound.k8s.validate import has_errors, make_validator

_DELETE_TIMEOUT_S = 120.0


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--wait", is_flag=True, help="Follow the job's logs, and exit with what it comes to.")
@click.option("--replace", is_flag=True, help="Delete a job of that name first.")
@click.option("--force-conflicts", is_flag=True, help="Take over fields that another tool has set.")
@click.option("--timeout_s", type=click.FloatRange(min=1), metavar="SECONDS", help="Stop waiting after this long.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output; logs go to standard error.")
@level_option
@cluster_options
def apply(files: tuple[Path, ...], level: Level, context: str | None, namespace: str | None, **options: Any) -> int:
    """Check manifests, send them to the cluster (server-side apply), and follow the job with --wait.

    It waits until the cluster knows what an MPIJob is. With --wait it stops after the job's activeDeadlineSeconds and
    ten minutes for pods to start, unless --timeout_s says otherwise. Ctrl-C leaves the job running.

    Exit status: 0 when the objects were applied and, with --wait, the job succeeded; 4 when the job failed, or one of
    that name is finished; 2 when the manifest is wrong; 3 when the cluster refuses or does not answer; 130 after
    Ctrl-C.

    \b
    Examples:
      corebound k8s apply k8s/mpijob-bloom.yaml --wait
      kubectl kustomize k8s/overlays/worker-per-socket | corebound k8s apply - --replace --wait --json
    """  # noqa: D301  click reads the \b
    documents = [document for path in files for document in read_documents(path)]
    _check(documents, level)
    cluster = connect(context, namespace)
    found = references(documents, cluster, namespace)
    jobs = jobs_of(found)
    if options["wait"] and len(jobs) != 1:
        raise ConfigError(f"--wait: expected one MPIJob, found {len(jobs)}", hint="apply one file at a time")
    if options["replace"]:
        for reference in delete_references(cluster, jobs, timeout_s=_DELETE_TIMEOUT_S):
            note(f"{reference} deleted")
    for reference in jobs:
        wait_for_definition(cluster, reference)
    applied = apply_documents(cluster, documents, found, force=options["force_conflicts"])
    _tell(applied)
    status, exit_code = None, 0
    if options["wait"]:
        job = next(document.data for document in documents if document.kind == "MPIJob")
        timeout_s = options["timeout_s"] or default_timeout_s(job)
        status, exit_code = follow_job(cluster, jobs[0], timeout_s, logs_to_err=options["as_json"])
    if options["as_json"]:
        objects = [
            {"kind": one.reference.kind, "namespace": one.reference.namespace, "name": one.reference.name}
            | {"result": one.result}
            for one in applied
        ]
        click.echo(json.dumps({"objects": objects, "job": status_as_dict(status) if status else None}, indent=2))
    return exit_code


def follow_job(
    cluster: Cluster,
    reference: Reference,
    timeout_s: float | None,
    *,
    logs_to_err: bool = False,
    prefix: bool = True,
    roles: tuple[str, ...] = (),
) -> tuple[JobStatus | None, int]:
    """Print a job's logs to its end; return what became of it, and the exit code: 0, 4, or 130 for an interrupt."""
    if timeout_s is None:
        note("warning: the job has no activeDeadlineSeconds, and no --timeout_s is given: waiting without end")
    follower = Follower(
        cluster, reference, lambda line: print_line(line, err=logs_to_err, prefix=prefix), note, timeout_s, roles
    )
    try:
        status = follower.run()
    except KeyboardInterrupt:
        note(f"interrupted: {reference} goes on; `corebound k8s delete` ends it")
        return None, EXIT_INTERRUPTED
    if status.state == "Succeeded":
        return status, 0
    error = failure(status)
    note(error.render())
    return status, error.exit_code


def _check(documents: list[Document], level: Level) -> None:
    validator = make_validator(env.mpi_operator_manifest(), level)
    findings = validator.findings(documents)
    for text in [*(f"note: {text}" for text in validator.notes), *(finding.render() for finding in findings)]:
        note(text)
    if has_errors(findings):
        raise ConfigError("the manifest is wrong, nothing was sent", hint="`corebound k8s validate --help`")


def _tell(applied: list[Applied]) -> None:
    for one in applied:
        note(f"{one.reference} {one.result}")
        if one.respecified:
            note(f"warning: {one.reference} runs already: its pods stay as they are; --replace starts it anew")
