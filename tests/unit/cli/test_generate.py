"""corebound generate, up to the launch: what reaches the ranks, and what is refused before any of them starts."""

import json
import shutil
import subprocess
import sys

import pytest

from corebound.cli import generate as module
from corebound.cli.main import main
from corebound.launcher import LaunchOutcome
from corebound.launcher.events import Failure
from corebound.models import resolve_model


@pytest.fixture
def launched(monkeypatch):
    """The specs that would have been launched."""
    specs = []
    monkeypatch.setattr(module, "run_launch", lambda spec: specs.append(spec) or LaunchOutcome())
    return specs


@pytest.fixture
def model_dir(tmp_path):
    """A copy of the demo model that a test may damage."""
    path = tmp_path / "model"
    shutil.copytree(resolve_model("demo"), path)
    (path / "corebound-manifest.json").unlink(missing_ok=True)
    return path


def job_of(spec):
    return json.loads(spec.rank0_stdin)


def test_a_job_carries_prompts_and_sampling_to_rank_0(launched, model_dir):
    sampling = ["--temperature", "0.5", "--top-k", "7", "--top-p", "0.9", "--seed", "3", "--repetition-penalty", "1.1"]
    limits = ["--max-new-tokens", "9", "--stop", "END", "--kv-cache-gib", "0.5", "--num-accelerators", "2"]
    prompts = ["--prompt", "a", "--prompt", "b"]
    code = main(["generate", "--model", str(model_dir), *prompts, *sampling, *limits, "--json"])
    assert code == 0
    job = job_of(launched[0])
    assert (job["model"], job["dtype"], job["prompts"]) == (str(model_dir), "bfloat16", ["a", "b"])
    assert (job["kv_cache_gib"], job["as_json"]) == (0.5, True)
    asked = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.1, "max_new_tokens": 9}
    assert asked.items() <= job["params"].items()
    assert job["params"]["stop"] == ["END"]
    assert launched[0].num_accelerators == 2


def test_binding_is_on_unless_it_is_switched_off(launched, model_dir):
    command = ["generate", "--model", str(model_dir), "--prompt", "a"]
    assert main(command) == main([*command, "--no-bind"]) == main([*command, "--bind_cores_to_rank"]) == 0
    assert [spec.bind_cores_to_rank for spec in launched] == [None, False, True]


def test_flags_are_the_same_with_dashes_and_underscores(launched, model_dir):
    command = ["generate", "--model", str(model_dir), "--prompt", "a"]
    assert main([*command, "--max_new_tokens", "3", "--num-accelerators", "1"]) == 0
    assert main([*command, "--max-new-tokens", "3", "--num_accelerators", "1"]) == 0
    assert launched[0].num_accelerators == launched[1].num_accelerators == 1
    assert job_of(launched[0])["params"] == job_of(launched[1])["params"]


def test_the_demo_model_is_the_default_and_is_said_to_be(launched, capsys):
    assert main(["generate", "--prompt", "a", "--num-accelerators", "1"]) == 0
    assert job_of(launched[0])["model"] == str(resolve_model("demo"))
    captured = capsys.readouterr()
    assert "no --model given: using the bundled demo model" in captured.err
    assert captured.out == ""


def test_a_prompt_file_has_one_prompt_a_line(launched, model_dir, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("first line\n\n  second\n", encoding="utf-8")
    assert main(["generate", "--model", str(model_dir), "--prompt-file", str(file)]) == 0
    assert job_of(launched[0])["prompts"] == ["first line", "  second"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--prompt", "a", "--max-new-token", "3"], 2, "--max-new-tokens"),
        (["--prompt", "a", "--temprature", "1"], 2, "--temperature"),
        ([], 2, "no prompt given"),
        (["--prompt", "a", "--prompt-file", "f"], 2, "cannot be used together"),
        (["--prompt-file", "/no/such/file"], 2, "--prompt-file /no/such/file: No such file"),
        (["--prompt", "a", "--dtype", "int8:x"], 2, "unknown part 'x'"),
        (["--prompt", "a", "--dtype", "bfloat61"], 2, "`bfloat16`"),
        (["--prompt", "a", "--top-p", "1.5"], 2, "top_p: expected above 0 and at most 1, found 1.5"),
        (["--prompt", "a", "--max-new-tokens", "0"], 2, "max_new_tokens: expected 1 or more"),
        (["--prompt", "a", "--kv-cache-gib", "-1"], 2, "--kv-cache-gib: expected a size above 0"),
        (["--prompt", "a", "--hostfile", "/no/such/hostfile"], 2, "/no/such/hostfile"),
        (["--prompt", "a", "--num-accelerators", "0"], 2, "--num_accelerators: expected a number from 1"),
        (["--prompt", "a", "--launcher", "loacl"], 2, "`local`"),
        (["--prompt", "a", "--model", "/no/such/model"], 6, "/no/such/model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_flag_is_one_clear_error(launched, model_dir, capsys, flags, code, message):
    command = ["generate", *(["--model", str(model_dir)] if "--model" not in flags else []), *flags]
    assert main(command) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert launched == []


def cut(path):
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate((path / "model.safetensors").stat().st_size // 2)


def flip(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[12] ^= 0x80  # in the header, which is JSON
    (path / "model.safetensors").write_bytes(data)


def flip_listed_weight(path):
    # A weight that stays plausible: only the manifest can tell.
    shutil.copy(resolve_model("demo") / "corebound-manifest.json", path)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-100] ^= 0x01
    (path / "model.safetensors").write_bytes(data)


def rename_architecture(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["BlomForCausalLM"]}))


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (cut, "model.safetensors", ""),
        (flip, "model.safetensors", ""),
        (flip_listed_weight, "model.safetensors", "SHA-256"),
        (rename_architecture, "config.json", "`BloomForCausalLM`"),
        (lambda path: (path / "config.json").unlink(), "config.json", ""),
        (lambda path: (path / "config.json").write_text("{"), "config.json", ""),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer", "missing"),
        (lambda path: (path / "model.safetensors").unlink(), "safetensors", ""),
    ],
    ids=[
        "cut weights",
        "flipped header",
        "flipped weight",
        "architecture",
        "no config",
        "bad config",
        "no tokenizer",
        "no weights",
    ],
)
def test_a_damaged_model_is_an_error_that_names_the_file_before_any_rank_starts(
    launched, model_dir, capsys, damage, file, message
):
    damage(model_dir)
    assert main(["generate", "--model", str(model_dir), "--prompt", "a"]) == 6
    error = capsys.readouterr().err
    assert str(model_dir) in error and file in error and message in error
    assert error.count("error:") == 1
    assert launched == []


def test_ranks_that_do_not_divide_name_the_counts_that_would_work(launched, model_dir, capsys):
    assert main(["generate", "--model", str(model_dir), "--prompt", "a", "--num-accelerators", "13"]) == 6
    error = capsys.readouterr().err
    assert "13 ranks" in error and "1" in error.partition("hint:")[2]
    assert launched == []


def outcome_of(exit_code, **fields):
    failure = {"host": "here", "exit_code": exit_code, "reason": "died", "rank": 1, **fields}
    return LaunchOutcome(exit_code=exit_code, failure=Failure(**failure))


def test_a_failed_rank_is_reported_and_its_code_is_ours(monkeypatch, model_dir, capsys):
    monkeypatch.setattr(module, "run_launch", lambda spec: outcome_of(137))
    assert main(["generate", "--model", str(model_dir), "--prompt", "a"]) == 137
    assert "rank 1 on here died" in capsys.readouterr().err


def test_a_refused_request_is_not_reported_as_a_failed_rank(monkeypatch, model_dir, capsys):
    # Rank 0 has printed the reason by then.
    monkeypatch.setattr(module, "run_launch", lambda spec: outcome_of(2, tail=("too long",)))
    assert main(["generate", "--model", str(model_dir), "--prompt", "a"]) == 2
    assert "died" not in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"rank": None}, {"tail": ()}])
def test_a_refusal_that_nobody_has_printed_yet_is_reported(monkeypatch, model_dir, capsys, fields):
    monkeypatch.setattr(module, "run_launch", lambda spec: outcome_of(2, **fields))
    assert main(["generate", "--model", str(model_dir), "--prompt", "a"]) == 2
    assert "on here died" in capsys.readouterr().err


def test_everything_before_the_launch_works_without_torch():
    script = (
        "import sys\n"
        "from corebound.cli import generate\n"
        "from corebound.launcher import LaunchOutcome\n"
        "generate.run_launch = lambda spec: LaunchOutcome()\n"
        "from corebound.cli.main import main\n"
        "assert main(['generate', '--model', 'demo', '--prompt', 'a', '--num-accelerators', '1']) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})
