"""The mutants of a module: cosmic-ray's operators and one more, without the mutants that change no behaviour."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator

from mutants.equivalent import MESSAGE_FUNCTIONS, known_reason

ORDERING = re.compile(r".*_(Eq|NotEq)_(Lt|LtE|Gt|GtE)")
Position = tuple[int, int]  # line from 1, column from 0


class DeleteStatement(Operator):
    """Replaces a statement with `pass`: a call, an assignment to an attribute or an element, `raise`, `+=`, `del`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        """Yield the place of a statement that can be left out without an undefined name."""
        if node.type == "simple_stmt" and self._can_go(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Return the statement as `pass`."""
        keyword = parso.parse("pass").children[0]
        keyword.prefix = node.children[0].get_first_leaf().prefix
        node.children[0] = keyword
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Return an example of the change."""
        return (Example("f(x)\n", "pass\n"),)

    @staticmethod
    def _can_go(statement: Any) -> bool:
        if statement.type == "expr_stmt":
            augmented = statement.children[1].type == "operator" and statement.children[1].value != "="
            target = statement.children[0]
            return target.type in ("atom_expr", "power") or augmented
        return statement.type in ("atom_expr", "power", "raise_stmt", "del_stmt")


def _names() -> list[str]:
    """Return the names of cosmic-ray's operators in use: one replacement per arithmetic operator, all comparisons."""
    order = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE")
    names = [f"ReplaceComparisonOperator_{a}_{b}" for a in order for b in order if a != b]
    names += [f"ReplaceComparisonOperator_{pair}" for pair in ("Is_IsNot", "IsNot_Is")]
    pairs = "Add_Sub Sub_Add Mul_Add Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul LShift_RShift RShift_LShift"
    names += [f"ReplaceBinaryOperator_{pair}" for pair in (*pairs.split(), "BitOr_BitAnd", "BitAnd_BitOr")]
    names += [f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Invert", "Not")]
    names += ["AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"]
    names += ["ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer"]
    return [f"core/{name}" for name in (*names, "RemoveDecorator", "ZeroIterationForLoop")]


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes:
        path: the module, from the root of the repository.
        operator: its name.
        source, changed: the whole text of the module before and after.
        line: where it begins, from 1.
    """

    path: str
    operator: str
    source: str
    changed: str
    line: int

    def lines(self) -> tuple[list[str], list[str]]:
        """Return the lines that went and those that came, without their indentation."""
        found = list(difflib.ndiff(self.source.splitlines(), self.changed.splitlines()))
        return [x[2:].strip() for x in found if x[0] == "-"], [x[2:].strip() for x in found if x[0] == "+"]

    def diff(self) -> str:
        """Return the change as a unified diff without context."""
        old, new = self.lines()
        return "\n".join(
            [f"{self.path}:{self.line} ({self.operator})", *(f"  - {x}" for x in old)] + [f"  + {x}" for x in new]
        )

    def reason(self) -> str | None:
        """Return why no test can notice this change; None if one can."""
        return known_reason(self.path, *self.lines())


@dataclass(frozen=True)
class Place:
    """Where an operator applies: its name, how many of its places precede this one, and the line from 1."""

    operator: str
    occurrence: int
    line: int


def operator(name: str) -> Operator:
    """Return an operator by its name."""
    return DeleteStatement() if name == DeleteStatement.__name__ else cosmic_ray.plugins.get_operator(name)()


def places(source: str) -> list[Place]:
    """Return every place of a module's text where an operator applies and the rules of equivalent.py allow it."""
    nodes = list(ast_nodes(parso.parse(source)))
    allowed = _allowed(source)
    found = []
    for name in (*_names(), DeleteStatement.__name__):
        one = operator(name)
        where = [position for node in nodes for position in one.mutation_positions(node)]
        found += [Place(name, i, begin[0]) for i, (begin, end) in enumerate(where) if allowed(name, begin, end)]
    return found


def make(path: str, source: str, place: Place) -> Mutant | None:
    """Return the mutant of a place in the text of a module; None if it is the same program, or no Python."""
    changed = mutate_code(source, operator(place.operator), place.occurrence)
    if changed is None:
        return None
    try:
        if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    return Mutant(path, place.operator.removeprefix("core/"), source, changed, place.line)


def _allowed(source: str) -> Callable[[str, Position, Position], bool]:
    """Return the function that tells whether no rule excludes an operator at a place (begin, end)."""
    excluded: list[tuple[Position, Position]] = []
    texts: list[tuple[Position, Position]] = []  # comparisons with texts, where only == and != make sense

    def exclude(node: Any, ranges: list[tuple[Position, Position]] = excluded) -> None:
        ranges.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))

    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                exclude(getattr(node, field))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exclude(node.test)
        if isinstance(node, ast.Compare) and any(map(_is_text, (node.left, *node.comparators))):
            exclude(node, texts)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _called(node) in MESSAGE_FUNCTIONS):
            for inner in ast.walk(node):
                if isinstance(inner, ast.JoinedStr):
                    exclude(inner)
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if (_called(node), keyword.arg) in (("zip", "strict"), ("dataclass", "frozen")):
                    exclude(keyword.value)
            for argument in node.args if _called(node) == "reshape" else ():
                if isinstance(argument, ast.UnaryOp):
                    exclude(argument.operand)
        for decorator in getattr(node, "decorator_list", ()):
            if ast.unparse(decorator) == "functools.cache":
                excluded.append(((decorator.lineno, 0), (decorator.end_lineno + 1, 0)))  # with the @ before it

    def allowed(name: str, begin: Position, end: Position) -> bool:
        found = excluded + (texts if ORDERING.fullmatch(name) else [])
        return not any(first <= begin and end <= last for first, last in found)

    return allowed


def _is_text(node: ast.expr) -> bool:
    """Whether an operand is a text or the name of a constant, for example `kind.STRING`."""
    name = getattr(node, "attr", "") or getattr(node, "id", "")
    return name.isupper() or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
