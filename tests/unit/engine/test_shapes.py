"""Models of a shape for benchmarks: whole, of the right size, and written once."""

import pytest

from corebound.engine.bench import shapes
from corebound.models import describe

TINY = shapes.SHAPES["llama-1.1b"] | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def test_a_shape_is_a_model_that_can_be_described(tiny, tmp_path):
    said = []
    path = shapes.write_shape("tiny", tmp_path / "cache", said.append)
    description = describe(path, tokenizer=False)
    assert (description.hidden_size, description.num_layers, description.num_kv_heads) == (64, 2, 2)
    assert description.dtype == "bfloat16"
    assert len(said) == 1 and str(path) in said[0]


def test_a_shape_is_written_once(tiny, tmp_path):
    path = shapes.write_shape("tiny", tmp_path, lambda text: None)
    written_ns = (path / "model.safetensors").stat().st_mtime_ns
    assert shapes.write_shape("tiny", tmp_path, pytest.fail) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == written_ns


def test_what_was_not_finished_is_not_left_behind(tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes, "_write_safetensors", fail)
    with pytest.raises(OSError, match="No space"):
        shapes.write_shape("tiny", tmp_path, lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_the_acceptance_shape_has_1_1_billion_weights():
    sizes = shapes._parameter_shapes(shapes.SHAPES["llama-1.1b"])
    count = 0
    for size in sizes.values():
        product = 1
        for length in size:
            product *= length
        count += product
    assert count == 1_100_048_384
