"""Checks what the public docstrings of the package leave out: errors, shapes of tensors, units of times and sizes."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "runtime/corebound"
BASE_ERROR = "CoreboundError"
QUANTITY = re.compile(
    r"(?:^|_)(?:time|timeout|duration|delay|elapsed|interval|deadline|latency|grace|period|age|bandwidth"
    r"|memory(?:_(?:allocated|cached|reserved|used))?)$"
)
# Not the s of a possessive ("this rank's"), and not the pronoun "us": microseconds are µs, or us after a number.
UNIT_IN_TEXT = re.compile(
    r"(?<!['\u2019])\b(?:seconds?|minutes?|milliseconds?|microseconds?|nanoseconds?|[mµn]?s|bytes?|[KMGT]i?B)\b|\d\s*us\b"
)
SHAPE = re.compile(r"\[[^\]]+\]|\bshapes?\b|\bscalars?\b", re.IGNORECASE)
RAISES = re.compile(r"\braises?\b", re.IGNORECASE)
RAISES_EVERYWHERE = re.compile(r"\braises?\b[^.\n]*\bevery\b", re.IGNORECASE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Errors:
    """The error classes of the package, and which ones functions of a name make for their caller to raise."""

    classes: frozenset[str]
    makers: dict[str, set[str]]


def known_errors(modules: list[ast.Module]) -> Errors:
    """Return the errors that the package defines: what derives from the base, wherever it is."""
    bases: dict[str, set[str]] = {}
    functions: list[Function] = []
    for node in (node for module in modules for node in ast.walk(module)):
        if isinstance(node, ast.ClassDef):
            bases.setdefault(node.name, set()).update(_last_name(base) for base in node.bases)
        elif isinstance(node, Function):
            functions.append(node)
    classes = {BASE_ERROR}
    while more := {name for name, above in bases.items() if above & classes} - classes:
        classes |= more
    makers: dict[str, set[str]] = {}
    for found in functions:
        if found.returns and _last_name(found.returns) in classes:
            makers.setdefault(found.name, set()).add(_last_name(found.returns))
    return Errors(frozenset(classes), makers)


def problems(module: ast.Module, errors: Errors) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and problem of each public docstring of a module that leaves something out."""
    for owner, node in _public(module.body):
        name = f"{owner.name}.{node.name}" if owner else node.name
        around = [ast.get_docstring(each) or "" for each in (module, owner) if each]
        for problem in _lacks(node, any(map(RAISES_EVERYWHERE.search, around)), errors):
            yield node.lineno, name, problem


def _public(
    body: list[ast.stmt], owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.ClassDef | None, ast.ClassDef | Function]]:
    for node in body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield owner, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, node)


def _lacks(node: ast.ClassDef | Function, told: bool, errors: Errors) -> Iterator[str]:
    """Yield what a docstring leaves out; `told` says that the class or the module told what every function raises."""
    decorators = {_last_name(decorator) for decorator in node.decorator_list}
    if decorators & {"setter", "overload"}:
        return
    text = ast.get_docstring(node)
    if text is None:
        yield "no docstring"
        return
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
        named = [(ast.unparse(each.target), each.annotation) for each in fields]
        yield from _without_unit([pair for pair in named if not pair[0].startswith("_")], text)
        return
    # What a command's docstring says is its help: errors are told by the exit codes.
    raised = set() if told or decorators & {"command", "group"} else _raised(node, errors)
    if raised and not RAISES.search(text):
        yield f"raises {' or '.join(sorted(raised))}; its docstring has no Raises:"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    named = [(each.arg, each.annotation) for each in arguments if each.annotation]
    annotations = [annotation for _, annotation in named] + ([node.returns] if node.returns else [])
    if any(_is_tensor(annotation) for annotation in annotations) and not SHAPE.search(text):
        yield "takes or returns a tensor; its docstring has no shape"
    if node.returns:
        named.append((node.name, node.returns))
    yield from _without_unit(named, text)


def _without_unit(named: list[tuple[str, ast.expr]], text: str) -> Iterator[str]:
    for name, annotation in named:
        parts = {part.strip() for part in ast.unparse(annotation).split("|")}
        is_number = parts <= {"float", "int", "None"} and parts != {"None"}
        # A count has no unit, whatever it is made for.
        is_quantity = QUANTITY.search(name) and not name.startswith("num_")
        if is_number and is_quantity and not UNIT_IN_TEXT.search(text):
            yield f"{name} is a time or a size; neither its name nor the docstring has the unit"


def _raised(function: Function, errors: Errors) -> set[str]:
    """Return the errors of the package that a function itself raises."""
    found = set()
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = _last_name(node.exc)
            made = errors.makers.get(name, set()) if isinstance(node.exc, ast.Call) else set()
            found |= made or {name} & errors.classes
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def _is_tensor(annotation: ast.expr) -> bool:
    """Return whether an annotation holds tensors, but for those that go by name: their shapes are their owner's."""
    if isinstance(annotation, ast.Subscript) and _last_name(annotation) in ("Callable", "type"):
        return False
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return not any(_last_name(each) == "str" for each in inner) and any(_is_tensor(each) for each in inner)
    if isinstance(annotation, ast.BinOp):
        return _is_tensor(annotation.left) or _is_tensor(annotation.right)
    return _last_name(annotation) == "Tensor"


def _last_name(node: ast.expr) -> str:
    """Return the last part of a dotted name, of what is called or subscripted too."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def main() -> int:
    """Print what is missing where and return 1, or return 0 when nothing is."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts]
    modules = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    errors = known_errors(list(modules.values()))
    found = 0
    for path, module in modules.items():
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        if any(part.startswith("_") and part not in ("__init__", "__main__") for part in inside):
            continue
        for line, name, problem in problems(module, errors):
            print(f"{path.relative_to(ROOT)}:{line}: {name}: {problem}", file=sys.stderr)
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
