"""Finds the tensors of PyTorch's own files (`*.bin`) without running what is pickled in them: only on request.

The pickle goes through torch's loader for weights, which knows tensors and refuses everything else. What it returns is
where each tensor lies in the file; the weights themselves are read as those of safetensors are.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corebound.errors import ModelLoadError
from corebound.sharding.checkpoint import TensorEntry

if TYPE_CHECKING:
    import torch

SINGLE_PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_CONVERT = "convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR) writes safetensors"


def read_pickled_file(path: Path) -> tuple[dict[str, TensorEntry], int]:
    """Return the tensors of a file that `torch.save` wrote, and the size of the file in bytes; no weight is read.

    Raises: ModelLoadError for a file that is damaged, or holds anything but tensors.
    """
    # Here, because describing a model of safetensors needs no torch.
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        file_bytes = path.stat().st_size
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a file that anybody may have written leads torch to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(f"{path}: refused, nothing in it was run: {reason}", hint=_CONVERT) from error
    if not isinstance(content, dict) or not content:
        raise ModelLoadError(f"{path}: expected tensors by name, found {type(content).__name__}", hint=_CONVERT)
    places = _Mappings(path)
    return {
        str(name): _entry(path, str(name), value, places, file_bytes) for name, value in content.items()
    }, file_bytes


def places_in_file(path: Path, content: Mapping[Any, Any]) -> dict[str, TensorEntry]:
    """Return where those tensors lie in a file that are stored in it as they are; `content` is the file, mapped.

    Reading them there keeps the pages of the file out of this process's memory.
    """
    places, file_bytes = _Mappings(path), path.stat().st_size
    found: dict[str, TensorEntry] = {}
    for name, value in content.items():
        place = _place(path, str(name), value, places, file_bytes)
        if isinstance(place, TensorEntry):
            found[str(name)] = place
    return found


def _entry(path: Path, name: str, value: Any, places: _Mappings, file_bytes: int) -> TensorEntry:
    place = _place(path, name, value, places, file_bytes)
    if isinstance(place, str):
        raise ModelLoadError(f"{path}: tensor {name!r}: {place}", hint=_CONVERT)
    return place


def _place(path: Path, name: str, value: Any, places: _Mappings, file_bytes: int) -> TensorEntry | str:
    """Return where a tensor lies in the file, or why it cannot be read there."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"expected a tensor, found {type(value).__name__}"
    dtype = _DTYPES.get(str(value.dtype).removeprefix("torch."))
    if dtype is None or value.layout != torch.strided or value.device.type != "cpu":
        return f"cannot be read as {value.dtype}, {value.layout}"
    if not value.is_contiguous():
        return "is stored with its dimensions in another order"
    start = places.file_offset(value)
    if start is None:
        return "is not in the file as it is"
    if start + value.nbytes > file_bytes:
        return f"ends at byte {start + value.nbytes} of a file of {file_bytes}"
    return TensorEntry(name, path, dtype, tuple(value.shape), start)


class _Mappings:
    """Where this process has mapped a file, from /proc/self/maps."""

    def __init__(self, path: Path) -> None:
        import torch

        # Device and inode as the kernel lists them, by a page of our own: stat has others on btrfs and overlayfs.
        with path.open("rb") as file:
            page = torch.frombuffer(mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_COPY), dtype=torch.uint8)
        mapped = list(_mapped_files())
        this = next((identity for addresses, _, identity in mapped if page.data_ptr() in addresses), None)
        self._parts = [(addresses, offset) for addresses, offset, identity in mapped if identity == this]

    def file_offset(self, tensor: torch.Tensor) -> int | None:
        """Return the byte of the file at which a tensor starts; None for one that is elsewhere."""
        if tensor.numel() == 0:
            return 0
        address = tensor.data_ptr()
        for addresses, offset in self._parts:
            if address in addresses:
                return offset + address - addresses.start
        return None


def _mapped_files() -> Iterator[tuple[range, int, tuple[str, str]]]:
    """Yield the addresses, the offset in the file, and device and inode of what this process has mapped."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, offset, device, inode = line.split(maxsplit=5)[:5]
        start, end = (int(address, 16) for address in addresses.split("-"))
        yield range(start, end), int(offset, 16), (device, inode)
