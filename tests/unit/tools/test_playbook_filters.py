"""The playbooks' filters: typing errors in an inventory, kernel lists, model manifests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.tools.loading import ROOT, load_script

filters = load_script("playbooks/filter_plugins/corebound.py")

OPTIONS = {"corebound": ["corebound_prefix"], "runtime": ["runtime_prefix", "runtime_python"]}


def test_a_misspelt_variable_gets_the_nearest_name() -> None:
    assert filters.unknown_variables(["runtime_prefx", "ansible_host"], OPTIONS) == [
        "unknown variable runtime_prefx: did you mean runtime_prefix?"
    ]


def test_a_strange_variable_gets_the_list() -> None:
    assert filters.unknown_variables(["runtime_qqqqqq"], OPTIONS) == [
        "unknown variable runtime_qqqqqq: there are: runtime_prefix, runtime_python"
    ]


def test_known_variables_and_those_of_others_pass() -> None:
    assert filters.unknown_variables(["runtime_prefix", "corebound_prefix", "site_name"], OPTIONS) == []


def test_every_variable_of_the_default_inventory_is_known() -> None:
    import yaml

    options = filters.role_options(str(ROOT / "playbooks/roles"))
    for path in sorted((ROOT / "inventories/defaults/group_vars/all").glob("*.yml")):
        names = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert filters.unknown_variables(names, options) == [], path.name


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3", 4), ("0-3,8,10-11\n", 7), ("", 0), ("\n", 0)])
def test_ids_are_counted(text: str, count: int) -> None:
    assert filters.count_ids(text) == count


@given(st.sets(st.integers(min_value=0, max_value=300)))
def test_single_ids_count_as_many_as_they_are(ids: set[int]) -> None:
    assert filters.count_ids(",".join(str(number) for number in sorted(ids))) == len(ids)


def test_checksums_are_relative_to_the_folder() -> None:
    found = [{"path": "/m/demo/a/b.json", "checksum": "x"}]
    assert filters.checksums(found, "/m/demo") == {"a/b.json": "x"}


def test_files_behind_links_belong_to_the_tree_and_hidden_ones_do_not(tmp_path: Path) -> None:
    """A snapshot in a Hugging Face cache holds links only, and was found empty."""
    blob = tmp_path / "blobs/abc"
    snapshot = tmp_path / "snapshots/main"
    blob.parent.mkdir()
    snapshot.mkdir(parents=True)
    blob.write_bytes(b"{}")
    (snapshot / "config.json").symlink_to(blob)
    (snapshot / ".lock").write_bytes(b"")
    (snapshot / "modeling.py").write_bytes(b"")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert filters.tree_checksums(str(snapshot)) == {"config.json": digest}
    assert filters.tree_checksums(str(tmp_path / "absent")) == {}


def test_missing_and_changed_files_are_damaged() -> None:
    manifest = json.dumps({"files": {"a": {"sha256": "1"}, "b": {"sha256": "2"}, "c": {"sha256": "3"}}})
    assert filters.damaged(manifest, {"a": "1", "b": "other"}) == ["b", "c"]


@pytest.mark.parametrize(
    ("name", "num_next", "expected"),
    [("a", 2, ["b", "c"]), ("c", 2, ["a", "b"]), ("b", 9, ["c", "a"]), ("a", 0, [])],
)
def test_the_next_in_a_ring_wrap_around_and_leave_out_the_node_itself(
    name: str, num_next: int, expected: list[str]
) -> None:
    assert filters.next_in_ring(["a", "b", "c"], name, num_next) == expected


def test_a_ring_of_one_has_no_next() -> None:
    assert filters.next_in_ring(["alone"], "alone", 2) == []


def test_the_wheels_of_one_group_are_looked_up_in_a_bundle() -> None:
    files = {"wheels/runtime/a.whl": {"sha256": "1"}, "wheels/control/b.whl": {"sha256": "2"}, "a.whl": {"sha256": "3"}}
    assert filters.bundle_wheels(json.dumps({"files": files}), "runtime") == {"a.whl": "1"}


def test_each_differing_file_is_a_sentence() -> None:
    assert filters.differences({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}) == [
        "b: expected 2, found 9",
        "c: expected 3, found no such file",
        "d: expected no such file, found 4",
    ]


@pytest.mark.parametrize(
    ("skew_s", "within_s", "status", "said"),
    [
        (0.2, 0.1, "pass", "0.2 s ahead of"),
        (3600.0, 0.3, "fail", "3600.0 s ahead of that of this machine (measured within 0.3 s), expected at most 5 s"),
        (-3600.0, 0.3, "fail", "3600.0 s behind"),
        (9.0, 6.0, "pass", "measured within 6.0 s"),
    ],
)
def test_a_clock_is_wrong_only_beyond_what_the_measurement_allows(
    skew_s: float, within_s: float, status: str, said: str
) -> None:
    found = filters.clock_check(skew_s, within_s, 5)
    assert found["status"] == status
    assert said in found["detail"]


def test_a_policy_makes_a_failure_milder_or_leaves_the_check_out() -> None:
    failed = [{"name": name, "status": "fail", "detail": "", "hint": ""} for name in ("a", "b", "c", "d", "e")]
    passed = {"name": "f", "status": "pass", "detail": "", "hint": ""}
    found = filters.judged([*failed, passed], {"b": "warn", "c": "off", "d": False, "f": "warn"})
    assert [(check["name"], check["status"]) for check in found] == [
        ("a", "fail"),
        ("b", "warn"),
        ("e", "fail"),
        ("f", "pass"),
    ]


def test_passwords_in_urls_are_blanked_out() -> None:
    said = "Looking in indexes: https://me:secret@host/simple, https://host/x\nemail a@b"
    assert filters.without_passwords(said) == "Looking in indexes: https://****@host/simple, https://host/x\nemail a@b"
