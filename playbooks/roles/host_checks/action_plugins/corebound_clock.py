"""Compares a node's clock with that of the machine that runs Ansible, by one question and one answer.

No task can do that on its own: the time of the question and of the answer belong to the same host's turn.
"""

from __future__ import annotations

import shlex
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no annotations
    """Returns `skew_s`, by how much the node's clock is ahead (below 0: behind), and `within_s`, how sure that is."""

    _supports_check_mode = True
    _VALID_ARGS = frozenset({"python"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the node for its time, twice: the first answer may have had to wait for a connection."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        python = shlex.quote(str(self._task.args.get("python", "python3")))
        answers = [self._ask(f"{python} -c 'import time; print(time.time())'") for _ in range(2)]
        skew_s, within_s = min(answers, key=lambda answer: answer[1])
        return {**result, "changed": False, "skew_s": round(skew_s, 3), "within_s": round(within_s, 3)}

    def _ask(self, command: str) -> tuple[float, float]:
        asked_s = time.time()
        answer = self._low_level_execute_command(command)
        answered_s = time.time()
        try:
            node_s = float(answer["stdout"].split()[-1])
        except (ValueError, IndexError):
            raise AnsibleActionFail(f"{command}: no time came back: {answer['stdout']}{answer['stderr']}") from None
        return node_s - (asked_s + answered_s) / 2, (answered_s - asked_s) / 2
