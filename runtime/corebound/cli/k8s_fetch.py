"""`corebound k8s fetch`: a model's archive into a volume, checked before anything of it is unpacked."""

from __future__ import annotations

from pathlib import Path

import click

from corebound.k8s.fetch import fetch_archive


@click.command()
@click.argument("url")
@click.option("--sha256", required=True, metavar="HEX", help="Digest that the archive must have.")
@click.option("--to", "directory", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to.")
@click.option("--timeout_s", default=60.0, show_default=True, metavar="SECONDS", help="Give up on a silent server.")
def fetch(url: str, sha256: str, directory: Path, timeout_s: float) -> int:
    """Get a tar file (https:, http: or file:), check its SHA-256 and unpack it into a folder.

    \b
    Example:
      corebound k8s fetch https://models.example/bloom-560m.tar --sha256 0123... --to /models
    """  # noqa: D301  click reads the \b
    num_bytes = fetch_archive(url, sha256.lower(), directory, timeout_s)
    click.echo(f"{url}: {num_bytes} bytes, SHA-256 as expected, unpacked into {directory}", err=True)
    return 0
