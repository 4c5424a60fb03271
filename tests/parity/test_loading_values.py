"""Native loading of rows against torch: magnitudes, conversions, quantization, and the way back out of panels."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corebound.kernels.panel_format import PanelFormat
from corebound.kernels.panels import PanelMatrix
from corebound.kernels.values import FileRows, fill_rows, largest_magnitude, load_rows, to_bfloat16
from corebound.models.storage import panel_format
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import parse_scheme

pytestmark = pytest.mark.native

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SCHEMES = ["int8", "int8:asym", "int8:g32", "int4", "int4:channel:sym", "int4:g32", "int4:g64:sym"]


def noise(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Return values of many sizes, zeros, subnormals of float16, and rows that are nothing but zeros or one sign."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * torch.logspace(-7, 3, rows).unsqueeze(1)
    values[:, ::7] = 0
    values[0] = 0
    values[1] = values[1].abs()
    values[2] = -values[2].abs()
    values[3] = -0.0
    return values.to(dtype)


def empty(rows: int, columns: int, form: PanelFormat, *, gated: bool = False) -> PanelMatrix:
    matrix = PanelMatrix(rows, columns, form, gated=gated)
    memory = torch.zeros(matrix.num_bytes + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    matrix.place(memory[start : start + matrix.num_bytes])
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [slice(0, 99), slice(13, 60)])
def test_the_largest_magnitude_is_found(variant: str, dtype: torch.dtype, columns: slice) -> None:
    values = noise(37, 99, dtype)[:, columns]
    assert largest_magnitude(values) == float(values.abs().max())
    for wrong in (math.inf, -math.inf):
        values[11, 5] = wrong
        assert largest_magnitude(values) == math.inf
    values[30, 2] = math.nan
    assert math.isnan(largest_magnitude(values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_rounded_as_torch_does(variant: str, dtype: torch.dtype) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32)
    if dtype == torch.float32:
        values = ((bits << 16) + 0x7FFF + (bits % 5 - 2)).view(torch.float32)
    else:
        values = bits.to(torch.int16).view(dtype)
    values = values[values.isfinite() & (values.abs().float() < 2.0**127)].view(1, -1)
    target = torch.empty(values.shape, dtype=torch.bfloat16)
    to_bfloat16(values, target)
    assert torch.equal(target.view(torch.int16), values.to(torch.bfloat16).view(torch.int16))


@pytest.mark.parametrize(("inputs", "gated"), [(64, True), (96, False), (131, False), (131, True)])
@pytest.mark.parametrize("name", ["bfloat16", *SCHEMES])
def test_rows_become_what_torch_makes_of_them(variant: str, name: str, inputs: int, gated: bool) -> None:
    scheme = None if name == "bfloat16" else parse_scheme(name)
    for dtype in DTYPES:
        values = noise(150, inputs, dtype)
        found, expected = (empty(150, inputs, panel_format(scheme), gated=gated) for _ in range(2))
        wide = torch.cat((values, values), 1)[:, :inputs]  # rows that lie apart
        for start, stop in ((0, 75), (75, 80), (80, 150)):
            load_rows(found, start, wide[start:stop])
        if scheme is None:
            expected.put(0, values.to(torch.bfloat16).contiguous())
        else:
            quantized = quantize(values.to(torch.bfloat16), scheme)
            expected.put_codes(0, quantized.codes, quantized.scales, quantized.zeros.float())
        assert torch.equal(found.memory, expected.memory), (name, dtype)


@pytest.mark.parametrize("top", [2.0**-120, 1.0, 2.0**100])
@pytest.mark.parametrize("name", ["int8:channel:sym", "int8:channel:asym", "int4:channel:sym", "int4:channel:asym"])
def test_codes_are_the_nearest_for_each_input_and_each_scale(variant: str, name: str, top: float) -> None:
    fractions = torch.arange(128, 256) / 128
    of_sizes = torch.cat([fractions * 2.0**-size for size in range(11)])
    values = (torch.minimum(of_sizes.unsqueeze(0), fractions.unsqueeze(1)) * top).to(torch.bfloat16)
    scheme = parse_scheme(name)
    values = torch.cat((values, -values), 1)  # [scales, inputs]
    if not scheme.symmetric:  # with all codes for one sign, as well
        values = torch.cat((values, values.abs(), -values.abs()))
    matrix = empty(*values.shape, panel_format(scheme))
    load_rows(matrix, 0, values)
    codes, scales, zeros = matrix.rows(0, len(values))
    expected = quantize(values, scheme)
    assert scales is not None and torch.equal(scales, expected.scales)
    assert len(scales.unique()) > 120 or top < 1  # where many have the smallest scale that there is
    assert zeros is None or top < 1 or (float(zeros.min()), float(zeros.max())) == (0, 2**scheme.bits - 1)
    assert torch.equal(codes, expected.codes)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_codes_come_out_of_panels_as_they_were_put_in(variant: str, name: str, gated: bool) -> None:
    scheme = parse_scheme(name)
    quantized = quantize(noise(150, 131), scheme)
    matrix = empty(150, 131, panel_format(scheme), gated=gated)
    matrix.put_codes(0, quantized.codes, quantized.scales, quantized.zeros.float())
    for first, count in ((0, 75), (75, 75), (90, 7)):
        panels = matrix.panels_of(first, count)
        part = matrix.memory[panels.start * matrix.panel_bytes : panels.stop * matrix.panel_bytes]
        for found in (matrix.rows(first, count), matrix.rows(first, count, part.clone())):
            rows = slice(first, first + count)
            assert torch.equal(found[0], quantized.codes[rows])
            assert found[1] is not None and torch.equal(found[1], quantized.scales[rows])
            assert (found[2] is None) == scheme.symmetric
            assert found[2] is None or torch.equal(found[2], quantized.zeros[rows].float())


@pytest.mark.parametrize("gated", [False, True])
def test_values_come_out_of_panels_as_they_were_put_in(variant: str, gated: bool) -> None:
    values = noise(150, 131, torch.bfloat16)
    matrix = empty(150, 131, PanelFormat(), gated=gated)
    matrix.put(0, values)
    assert torch.equal(matrix.rows(75, 75)[0], values[75:])


@pytest.mark.parametrize("gated", [False, True])
def test_threads_do_not_lose_codes_of_each_other_in_shared_bytes(variant: str, gated: bool) -> None:
    scheme = parse_scheme("int4:g32")
    values = noise(192, 64)
    expected = empty(192, 64, panel_format(scheme), gated=gated)
    load_rows(expected, 0, values)
    for _ in range(20):
        found = empty(192, 64, panel_format(scheme), gated=gated)
        rows = [range(start, min(start + 9, 192)) for start in range(0, 192, 9)]

        def work(mine: list[range], target: PanelMatrix = found) -> None:
            for part in mine:
                load_rows(target, part.start, values[part.start : part.stop])

        threads = [threading.Thread(target=work, args=(rows[index::4],)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(found.memory, expected.memory)


def filled(
    path: Path, values: torch.Tensor, form: PanelFormat, parts: list[range], columns: range, gated: bool
) -> PanelMatrix:
    """Return what fill_rows makes of columns of `values`, written to a file, with parts as its calls."""
    path.write_bytes(b"head" * 16 + values.view(torch.uint8).numpy().tobytes())
    matrix = empty(values.shape[0], len(columns), form, gated=gated)
    size = values.dtype.itemsize
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for part in parts:
            for skipped in (0, 5):  # of the first columns: read and left out, or not read
                start = columns.start - skipped
                source = FileRows(
                    descriptor=descriptor,
                    dtype=values.dtype,
                    offset=64 + (part.start * values.shape[1] + start) * size,
                    num_rows=len(part),
                    row_bytes=values.shape[1] * size,
                    num_read=len(columns) + skipped,
                    num_skipped=skipped,
                )
                scratch = torch.empty(source.scratch_bytes, dtype=torch.uint8)
                assert fill_rows(matrix, part.start, source, 2.0**40, scratch) == len(part)
    finally:
        os.close(descriptor)
    return matrix


@pytest.mark.parametrize(("inputs", "gated"), [(64, False), (131, True)])
@pytest.mark.parametrize("name", ["bfloat16", *SCHEMES])
def test_rows_of_a_file_become_the_same_panels(
    variant: str, tmp_path: Path, name: str, inputs: int, gated: bool
) -> None:
    form = panel_format(None if name == "bfloat16" else parse_scheme(name))
    for dtype in DTYPES:
        values = noise(150, 160, dtype)
        columns = range(7, 7 + inputs)
        expected = empty(150, inputs, form, gated=gated)
        for start in range(150):  # rows one by one take no whole half of a panel
            load_rows(expected, start, values[start : start + 1, columns.start : columns.stop])
        parts = [range(40), range(40, 75), range(75, 150)]
        assert torch.equal(filled(tmp_path / "file", values, form, parts, columns, gated).memory, expected.memory)


@pytest.mark.parametrize("name", ["int8", "int8:asym", "int4:channel:sym"])
def test_quotients_half_way_between_codes_are_rounded_as_a_division_does(variant: str, name: str) -> None:
    """Every bfloat16 significand over every one of a scale, in nine powers of two: all ties are among them."""
    scheme = parse_scheme(name)
    significands = torch.arange(128, 256, dtype=torch.float32)
    inputs = torch.cat([significands * 2.0**-power for power in range(9)])
    largest = significands.repeat(2) * torch.tensor([1.0, 2.0**-99]).repeat_interleave(128)
    rows = inputs * (largest / 255).log2().floor().exp2().unsqueeze(1)
    rows = torch.cat((rows.minimum(largest.unsqueeze(1)), -rows.minimum(largest.unsqueeze(1))), 1).to(torch.bfloat16)
    rows[:, 0] = largest.to(torch.bfloat16)
    found, expected = (empty(*rows.shape, panel_format(scheme)) for _ in range(2))
    load_rows(found, 0, rows)
    quantized = quantize(rows, scheme)
    expected.put_codes(0, quantized.codes, quantized.scales, quantized.zeros.float())
    assert torch.equal(found.memory, expected.memory)


@pytest.mark.parametrize("dtype", DTYPES)
def test_filling_stops_before_a_piece_with_a_value_that_no_model_has(
    variant: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    for wrong in (math.nan, -math.inf):
        values = torch.ones(16384, 64, dtype=dtype)
        values[16000, 63] = wrong
        path = tmp_path / "file"
        path.write_bytes(values.view(torch.uint8).numpy().tobytes())
        matrix = empty(16384, 64, PanelFormat())
        size = dtype.itemsize
        with path.open("rb") as file:
            for num_rows, least in ((16384, 4096), (16000, 16000)):
                source = FileRows(
                    descriptor=file.fileno(),
                    dtype=dtype,
                    offset=0,
                    num_rows=num_rows,
                    row_bytes=64 * size,
                    num_read=64,
                    num_skipped=0,
                )
                scratch = torch.empty(source.scratch_bytes, dtype=torch.uint8)
                assert least <= fill_rows(matrix, 0, source, 2.0**40, scratch) <= 16000
        path.write_bytes(path.read_bytes()[: 100 * 64 * size])
        with path.open("rb") as file:
            cut = replace(source, descriptor=file.fileno())
            assert fill_rows(matrix, 0, cut, 2.0**40, scratch) < 100


@pytest.mark.parametrize("name", ["bfloat16", "int8", "int4:g64:sym"])
@pytest.mark.parametrize("wrong", [math.nan, -math.nan, math.inf, 2.0**41, -(2.0**41)])
def test_filling_leaves_the_piece_of_a_wrong_value_wherever_it_is(
    variant: str, tmp_path: Path, name: str, wrong: float
) -> None:
    """In the first or last input of a row, in whole halves of panels and in rows left over, from two source types."""
    form = panel_format(None if name == "bfloat16" else parse_scheme(name))
    path = tmp_path / "file"
    for dtype in (torch.bfloat16, torch.float32):
        for row, column in ((0, 0), (37, 99), (64, 50), (95, 99)):
            values = torch.full((96 + 7, 100), 2.0**40, dtype=dtype)
            matrix = empty(*values.shape, form)
            source = FileRows(
                descriptor=-1,
                dtype=dtype,
                offset=0,
                num_rows=103,
                row_bytes=100 * dtype.itemsize,
                num_read=100,
                num_skipped=0,
            )
            scratch = torch.empty(source.scratch_bytes, dtype=torch.uint8)
            for place, expected in (((row, column), 0), ((102, column), 0), (None, 103)):
                stored = values.clone()
                if place is not None:
                    stored[place] = wrong
                path.write_bytes(stored.view(torch.uint8).numpy().tobytes())
                with path.open("rb") as file:
                    found = fill_rows(matrix, 0, replace(source, descriptor=file.fileno()), 2.0**40, scratch)
                assert found == expected, (dtype, place)
