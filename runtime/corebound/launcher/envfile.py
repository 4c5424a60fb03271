"""Files of variables for all ranks: `.deepspeed_env` and `.corebound_env`, in the home and the working directory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from corebound.errors import ConfigError
from corebound.launcher.trusted_file import read_trusted

OWN_NAME = ".corebound_env"
DEEPSPEED_NAME = ".deepspeed_env"
# The launcher says these to each rank; a file that did would put two ranks into one place.
PLACES = frozenset(
    {
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR",
        "MASTER_PORT", "COREBOUND_JOB_ID", "COREBOUND_AGENT_SECRET",
    }
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<text>.*)(?P=quote)\s*(?:\s#.*)?""")
_MAX_BYTES = 1 << 20


def env_files(environ: Mapping[str, str], cwd: Path) -> list[Path]:
    """Return the files that exist, in the order in which later ones win.

    DS_ENV_FILE is DeepSpeed's: another name for `.deepspeed_env`, or the path of a file.

    Raises: ConfigError when DS_ENV_FILE names a file that is in none of the places.
    """
    asked = environ.get("DS_ENV_FILE")
    folders = [Path(environ["HOME"])] if environ.get("HOME") else []
    places = [(folder, name) for folder in (*folders, cwd) for name in (asked or DEEPSPEED_NAME, OWN_NAME)]
    found = [path for path in dict.fromkeys(folder / name for folder, name in places) if _is_there(path)]
    candidates = dict.fromkeys(folder / name for folder, name in places if name == asked)
    if asked and not any(path in found for path in candidates):
        raise ConfigError(
            f"DS_ENV_FILE={asked}: no such file, looked for {', '.join(map(str, candidates))}",
            hint="a path that begins with / is taken as it is; unset DS_ENV_FILE to read .deepspeed_env",
        )
    return found


def read_env_files(paths: Sequence[Path]) -> dict[str, str]:
    """Return the variables of several files; of two values for a name the later one counts.

    Raises: ConfigError naming file and line.
    """
    values: dict[str, str] = {}
    for path in paths:
        values.update(parse_env(_text(path), str(path)))
    return values


def parse_env(text: str, where: str) -> dict[str, str]:
    """Return the variables in a text of NAME=VALUE lines.

    Blank lines and comments are skipped, `export ` in front is allowed. A value goes from the first `=` to the end of
    the line, or to a `#` after a blank. In quotes it is taken as it is; nothing is ever expanded.

    Raises: ConfigError naming `where` and the line, never what stands in it, which may be a secret.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        name, place = name.strip(), f"{where}, line {number}"
        if not equals or not _NAME.fullmatch(name):
            # Not the words themselves: where a = is missing, one of a secret's own may be the first in its line.
            found = "no name in front of the =" if equals else "no ="
            raise ConfigError(f"{place}: expected NAME=VALUE, found {found}", hint="a comment starts with #")
        if name in PLACES:
            raise ConfigError(
                f"{place}: {name} is the launcher's to set for each rank",
                hint="use --master_addr and --master_port" if name.startswith("MASTER") else "leave it out",
            )
        values[name] = _value(value.strip(), place)
    return values


def _is_there(path: Path) -> bool:
    """Return whether a folder has this name; a link that leads nowhere counts, so that it is not passed over."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return True


def _value(text: str, place: str) -> str:
    if "\0" in text:
        raise ConfigError(f"{place}: the value has a NUL character")
    if text[:1] not in ("'", '"'):
        return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()
    match = _QUOTED.fullmatch(text)
    if match is None:
        raise ConfigError(f"{place}: the quote {text[0]} is not closed, or text follows it")
    return match["text"]


def _text(path: Path) -> str:
    data = read_trusted(path, _MAX_BYTES)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8: {error.reason} at byte {error.start}") from error
