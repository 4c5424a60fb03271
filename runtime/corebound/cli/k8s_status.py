"""`corebound k8s status`: what became of a job and of its pods."""

from __future__ import annotations

import click

from corebound.cli.k8s_options import cluster_options, open_job, status_as_json
from corebound.cli.tables import render_table
from corebound.errors import LaunchError
from corebound.k8s.job import JobStatus, read_status


@click.command()
@click.argument("target", metavar="JOB|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@cluster_options
def status(target: str, as_json: bool, context: str | None, namespace: str | None) -> int:
    """Show a job's state, its pods, what is wrong with them, and warnings of the cluster about them.

    Exit status: 0 when the job is there, whatever its state; 4 when it is not.

    \b
    Examples:
      corebound k8s status bloom
      corebound k8s status k8s/mpijob-bloom.yaml --json | jq -r .state
    """  # noqa: D301  click reads the \b
    cluster, reference = open_job(target, context, namespace)
    found = read_status(cluster, reference)
    if found is None:
        raise LaunchError(f"{reference} is not there")
    click.echo(status_as_json(found) if as_json else render(found))
    return 0


def render(found: JobStatus) -> str:
    """Return the text for a terminal."""
    reason = ": ".join(part for part in (found.reason, found.message) if part)
    lines = [f"MPIJob {found.namespace}/{found.name}: {found.state}" + (f" ({reason})" if reason else "")]
    if found.pods:
        header = ("pod", "phase", "ready", "restarts", "node")
        rows = [(pod.name, pod.phase, "yes" if pod.ready else "no", pod.restarts, pod.node) for pod in found.pods]
        lines += ["", render_table(header, rows)]
    notes = [*found.problems, *found.events]
    return "\n".join([*lines, "", *notes] if notes else lines)
