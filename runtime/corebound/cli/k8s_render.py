"""`corebound k8s render`: values to a manifest."""

from __future__ import annotations

from pathlib import Path

import click

from corebound.errors import ConfigError
from corebound.k8s.render import render as render_manifest
from corebound.k8s.render import with_image
from corebound.k8s.values import check_values, read_values


@click.command()
@click.argument("values_file", metavar="VALUES", type=click.Path(path_type=Path))
@click.option("--image", metavar="NAME@sha256:DIGEST", help="Image to use in place of that of the values.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write here, not to standard output."
)
def render(values_file: Path, image: str | None, output: Path | None) -> int:
    """Make a manifest from the values of a YAML file.

    \b
    Examples:
      corebound k8s render inventories/k8s/mpijob-bloom.yml
      corebound k8s render my-job.yml --image registry.example/corebound@sha256:0123... -o my-job.yaml
    """  # noqa: D301  click reads the \b
    values = with_image(read_values(values_file), image)
    check_values(values, "--image" if image else str(values_file))
    text = render_manifest(values)
    if output is None:
        click.echo(text, nl=False)
        return 0
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from error
    return 0
