"""What inject_kernels did, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass

from corebound.kernels import Row


@dataclass(frozen=True, kw_only=True)
class InjectionReport:
    """Which blocks were replaced, what each of their operators runs on, and which modules stayed as they were."""

    family: str
    block_class: str
    num_blocks: int
    ops: tuple[Row, ...]
    plain_torch: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.family}: replaced {self.num_blocks} blocks of class {self.block_class}"]
        for row in self.ops:
            where = row["implementation"] if row["implementation"] == "reference" else f"native ({row['variant']})"
            lines.append(f"  {row['op']}: {where}: {row['reason']}")
        lines += [f"  plain torch: {what}" for what in self.plain_torch]
        lines += [f"  kept: {name}" for name in self.kept]
        return "\n".join(lines)
