"""What is kept of a failure: the node's own words, trimmed, never a secret."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from smoke import evidence
from smoke.checks import Check, Group, judged
from smoke.node import Answer, Node
from unit.tools.smoke_nodes import target


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("HF_TOKEN=abcdefgh1234", "HF_TOKEN=***"),
        ("COREBOUND_AGENT_SECRET: 0123456789abcdef", "COREBOUND_AGENT_SECRET: ***"),
        ("Authorization: Bearer abc.def.ghi", "Authorization: ***"),
        ('{"api_key": "verysecret", "a": 1}', '{"api_key": ***, "a": 1}'),
        ("fetched with hf_AbCdEfGhIjKlMn today", "fetched with *** today"),
        ("password=hunter22", "password=***"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----", "***"),
        ("num_prompt_tokens: 12", "num_prompt_tokens: 12"),
        ("rank 1 on node2 was killed by SIGKILL", "rank 1 on node2 was killed by SIGKILL"),
    ],
)
def test_secrets_are_replaced_and_all_else_stays(line: str, kept: str) -> None:
    assert evidence.without_secrets(line) == kept


def test_a_long_text_keeps_its_last_lines_and_says_what_is_missing() -> None:
    text = evidence.trimmed("\n".join(f"line {number}" for number in range(1000)))
    assert text.startswith("[800 lines before]\nline 800\n") and text.endswith("line 999\n")
    assert len(evidence.trimmed("x" * 10_000)) < 3000


def failure(host: str, group: Group) -> Check:
    """Returns a failed check with the answer that it was judged by."""
    answer = Answer(exit_code=4, stdout="", stderr="the reason is here", command="corebound generate")
    return judged(host, group, f"{group} works", False, "it does not", answer)


class Speaking(Node):
    """A node whose journal and logs are made up."""

    def run_as_root(self, words: Sequence[str], timeout_s: float | None = None) -> Answer:
        """Returns a line of each source; its kernel had no memory left."""
        if "--dmesg" in words:
            return Answer(exit_code=0, stdout="eth0: link up\nOut of memory: Killed process 12 (python)\n", stderr="")
        if words[0] == "sh":
            return Answer(exit_code=0, stdout=f"==> {words[-1]}-generate/rank0.log <==\nrank 0 says why\n", stderr="")
        return Answer(exit_code=1, stdout="", stderr="No journal files were opened", command="journalctl")


class Lost(Node):
    """A node that does not answer any more."""

    def run_as_root(self, words: Sequence[str], timeout_s: float | None = None) -> Answer:
        """Returns nothing."""
        self.lost = "cannot reach it"
        return Answer(exit_code=-1, stdout="", stderr=self.lost)


def test_a_node_says_what_its_journal_kernel_and_ranks_wrote() -> None:
    found = evidence.node_evidence(target(), "/tmp/smoke-1", Speaking)
    assert found == {
        "journal-ssh": "not readable: journalctl\nNo journal files were opened",
        "journal-kernel": "Out of memory: Killed process 12 (python)",
        "rank-logs": "==> /tmp/smoke-1-generate/rank0.log <==\nrank 0 says why",
    }


def test_a_lost_node_has_nothing_to_say() -> None:
    assert evidence.node_evidence(target(), "/tmp/smoke-1", Lost) == {}


def test_rank_logs_are_read_from_every_launch_of_the_run(tmp_path: Path) -> None:
    for what in ("generate", "binding"):
        (tmp_path / f"run-{what}").mkdir()
        (tmp_path / f"run-{what}" / "rank0.log").write_text(f"{what} says why\n", encoding="utf-8")
    found = evidence.node_evidence(target(), str(tmp_path / "run"))["rank-logs"]
    assert "generate says why" in found and "binding says why" in found


def test_files_are_kept_for_what_failed_and_of_every_node_for_a_launch_across_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "node_evidence", lambda target, _: {"rank-logs": f"of {target.host}"})
    good = judged("b", "doctor", "doctor is well", True, "fine")
    targets = [target(host="a"), target(host="b")]
    stale = tmp_path / "evidence/old/of-yesterday.txt"
    stale.parent.mkdir(parents=True)
    stale.write_text("yesterday", encoding="utf-8")
    checks = [good, failure("a", "tokens"), failure("a", "doctor")]
    kept = evidence.collect(checks, targets, "/tmp/smoke-1", tmp_path, everywhere=True)
    assert kept[0].evidence == ()
    assert kept[1].evidence == (
        "evidence/a/tokens-works.txt",
        "evidence/a/rank-logs.txt",
        "evidence/b/rank-logs.txt",
    )
    assert kept[2].evidence == ("evidence/a/doctor-works.txt", "evidence/a/rank-logs.txt")
    assert "the reason is here" in (tmp_path / kept[1].evidence[0]).read_text(encoding="utf-8")
    assert not stale.exists()
    assert evidence.collect([good], targets, "/tmp/smoke-1", tmp_path, everywhere=False)[0].evidence == ()
    assert not (tmp_path / "evidence").exists()
