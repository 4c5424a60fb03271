"""corebound shard: what it prints, and which exit codes mistakes have."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from corebound import kernels
from corebound.cli.main import main
from corebound.models.manifest import SHARDS_FILE
from fixtures.tiny_models import build_bloom


@pytest.fixture
def native():
    with kernels.forced(mode="native"):
        yield


@pytest.mark.native
def test_it_says_what_was_written_and_keeps_it_the_second_time(tmp_path, capsys, native):
    command = ["shard", "--model", "demo", "--output", str(tmp_path / "out"), "--num_ranks", "2", "--dtype", "int4"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"{tmp_path / 'out'}: demo as int4:g128:asym for 2 ranks, 2.29")
    assert "written in" in first
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("rank-*"))
    assert (facts["weights"], facts["num_ranks"], facts["written"]) == ("int4:g128:asym", 2, False)
    assert main([*command, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] is True


@pytest.mark.native
def test_exit_codes_are_those_of_all_verbs(tmp_path, capsys, native):
    command = ["shard", "--model", "demo", "--output", str(tmp_path / "out")]
    assert main([*command, "--dtype", "float32"]) == 2
    assert main([*command, "--dtype", "int5"]) == 2
    assert main([*command, "--num-ranks", "13"]) == 6
    capsys.readouterr()
    assert main(["shard", "--model", "demo", "--output", "/proc/out"]) == 3
    assert "hint: name a directory on a disk that this user may write to" in capsys.readouterr().err
    assert main(["shard", "--model", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 6
    assert main(command) == 0
    capsys.readouterr()
    generate = ["generate", "--model", str(tmp_path / "out"), "--prompt", "a"]
    assert main([*generate, "--num-accelerators", "2"]) == 6
    assert "written for 1 rank, found a launch of 2 ranks" in capsys.readouterr().err
    assert main([*generate, "--dtype", "int8", "--num-accelerators", "1"]) == 2
    bench = ["bench", "generate", "--model", str(tmp_path / "out"), "--num-ranks", "1"]
    assert main([*bench, "--compare", "transformers"]) == 2
    assert main(["bench", "quality", "--model", str(tmp_path / "out")]) == 2
    (tmp_path / "out" / SHARDS_FILE).write_text("[]")
    assert main([*generate, "--num-accelerators", "1"]) == 6


@pytest.mark.native
def test_what_was_written_for_some_ranks_is_written_for_others(tmp_path, capsys, native):
    for model, output, num_ranks in (("demo", "two", 2), (tmp_path / "two", "three", 3), ("demo", "direct", 3)):
        command = ["shard", "--model", str(model), "--output", str(tmp_path / output), "--num-ranks", str(num_ranks)]
        assert main(command) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "three").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "direct").iterdir()}


@pytest.mark.native
def test_pickled_weights_need_the_flag(tmp_path, capsys, native):
    source = build_bloom(tmp_path / "bloom", tokenizer=True)
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    command = ["shard", "--model", str(source), "--output"]
    assert main([*command, str(tmp_path / "from-safetensors"), "--allow-pickled-weights"]) == 0
    (source / "model.safetensors").unlink()
    capsys.readouterr()
    assert main([*command, str(tmp_path / "refused")]) == 6
    assert "--allow-pickled-weights" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "from-pickle"), "--allow-pickled-weights"]) == 0
    name = "rank-00000-of-00001.safetensors"
    assert (tmp_path / "from-pickle" / name).read_bytes() == (tmp_path / "from-safetensors" / name).read_bytes()
    for verb in ("generate", "serve"):
        prompt = ["--prompt", "a"] if verb == "generate" else []
        assert main([verb, "--model", str(source), *prompt, "--num-accelerators", "1"]) == 6
        assert "--allow-pickled-weights" in capsys.readouterr().err


@pytest.mark.native
@pytest.mark.parametrize("word", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(tmp_path, word):
    script = (
        # A shell that starts tests in the background has them ignore SIGINT, and so whatever they start.
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from corebound.models import shard_writing as w; from corebound.cli.main import main; "
        "w._put_in_place = lambda *_: time.sleep(60); "
        f"sys.exit(main(['shard', '--model', 'demo', '--output', {str(tmp_path / 'out')!r}]))"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(f".out-*/{SHARDS_FILE}")) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(word)
    assert process.wait(60) == 128 + word
    assert list(tmp_path.iterdir()) == []
