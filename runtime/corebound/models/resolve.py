"""Finds the directory of a model from what the user typed."""

from __future__ import annotations

import re
from pathlib import Path

from corebound.config.suggest import nearest
from corebound.errors import ModelLoadError
from corebound.logs import get_logger

DEMO = "demo"
_DEMO_DIR = Path(__file__).parents[1] / "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt"]
_CONNECT_TIMEOUT_S = 10.0

_log = get_logger(__name__)


def resolve_model(name_or_path: str) -> Path:
    """Return the local directory of a model: a directory, `demo`, or a hub id, which is downloaded once.

    A directory wins over a hub id of the same name.

    Raises: ModelLoadError that says what was tried.
    """
    if not name_or_path.strip():
        raise ModelLoadError("model: expected a directory, `demo` or a hub id, found nothing")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if name_or_path == DEMO:
        if not _DEMO_DIR.is_dir():
            raise ModelLoadError(f"the demo model is not in this installation: {_DEMO_DIR} is missing")
        return _DEMO_DIR
    if path.exists():
        raise ModelLoadError(f"model {name_or_path}: expected a directory, found a file")
    if not _HUB_ID.fullmatch(name_or_path):
        raise ModelLoadError(f"model {name_or_path}: no such directory", hint="`--model demo` needs no download")
    return _download(name_or_path)


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise ModelLoadError(
            f"model {hub_id}: no such directory, and ids of the hub need the package huggingface_hub"
        ) from error
    _log.info("model %s is not a directory here: asking the Hugging Face hub", hub_id)
    try:
        found = snapshot_download(hub_id, allow_patterns=_WANTED, etag_timeout=_CONNECT_TIMEOUT_S)
    except (OSError, HFValidationError) as error:
        # Every failure of the hub's client to find, reach or be let in is an OSError.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(
            f"model {hub_id}: no such directory, and not to be had from the Hugging Face hub: {reason}",
            hint=(f"did you mean `{DEMO}`? " if nearest(hub_id, [DEMO]) else "")
            + "give the path of a local directory, check the id, or download it where the hub can be reached; "
            "`--model demo` needs no download",
        ) from error
    return Path(found)
