"""`corebound k8s validate`: what a cluster, its operator or a launch would object to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

import corebound
from corebound.config import env
from corebound.config.suggest import require_choice
from corebound.errors import EXIT_CONFIG, ConfigError
from corebound.k8s.documents import Document, read_documents
from corebound.k8s.findings import Finding
from corebound.k8s.rules.security import LEVELS, Level
from corebound.k8s.validate import has_errors, make_validator, model_of, weights_bytes

_DEMO = "demo"


def _level(ctx: click.Context, param: click.Parameter, value: str) -> str:
    return require_choice("level", value, LEVELS, where="--pod-security")


level_option = click.option(
    "--pod-security",
    "level",
    default="restricted",
    show_default=True,
    callback=_level,
    metavar=f"{{{','.join(LEVELS)}}}",
    help="Level of the Pod Security Standards that the namespace enforces.",
)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--definition",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The operator's manifest or CustomResourceDefinition; by default what MPI_OPERATOR_MANIFEST names.",
)
@level_option
@click.option("--kubernetes-version", default="", metavar="1.N", help="Release to check against; the newest known.")
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="Copy of the job's model, to compare its size."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(
    files: tuple[Path, ...],
    definition: Path | None,
    level: Level,
    kubernetes_version: str,
    model: Path | None,
    as_json: bool,
) -> int:
    """Check manifests without a cluster; `-` reads standard input.

    Unknown fields, wrong types and keys that are there twice; what the MPI operator would refuse in silence; Pod
    Security; whether CPUs would be pinned; and, as warnings, where requests and launch disagree.

    Exit status: 0 when there are no errors (warnings are fine), 2 when there are.

    \b
    Examples:
      corebound k8s validate k8s/mpijob-bloom.yaml
      corebound k8s validate job.yaml --definition mpi-operator.yaml --model ./bloom-7b1 --json
      kubectl kustomize k8s/overlays/host-network | corebound k8s validate - --pod-security privileged
    """  # noqa: D301  click reads the \b
    documents = [document for path in files for document in read_documents(path)]
    validator = make_validator(
        definition or env.mpi_operator_manifest(), level, kubernetes_version, _model_bytes(model, documents)
    )
    findings = validator.findings(documents)
    for note in validator.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        release = validator.schemas.version if validator.schemas else None
        report = {
            "valid": not has_errors(findings),
            "findings": [asdict(finding) for finding in findings],
            "kubernetes": release,
            "definition": str(validator.definition.source) if validator.definition.source else None,
        }
        click.echo(json.dumps(report, indent=2))
    else:
        _print(documents, findings)
    return EXIT_CONFIG if has_errors(findings) else 0


def _print(documents: list[Document], findings: list[Finding]) -> None:
    for finding in findings:
        click.echo(finding.render())
    num_errors = sum(finding.severity == "error" for finding in findings)
    click.echo(f"{len(documents)} objects, {num_errors} errors, {len(findings) - num_errors} warnings")


def _model_bytes(model: Path | None, documents: list[Document]) -> int | None:
    if model is None:
        demo = Path(corebound.__file__).parent / "demo"
        return weights_bytes(demo) if model_of(documents) == _DEMO else None
    size = weights_bytes(model)
    if size is None:
        raise ConfigError(f"--model {model}: expected *.safetensors files, found none")
    return size
