"""The model directory that is shipped: complete, unaltered and small."""

import hashlib
import json
from pathlib import Path

import pytest

import corebound

DEMO_DIR = Path(corebound.__file__).parent / "demo"
MANIFEST: dict[str, dict[str, object]] = json.loads((DEMO_DIR / "corebound-manifest.json").read_text())["files"]


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_a_listed_file_has_the_size_and_hash_of_the_manifest(name: str) -> None:
    content = (DEMO_DIR / name).read_bytes()
    assert len(content) == MANIFEST[name]["bytes"]
    assert hashlib.sha256(content).hexdigest() == MANIFEST[name]["sha256"]


def test_the_manifest_lists_every_file_but_itself_and_the_readme() -> None:
    present = {path.name for path in DEMO_DIR.iterdir() if path.is_file()}
    assert present - {"corebound-manifest.json", "README.md"} == set(MANIFEST)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(MANIFEST)


def test_the_weights_stay_below_six_megabytes() -> None:
    assert (DEMO_DIR / "model.safetensors").stat().st_size < 6_000_000


def test_heads_vocabulary_and_mlp_divide_among_one_to_four_ranks() -> None:
    config = json.loads((DEMO_DIR / "config.json").read_text())
    for num_ranks in (1, 2, 3, 4):
        assert config["n_head"] % num_ranks == 0
        assert config["vocab_size"] % num_ranks == 0
        assert 4 * config["hidden_size"] % num_ranks == 0


def test_the_readme_states_the_figures_of_the_training_run() -> None:
    figures = json.loads((DEMO_DIR / "training.json").read_text())
    readme = (DEMO_DIR / "README.md").read_text()
    for key in ("held_out_perplexity_float32", "held_out_perplexity_bfloat16", "training_s", "training_loss"):
        assert str(figures[key]) in readme, key
