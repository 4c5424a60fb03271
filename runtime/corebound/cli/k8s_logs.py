"""`corebound k8s logs`: what launcher and workers wrote, each line with its origin."""

from __future__ import annotations

import click

from corebound.cli.k8s_apply import follow_job
from corebound.cli.k8s_options import cluster_options, open_job, print_line
from corebound.errors import EXIT_HOST, EXIT_OK, LaunchError
from corebound.k8s.apply import default_timeout_s
from corebound.k8s.job import read_status
from corebound.k8s.logs import read_logs

_ROLES = ("launcher", "worker")


@click.command()
@click.argument("target", metavar="JOB|FILE")
@click.option("-f", "--follow", is_flag=True, help="Go on to the end of the job, and exit with what it comes to.")
@click.option("--role", type=click.Choice(_ROLES), help="Only pods of this role.")
@click.option("--no-prefix", is_flag=True, help="Print lines as they were written, for a program to read.")
@click.option("--timeout_s", type=click.FloatRange(min=1), metavar="SECONDS", help="Stop following after this long.")
@cluster_options
def logs(
    target: str,
    follow: bool,
    role: str | None,
    no_prefix: bool,
    timeout_s: float | None,
    context: str | None,
    namespace: str | None,
) -> int:
    """Print the logs of launcher and workers, each line with its origin such as [worker-0].

    Ranks write to the launcher's log; a worker's own log has only its SSH server.

    With --follow it stops as `apply --wait` does. Exit status: 0, or 3 when a log cannot be read; with --follow that
    of the job (4 when it failed, 130 after Ctrl-C).

    \b
    Examples:
      corebound k8s logs bloom --follow
      corebound k8s logs bloom --role launcher --no-prefix
    """  # noqa: D301  click reads the \b
    cluster, reference = open_job(target, context, namespace)
    roles = (role,) if role else ()
    if follow:
        timeout_s = timeout_s or default_timeout_s(cluster.read(reference))
        _, exit_code = follow_job(cluster, reference, timeout_s, prefix=not no_prefix, roles=roles)
        return exit_code
    status = read_status(cluster, reference)
    if status is None:
        raise LaunchError(f"{reference} is not there")
    exit_code = EXIT_OK
    for line in read_logs(cluster, status, roles):
        print_line(line, prefix=not no_prefix)
        exit_code = EXIT_HOST if line.is_note else exit_code
    return exit_code
