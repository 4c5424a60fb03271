"""YAML as strictly as an API server reads it: a key that is there twice is an error, not the last one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corebound.errors import ConfigError
from corebound.k8s.extra import load


@dataclass(frozen=True)
class Document:
    """One YAML document: its file, the line it starts on, what it says, and keys that it has twice (path, line)."""

    source: str
    line: int
    data: Any
    duplicates: tuple[tuple[str, int], ...] = ()

    @property
    def kind(self) -> str:
        """Kind of the object, empty when it has none."""
        kind = self.data.get("kind") if isinstance(self.data, dict) else None
        return kind if isinstance(kind, str) else ""

    @property
    def name(self) -> str:
        """Name of the object, empty when it has none."""
        metadata = self.data.get("metadata") if isinstance(self.data, dict) else None
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return name if isinstance(name, str) else ""


def read_documents(path: Path) -> list[Document]:
    """Return the documents of a YAML file, `-` being standard input; empty ones are left out.

    Raises: ConfigError when the file cannot be read or is no YAML.
    """
    if str(path) == "-":
        return parse_documents(sys.stdin.read(), "standard input")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse_documents(text, str(path))


def parse_documents(text: str, source: str) -> list[Document]:
    """Return the documents of a text. Raises: ConfigError when it is no YAML, with line and column."""
    yaml = load("yaml", "pyyaml")
    loader = yaml.SafeLoader(text)
    documents = []
    try:
        while loader.check_node():
            node = loader.get_node()
            duplicates = tuple(_duplicates(yaml, node, ""))
            data = loader.construct_document(node)
            if data is not None:
                documents.append(Document(source, node.start_mark.line + 1, data, duplicates))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{place}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    finally:
        loader.dispose()
    if not documents:
        raise ConfigError(f"{source}: expected at least one YAML document, found none")
    return documents


def _duplicates(yaml: Any, node: Any, path: str) -> list[tuple[str, int]]:
    found = []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            where = f"{path}.{name}" if path else name
            if name in seen and name != "<<":
                found.append((where, key.start_mark.line + 1))
            seen.add(name)
            found += _duplicates(yaml, value, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found += _duplicates(yaml, value, f"{path}[{index}]")
    return found
