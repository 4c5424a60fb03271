"""check_repository.py: each rule finds what it is for, and the repository itself passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.tools.loading import load_script

script = load_script(".ci/check_repository.py")


@pytest.fixture
def role(tmp_path: Path) -> Path:
    """Returns a role that keeps every rule."""
    texts = {
        "defaults/main.yml": "demo_path: /x\n",
        "meta/argument_specs.yml": "argument_specs: {main: {options: {demo_path: {description: A path}}}}\n",
        "tasks/main.yml": "[]\n",
        "README.md": "`demo_path`\n",
    }
    for name, text in texts.items():
        (tmp_path / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "demo" / name).write_text(text, encoding="utf-8")
    return tmp_path / "demo"


def test_a_role_that_keeps_the_rules_has_no_problem(role: Path) -> None:
    assert list(script.role_problems(role.parent)) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("defaults/main.yml", "demo_path: /x\ndemo_more: 1\n", "demo_more is in defaults/main.yml but not in"),
        ("defaults/main.yml", "{}\n", "demo_path is in meta/argument_specs.yml but not in defaults"),
        ("README.md", "nothing\n", "demo_path is not in README.md"),
        (
            "meta/argument_specs.yml",
            "argument_specs: {main: {options: {path: {}}}}\n",
            "does not start with the role",
        ),
    ],
)
def test_a_role_that_breaks_a_rule_is_named(role: Path, name: str, text: str, problem: str) -> None:
    (role / name).write_text(text, encoding="utf-8")
    assert any(problem in line for line in script.role_problems(role.parent))


def test_a_role_without_readme_is_named(role: Path) -> None:
    (role / "README.md").unlink()
    assert list(script.role_problems(role.parent)) == ["demo: missing README.md"]


def test_a_large_file_is_named_unless_it_is_the_demo_model(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (script.LARGEST_BYTES + 1))
    assert "500001 bytes" in next(script.file_problems("docs/big", tmp_path / "big", []))
    assert list(script.file_problems("runtime/corebound/demo/model.safetensors", tmp_path / "big", [])) == []


def test_a_place_of_this_machine_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("fine\nsee /somewhere/checkout/x\n", encoding="utf-8")
    problems = list(script.file_problems("a.md", tmp_path / "a.md", ["/somewhere/checkout/"]))
    assert len(problems) == 1 and problems[0].startswith("a.md:2:")


def test_variables_and_their_documentation_must_agree(tmp_path: Path) -> None:
    (tmp_path / "runtime/corebound/config").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    source = 'VARIABLES: dict[str, str] = {"COREBOUND_A": "a", "COREBOUND_B": f"b {1}"}\n'
    (tmp_path / "runtime/corebound/config/env.py").write_text(source, encoding="utf-8")
    (tmp_path / "docs/configuration.md").write_text("`COREBOUND_A` and `COREBOUND_C`\n", encoding="utf-8")
    assert list(script.documentation_problems(tmp_path)) == [
        "docs/configuration.md: COREBOUND_B is missing",
        "docs/configuration.md: COREBOUND_C is not a variable that Corebound reads",
    ]


def test_the_roles_of_this_repository_keep_the_rules() -> None:
    assert list(script.role_problems(script.ROOT / "playbooks/roles")) == []
