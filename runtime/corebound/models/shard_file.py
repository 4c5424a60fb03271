"""Writes the file of a rank: safetensors, in whole huge pages so that the page cache keeps it in such."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_BLOCK_BYTES = 2 << 20  # a huge page
_CHUNK_BYTES = 16 << 20
_ALIGN_BYTES = 4096  # the data of a file starts at a page


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], count: Callable[[int], None]
) -> tuple[str, int]:
    """Write a safetensors file, bytes as uint8 and the rest as bfloat16; return its digest and size.

    `metadata` are texts for its header. `count` is told of the bytes of tensors as they are written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        dtype = "U8" if tensor.dtype == torch.uint8 else "BF16"
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN_BYTES)
    digest, done = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        writer = _BlockWriter(file)
        for part in _parts(struct.pack("<Q", len(text)) + text, tensors):
            digest.update(part)
            writer.write(part)
            if done:  # the header comes first
                count(len(part))
            done += len(part)
        writer.finish()
        os.fsync(file.fileno())
    return digest.hexdigest(), done


def _parts(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors.values():
        view = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


class _BlockWriter:
    """Writes whole blocks from multiples of a block on: what ext4 and XFS put into huge pages of the page cache."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._block = bytearray(_BLOCK_BYTES)
        self._filled = 0

    def write(self, content: memoryview) -> None:
        while content:
            whole = len(content) // _BLOCK_BYTES * _BLOCK_BYTES
            if self._filled == 0 and whole:
                self._put(content[:whole])
                content = content[whole:]
                continue
            count = min(_BLOCK_BYTES - self._filled, len(content))
            self._block[self._filled : self._filled + count] = content[:count]
            self._filled += count
            content = content[count:]
            if self._filled == _BLOCK_BYTES:
                self.finish()

    def finish(self) -> None:
        self._put(memoryview(self._block)[: self._filled])
        self._filled = 0

    def _put(self, content: memoryview) -> None:
        while content:
            content = content[self._file.write(content) :]
