"""Prints as SPDX 2.3 JSON what is in this image: Debian's packages and Python's distributions, with their licences.

Usage: sbom.py VERSION CREATED
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def debian_packages() -> list[tuple[str, str, str]]:
    """Return name, version and package URL of every Debian package."""
    form = "${Package}\t${Version}\t${Architecture}\n"
    listed = subprocess.run(["dpkg-query", "--show", "--showformat", form], capture_output=True, text=True, check=True)
    rows = (line.split("\t") for line in listed.stdout.splitlines())
    return [(name, version, f"pkg:deb/debian/{name}@{version}?arch={arch}") for name, version, arch in rows]


def python_packages() -> list[tuple[str, str, str, str]]:
    """Return name, version, package URL and licence of every Python distribution."""
    found = []
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        name = metadata["Name"]
        licence = metadata["License-Expression"] or "NOASSERTION"
        found.append((name, distribution.version, f"pkg:pypi/{name.lower()}@{distribution.version}", licence))
    return found + linked_packages(Path(sys.prefix) / "share/doc")


def linked_packages(doc: Path) -> list[tuple[str, str, str, str]]:
    """Return the packages that are inside a library of ours and not installed: those with a file `version` in `doc`."""
    versions = {path.parent.name: path.read_text(encoding="utf-8").strip() for path in doc.glob("*/version")}
    return [(name, version, f"pkg:pypi/{name}@{version}", "NOASSERTION") for name, version in versions.items()]


def package(name: str, version: str, url: str, licence: str = "NOASSERTION") -> dict[str, Any]:
    """Return one package in the form of SPDX."""
    return {
        "SPDXID": f"SPDXRef-{re.sub(r'[^A-Za-z0-9.-]', '-', url)}",
        "name": name,
        "versionInfo": version,
        "licenseDeclared": licence,
        "licenseConcluded": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}],
    }


def main() -> None:
    """Print the document."""
    version, created = sys.argv[1:]
    packages = [package(*row) for row in sorted(debian_packages())] + [
        package(*row) for row in sorted(python_packages())
    ]
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"corebound-runtime-{version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/corebound-runtime-{version}-{created}",
        "creationInfo": {"created": created, "creators": ["Tool: corebound images"]},
        "packages": packages,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": entry["SPDXID"],
            }
            for entry in packages
        ],
    }
    json.dump(document, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main()
