from __future__ import annotations

import pytest

from corebound.launcher import agent
from corebound.launcher.binding import arrange
from corebound.launcher.part import AgentPart, RankPart
from corebound.topology import read_topology
from corebound.topology.pod import Pod
from fixtures.topology_trees import shared_machine


class Events:
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(("note", text))

    def warning(self, text):
        self.said.append(("warning", text))


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        (None, []),
        (
            Pod(own_cpus=True, reason="a Guaranteed pod", quality="Guaranteed"),
            [("note", "w0: bound 2 ranks to CPUs 0-3; the pod has 4 of the node's 4 CPUs (0-3), of its own")],
        ),
        (
            Pod(own_cpus=False, reason="all of the node's", quality=None),
            [
                (
                    "warning",
                    "w0: bound 2 ranks to CPUs 0-3; the pod has 4 of the node's 4 CPUs (0-3), shared with other pods "
                    "(all of the node's); `corebound doctor` in the pod says what would give it its own",
                )
            ],
        ),
    ],
)
def test_an_agent_in_a_pod_says_in_one_line_what_it_got(monkeypatch, pod, said):
    topology = read_topology(shared_machine("vm"))
    ranks = tuple(RankPart(rank=rank, local_rank=rank, slot=rank, command=("true",), env={}) for rank in range(2))
    part = AgentPart(host="w0", job_id="j", ranks=ranks, num_slots=2, bind_cores=True, core_list=None)
    monkeypatch.setattr(agent, "read_pod", lambda *_: pod)
    events = Events()
    agent._tell_of_pod(part, "w0", arrange(topology, 2, bind_cores=True), topology, events)
    assert events.said == said
