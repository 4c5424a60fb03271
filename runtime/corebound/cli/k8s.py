"""`corebound k8s`: an MPIJob from values to its exit code."""

from __future__ import annotations

import click

from corebound.cli.lazy_group import LazyGroup

# Subcommand -> (module that holds its click command under the same name, one line of help).
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "apply": ("corebound.cli.k8s_apply", "Send a manifest to the cluster, and follow the job with --wait."),
    "delete": ("corebound.cli.k8s_delete", "Remove what a manifest names, with its pods."),
    "fetch": ("corebound.cli.k8s_fetch", "Get an archive, check its SHA-256 and unpack it (for init containers)."),
    "logs": ("corebound.cli.k8s_logs", "Print the logs of launcher and workers, each line with its origin."),
    "render": ("corebound.cli.k8s_render", "Make a manifest from values."),
    "status": ("corebound.cli.k8s_status", "Show what became of a job and of its pods."),
    "validate": ("corebound.cli.k8s_validate", "Check manifests without a cluster."),
}


@click.command(cls=LazyGroup, table=SUBCOMMANDS)
def k8s() -> None:
    """Render, check, apply and follow MPIJobs on Kubernetes.

    It needs more packages than other commands, and says which line installs them. The cluster is that of kubectl's
    current context (KUBECONFIG, ~/.kube/config), or the one that the pod runs in.

    \b
    Examples:
      corebound k8s render inventories/k8s/mpijob-bloom.yml --image registry.example/corebound@sha256:... -o job.yaml
      corebound k8s validate job.yaml
      corebound k8s apply job.yaml --wait
      corebound k8s delete job.yaml
    """  # noqa: D301  click reads the \b
