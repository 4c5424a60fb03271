from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.errors import ConfigError
from corebound.launcher.envfile import PLACES, env_files, parse_env, read_env_files


def test_comments_blank_lines_and_equals_signs_in_values() -> None:
    """`.deepspeed_env`: "a blank or comment line raises (unpack error)"; now it does not."""
    text = "# first\n\nA=1\n  B = two words  \nURL=http://h/?a=b&c=#d\nexport C=3 # three\nEMPTY=\n#D=4\n"
    assert parse_env(text, "f") == {
        "A": "1", "B": "two words", "URL": "http://h/?a=b&c=#d", "C": "3", "EMPTY": "",
    }  # fmt: skip


def test_values_are_taken_as_they_are() -> None:
    """#5878, #1907, #1747: "values quoted with double quotes only; no escaping of `$`, `"` or backticks"."""
    text = "A=$HOME `id` \\n\nB=\" padded # $x \"\nC='it''s'\nD=say \"hi\"\nE='\"'  # a quote\n"
    values = parse_env(text, "f")
    assert values == {"A": "$HOME `id` \\n", "B": " padded # $x ", "C": "it''s", "D": 'say "hi"', "E": '"'}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("NOTHING", "expected NAME=VALUE, found no ="),
        ("1A=x", "found no name in front of the ="),
        ("=x", "found no name in front of the ="),
        ('A="open', 'the quote " is not closed'),
        ("A='x' y", "the quote ' is not closed, or text follows it"),
        ("A=\0", "NUL"),
        ("MASTER_PORT=1", "MASTER_PORT is the launcher's to set"),
        ("RANK=0", "RANK is the launcher's to set"),
    ],
)
def test_a_line_that_does_not_fit_is_named_with_its_number(line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match="my file, line 3: ") as caught:
        parse_env(f"A=1\n\n{line}\n", "my file")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ['HF_TOKEN="hf_secret', "AWS_SESSION_TOKEN hf_secret==", "hf_secret/x==", "HF_TOKEN hf_secret", "hf_secret\0="],
)
def test_an_error_never_shows_a_value(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_env(line, "f")
    assert "hf_secret" not in caught.value.render()


def test_the_working_directory_wins_over_home_and_our_name_over_deepspeeds(tmp_path: Path) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    for folder in (home, cwd):
        folder.mkdir()
        for name in (".deepspeed_env", ".corebound_env"):
            (folder / name).write_text(f"A={folder.name} {name}\n{folder.name.upper()}_{name[1:]}=1\n")
    paths = env_files({"HOME": str(home)}, cwd)
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "home/.deepspeed_env", "home/.corebound_env", "cwd/.deepspeed_env", "cwd/.corebound_env",
    ]  # fmt: skip
    assert read_env_files(paths)["A"] == "cwd .corebound_env"
    assert len(read_env_files(paths)) == 5
    assert env_files({"HOME": str(cwd)}, cwd) == paths[2:]
    assert env_files({}, tmp_path) == []


def test_deepspeeds_variable_names_another_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("A=1\n")
    (tmp_path / ".deepspeed_env").write_text("A=2\n")
    assert env_files({"DS_ENV_FILE": "mine"}, tmp_path) == [tmp_path / "mine"]
    assert env_files({"DS_ENV_FILE": str(tmp_path / "mine")}, tmp_path / "x") == [tmp_path / "mine"]


def test_a_named_file_that_is_nowhere_is_an_error_with_the_places(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path / "home"), "DS_ENV_FILE": "mine"}
    (tmp_path / ".corebound_env").write_text("A=1\n")
    with pytest.raises(ConfigError, match="DS_ENV_FILE=mine") as caught:
        env_files(environ, tmp_path)
    assert f"looked for {tmp_path / 'home/mine'}, {tmp_path / 'mine'}" in str(caught.value)
    with pytest.raises(ConfigError, match=f"looked for {tmp_path / 'x'}\n"):
        env_files({**environ, "DS_ENV_FILE": str(tmp_path / "x")}, tmp_path)


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".corebound_env").symlink_to("gone")
    with pytest.raises(ConfigError, match="No such file"):
        read_env_files(env_files({}, tmp_path))


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".corebound_env"
    path.write_text("LD_PRELOAD=/tmp/evil.so\n")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="others can write it"):
        read_env_files([path])
    path.chmod(0o640)
    assert read_env_files([path]) == {"LD_PRELOAD": "/tmp/evil.so"}


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigError, match="expected text in UTF-8"):
        read_env_files([tmp_path / "bytes"])
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_env_files([tmp_path])


@given(st.text())
def test_any_text_is_variables_or_a_config_error(text: str) -> None:
    try:
        values = parse_env(text, "f")
    except ConfigError:
        return
    assert all(name.isidentifier() and name.isascii() and "\0" not in value for name, value in values.items())
    assert not PLACES & values.keys()
