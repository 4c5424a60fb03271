"""All lines of `corebound bench targets`, a group of loaded models after the other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from corebound.engine.bench.ruler import Reading, Ruler
from corebound.engine.bench.targets import commands, judge
from corebound.engine.bench.targets.finding import ONE_CORE, Finding, NotMeasured, promise
from corebound.engine.bench.targets.plan_turns import cached_pair, main_turns, two_cpus
from corebound.engine.bench.targets.planned import PlannedPair, PlannedTurn
from corebound.engine.bench.targets.predictions import Predictions, compare, without_two_ranks
from corebound.engine.bench.targets.samples import Samples, run_rounds
from corebound.engine.bench.targets.settings import Settings
from corebound.engine.bench.targets.sizes import checkpoint_bytes, last_level_bytes, prompt_cache_bytes
from corebound.engine.bench.targets.turn_files import TurnCase
from corebound.engine.bench.work import work_of
from corebound.engine.predict.model import Workload
from corebound.models import describe
from corebound.models.config_reader import CONFIG_FILE
from corebound.topology import Topology

# Of each rank; pages are taken when they are needed.
_KV_CACHE_GIB = 1.0
_POSITIONS_FIELD = "max_position_embeddings"
# Half of a cache is left to what else runs, the activations among it.
_CACHE_SHARE = 0.5


@dataclass(kw_only=True)
class Run:
    """One run of some lines; `model_dir` finds or writes the model of a shape, `on_group` hears of every group."""

    topology: Topology
    settings: Settings
    lines: Collection[str]
    model_dir: Callable[[str], Path]
    announce: Callable[[str], None]
    on_group: Callable[[Run], object] = lambda _: None
    found: list[Finding | NotMeasured] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    quality: dict[str, Any] | None = None
    num_repeated: int = 0
    num_moved: int = 0
    num_pairs: int = 0
    num_still_pairs: int = 0

    def all_groups(self) -> None:
        """Measure every line that was asked for."""
        for number, shape in enumerate(self.settings.shapes):
            self._add(self._main(shape, is_first=number == 0))
        first = self.settings.shapes[0]
        if "ranks" in self.lines:
            self._add(self._cached())
        if "context" in self.lines:
            self._add(self._context(first))
        if "allreduce" in self.lines:
            self._add(self._all_reduce())
        if "load" in self.lines:
            rounds = self.settings.num_rounds
            self._add(commands.load(self.model_dir(first), judge.DTYPES, rounds, self.announce))
        if "quality" in self.lines:
            self._add(self._quality())

    def _add(self, found: Sequence[Finding | NotMeasured]) -> None:
        self.found += found
        self.on_group(self)

    @property
    def _num_cores(self) -> int:
        return len(self.topology.physical_cores())

    def _rounds(
        self,
        directory: Path,
        turns: Sequence[PlannedTurn | PlannedPair],
        warm: TurnCase,
        each_round: Callable[[], object] = lambda: None,
        cpus: Sequence[int] | None = None,
    ) -> Samples:
        """Return the samples of all rounds of a model, on all cores or `cpus`; `warm` comes first, unmeasured."""
        samples = run_rounds(
            directory,
            turns,
            [warm],
            ruler=Ruler.of(self.topology, cpus),
            num_rounds=self.settings.num_rounds,
            kv_cache_gib=_KV_CACHE_GIB,
            announce=self.announce,
            each_round=each_round,
        )
        self.readings += samples.readings
        self.num_repeated += samples.num_repeated
        self.num_moved += samples.num_moved
        pairs = [pair for rounds in samples.of_pair.values() for of_round in rounds for pair in of_round]
        self.num_pairs += len(pairs)
        self.num_still_pairs += sum(pair.lay_still for pair in pairs)
        return samples

    def _main(self, shape: str, *, is_first: bool) -> list[Finding | NotMeasured]:
        """Return the lines of one shape that share loaded models."""
        directory = self.model_dir(shape)
        description = describe(directory, tokenizer=False)
        # A long context needs a model of its own.
        lines = set(self.lines) - {"context"}
        turns = main_turns(lines, self.settings, description.vocab_size, self._num_cores, is_first=is_first)
        lacks_two_ranks = "ranks" in lines and is_first and self._num_cores < 2
        missing = judge.without_two_ranks(shape, self.settings) if lacks_two_ranks else []
        if not turns:
            return [*missing]
        length, work = self.settings.prompt_tokens, work_of(description)
        predictions = Predictions(
            topology=self.topology,
            architecture=description,
            everyone=list(dict.fromkeys(who for turn in turns for who in turn.everyone)),
            work=Workload(prompt_tokens=length, context=length + self.settings.few_tokens // 2),
        )
        samples = self._rounds(
            directory,
            turns,
            self.settings.prompt(description.vocab_size, num_times=1),
            predictions.predict if "plan" in self.lines else lambda: None,
        )
        cache = prompt_cache_bytes(description, length + self.settings.few_tokens)
        by_line: dict[str, Sequence[Finding | NotMeasured]] = {
            "decode": judge.decode(samples, shape, work, self.settings),
            "prefill": judge.prefill(samples, shape, work, self.settings),
            "ranks": [*judge.two_ranks(samples, shape, self.settings), *missing],
            "beams": judge.beams(samples, shape),
            "batches": judge.batches(samples, shape),
            "memory": judge.memory(samples, shape, checkpoint_bytes(description, judge.DTYPES), cache),
            "busy": judge.busy_core(samples, shape),
            "plan": [
                *compare(predictions.of_round, samples, shape, "prompt"),
                *(without_two_ranks(judge.DTYPES, shape) if self._num_cores < 2 else ()),
            ],
        }
        # What was measured for one line only is not told as another's.
        only_first = {"prefill", "ranks", "beams", "batches", "busy"}
        return [
            finding
            for line, findings in by_line.items()
            if line in self.lines and (is_first or line not in only_first)
            for finding in findings
        ]

    def _context(self, shape: str) -> list[Finding | NotMeasured]:
        """Return the line of a long prompt, on a copy of the model whose configuration allows it."""
        source = self.model_dir(shape)
        with tempfile.TemporaryDirectory(prefix="corebound-context-") as parent:
            directory = longer_model(source, Path(parent), 2 * self.settings.context)
            if directory is None:
                reason = f"{shape} has no positions to raise to {self.settings.context}"
                promised = promise("at least", judge.LONG_CONTEXT_BOUND)
                return [NotMeasured(line="context", what=shape, promised=promised, reason=reason)]
            description = describe(directory, tokenizer=False)
            turns = main_turns({"context"}, self.settings, description.vocab_size, self._num_cores, is_first=True)
            samples = self._rounds(directory, turns, self.settings.prompt(description.vocab_size, num_times=1))
            return list(judge.long_context(samples, shape, work_of(description), self.settings))

    def _cached(self) -> list[Finding | NotMeasured]:
        """Return the line of two ranks on the largest model that the last-level caches of their cores hold."""
        missing = partial(
            NotMeasured,
            line="ranks",
            what="a model that fits the cache, 2 ranks against 1 on one core each",
            promised=promise("at least", judge.CACHED_TWO_RANKS_BOUND),
        )
        if self._num_cores < 2:
            return [missing(reason=ONE_CORE)]
        cpus = two_cpus(self.topology)
        of_one, of_both = (last_level_bytes(self.topology, chosen) for chosen in (cpus[:1], cpus))
        for shape in self.settings.cached_shapes:
            directory = self.model_dir(shape)
            description = describe(directory, tokenizer=False)
            num_bytes = work_of(description).weight_bytes(16)
            # One core reads all of it, so it has to fit that core's cache as well.
            if num_bytes <= _CACHE_SHARE * min(of_one, of_both):
                break
        else:
            return [missing(reason=f"no shape fits half of the {of_one >> 20} MiB of last-level cache of one core")]
        note = (
            f"{num_bytes / 1e6:.0f} MB of weights; the last-level cache of the one core has {of_one >> 20} MiB, "
            f"those of the two {of_both >> 20} MiB"
        )
        pair = cached_pair(self.settings, description.vocab_size, cpus)
        samples = self._rounds(directory, [pair], self.settings.decode(description.vocab_size), cpus=cpus)
        return list(judge.cached_two_ranks(samples, shape, note))

    def _all_reduce(self) -> list[Finding | NotMeasured]:
        if self._num_cores < 2:
            promised = promise("at most", commands.ALL_REDUCE_BOUND)
            return [NotMeasured(line="allreduce", what="8 KiB, bfloat16", promised=promised, reason=ONE_CORE)]
        return commands.all_reduce(self.topology, self.settings.num_rounds, self.announce)

    def _quality(self) -> list[Finding | NotMeasured]:
        found, self.quality = commands.quality(self.announce)
        return found


def longer_model(source: Path, parent: Path, num_positions: int) -> Path | None:
    """Return a directory with the same weights and a context of `num_positions`; None without a field to raise."""
    config = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    if _POSITIONS_FIELD not in config:
        return None
    config[_POSITIONS_FIELD] = max(num_positions, config[_POSITIONS_FIELD])
    target = parent / source.name
    target.mkdir()
    (target / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    for file in source.glob("*.safetensors"):
        (target / file.name).symlink_to(file.resolve())
    return target
