"""JSON schemas and regular expressions: bombs, and ordinary ones, which must accept and refuse the right texts."""

from __future__ import annotations

import json
import random
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.case import Case, FaultClass
from torture.fixtures import fixture
from torture.forked import in_child
from torture.outcomes import Outcome

SECONDS = 60.0  # of a case; the product's limit is 2 seconds of processor time, which take longer on a busy machine

# schema, texts that fit it, texts that do not. jsonschema checks these lists.
SCHEMAS: tuple[tuple[Any, tuple[str, ...], tuple[str, ...]], ...] = (
    (True, ('{"a": [1.5, null, {}]}', "[]", '"a"', "-1e5"), ("{", "tru", "01")),
    ({"type": "object"}, ("{}", '{"a": 1}'), ("[]", "1")),
    ({"type": "integer"}, ("0", "-17"), ("1.5", '"1"', "")),
    ({"type": "integer", "minimum": 3, "maximum": 12}, ("3", "12"), ("2", "13")),
    ({"type": "number", "exclusiveMinimum": 0}, ("0.5", "3"), ("0", "-1")),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ('"ab"', '"abc"'), ('"a"', '"abcd"')),
    ({"type": "string", "pattern": "^[a-c]+\\d?$"}, ('"abc1"', '"a"'), ('"d"', '"1"')),
    ({"type": "string", "format": "date"}, ('"2024-02-29"',), ('"x"', '"20240229"')),
    ({"type": "string", "format": "uuid"}, ('"123e4567-e89b-12d3-a456-426614174000"',), ('"123e4567"',)),
    ({"enum": ["red", 2, None, [1]]}, ('"red"', "2", "null"), ('"blue"', "3")),
    ({"const": {"a": 1}}, ('{"a": 1}',), ('{"a": 2}', "{}")),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ("[true]",), ("[]", "[1]")),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
        ('[1, "a"]',),
        ('["a", 1]', '[1, "a", 2]'),
    ),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ("1", "null"), ('"a"',)),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ("1", '"a"'), ("null",)),
    ({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}, ("3",), ("1", "5")),
    ({"type": ["string", "null"]}, ('"a"', "null"), ("1",)),
    (
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name"],
            "additionalProperties": False,
        },
        ('{"name": "a", "age": 1}', '{"name": ""}'),
        ('{"age": 1}', '{"name": "a", "b": 1}'),
    ),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, ('{"x": 1}', "{}"), ('{"x": "y"}',)),
    (
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
        ('{"ab": 1}',),
        ('{"b": 1}', '{"a": "x"}'),
    ),
    (
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                    "required": ["next"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/node",
        },
        ('{"next": {"next": null}}',),
        ('{"next": 1}', "{}"),
    ),
    ({"type": "array", "items": {"$ref": "#"}}, ("[[], [[]]]",), ("[1]",)),
    (
        {"definitions": {"s": {"type": "string"}}, "type": "array", "items": {"$ref": "#/definitions/s"}},
        ('["a"]',),
        ("[1]",),
    ),
    (
        {
            "type": "object",
            "properties": {"tool": {"const": "add"}, "args": {"type": "array", "items": {"type": "number"}}},
            "required": ["tool", "args"],
        },
        ('{"tool": "add", "args": [1, 2.5]}',),
        ('{"tool": "sub", "args": []}',),
    ),
    ({"type": "integer", "multipleOf": 5}, ("15", "0"), ("7",)),
    ({"title": "T", "description": "d", "type": "boolean", "default": True, "examples": [True]}, ("true",), ("1",)),
    ({"type": "object", "minProperties": 1, "additionalProperties": {"type": "null"}}, ('{"a": null}',), ("{}",)),
)
# expression, texts that it matches as a whole, texts that it does not. Python's re checks these lists.
EXPRESSIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("yes|no", ("yes", "no"), ("maybe", "yesno")),
    (r"\d{3}-\d{4}", ("555-1234",), ("5551234", "555-123")),
    (r"[A-Z][a-z]+( [A-Z][a-z]+)*", ("Ada Lovelace", "Ada"), ("ada", "Ada lovelace")),
    (r"(\d{1,3}\.){3}\d{1,3}", ("127.0.0.1",), ("127.0.0",)),
    (r"#[0-9a-fA-F]{6}", ("#00ffAA",), ("#00ff", "00ffAA")),
    (r"[^\n]{0,20}\n", ("abc\n", "\n"), ("abc",)),
    ("(?i)hello", ("HELLO", "hello"), ("hell",)),
    (r"a*b+c?", ("b", "aabbc"), ("a", "acb")),
    (r"\s*\[(\s*\d+\s*,?)*\]", ("[1, 2]", "[]"), ("[a]", "[")),
    (".*", ("", "anything"), ()),
)


def schema_bomb(rng: random.Random) -> Any:
    """A schema that is large, deep, ambiguous or endless."""
    n, m = rng.randrange(200, 3000), rng.randrange(8, 18)
    deep: Any = {"type": "integer"}
    for _ in range(n):
        deep = {"type": "array", "items": deep}
    ways: Any = {"type": "string"}
    for _ in range(m):
        ways = {"anyOf": [ways, {"type": "object", "properties": {"a": ways, "b": ways}}]}
    return rng.choice(
        (
            {"allOf": [{"pattern": f".*a.{{{i + n}}}"} for i in range(m)]},
            {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(n * 4)}},
            {
                "type": "object",
                "properties": {f"p{i}": {} for i in range(1900)},
                "required": [f"p{i}" for i in range(0, 1900, 2)],
            },
            {"enum": [f"{'x' * (i % 50)}{i}" for i in range(n * 15)]},
            {"enum": ["".join(rng.choice("ab") for _ in range(40)) for _ in range(n * 5)]},
            {"const": "x" * (n << 10)},
            deep,
            ways,
            {"type": "string", "pattern": f"(x+x+){{{n}}}y"},
            {"type": "string", "pattern": "(" * n + "a" + "+)" * n},
            {"type": "string", "pattern": f"((a{{1,{n}}}){{1,{n}}}){{1,{n}}}"},
            {"type": "string", "pattern": f"(.*a.{{{n}}}b.*){{{m}}}"},
            {"type": "string", "minLength": n * 10**6, "maxLength": n * 10**6 + 1},
            {"type": "array", "items": {"type": "integer"}, "minItems": n * 10**6},
            {"type": "array", "prefixItems": [{"type": "integer"}] * (n * 5)},
            {
                "anyOf": [
                    {"type": "object", "properties": {f"k{i}": {"const": i}}, "required": [f"k{i}"]} for i in range(n)
                ]
            },
            {"allOf": [{"anyOf": [{"minimum": i}, {"maximum": i + 1}]} for i in range(m)]},
            {"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(n)}},
            {"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"$ref": f"#/$defs/a{(i + 1) % m}"} for i in range(m)}},
            {
                "$ref": "#/$defs/a0",
                "$defs": {
                    **{
                        f"a{i}": {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2}}
                        for i in range(m)
                    },
                    f"a{m}": {"type": "null"},
                },
            },
            {"patternProperties": {f"^{'a' * i}.*b": {"type": "integer"} for i in range(m * 8)}},
            {"type": "integer", "minimum": -(10**n), "maximum": 10**n},
            {"type": "number", "multipleOf": 10.0**-m, "minimum": 0, "maximum": 1},
            {
                "type": "object",
                "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/properties/a"}},
                "required": ["a", "b"],
            },
            {"allOf": [{"$ref": "#"}, {"type": "string"}]},
            {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
            {"type": "string", "format": "uri", "pattern": f"a{{{n}}}.*b{{{n}}}"},
            {"type": "object", "minProperties": n, "maxProperties": n * 10, "additionalProperties": {"type": "null"}},
            {"x-guidance": {"lenient": True}, "not": {"type": "string"}},
            {"$id": f"http://example.com/{n}", "$ref": "other"},
            {"type": "\ud800" * n, "x" * n: [[[[{}]]]]},
        )
    )


def expression_bomb(rng: random.Random) -> str:
    """An expression that is large, deep, or whose automaton is."""
    n = rng.randrange(20, 500)
    return rng.choice(
        (
            f"(a{{{n}}}){{{n}}}",
            f"((((a{{{n}}}){{{n}}}){{{n}}}){{{n}}}){{{n}}}",
            f".*a.{{{n}}}",
            f"(.*a.{{{n}}}){{{n}}}",
            "(" * n * 50 + "a" + ")" * n * 50,
            "|".join(f"{'ab' * (i % 30)}{i}" for i in range(n * 10)),
            f"a{{{n}000000}}",
            f"[a-z]{{0,{n}}}" * n,
            "(a*)*" * n,
            "(a|a)" * n + "b",
            f"(x+x+)+y{{{n}}}",
            r"\p{L}" * n * 5,
            f"(?i:{'k' * n * 60})",
            f"(?:a?){{{n}}}a{{{n}}}",
            f"(.|\n){{{n}000}}",
            "[^" + "".join(map(chr, range(256, 256 + n))) + f"]{{{n}}}",
            "((((.*)*)*)*)*" * n,
            f"(a{{0,{n}}}b?){{0,{n}}}",
            "\ud800",
            "(" * n,
            "a" * 70_000,
            rf"(\w+\s?){{{n}}}",
        )
    )


class Compiler:
    """Compiles grammars for the tokenizer of an artifact, and follows texts with them."""

    def __init__(self, artifact: Path) -> None:
        from edgellama.grammar import GrammarTokenizer
        from edgellama.text.tokenizer import Tokenizer

        self.tokenizer = Tokenizer.from_folder(artifact)
        self.eos = self.tokenizer.model.token_to_id("</s>")
        self.tokens = GrammarTokenizer(self.tokenizer, self.tokenizer.model.get_vocab_size(), [self.eos])

    def accepts(self, grammar: Any, text: str) -> bool:
        """Whether the grammar allows each token of a text, and then its end."""
        import numpy as np

        prompt = self.tokenizer.encode("a", add_special_tokens=False)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        for number, token in enumerate([*ids, self.eos]):
            scores = np.ones((1, self.tokens.vocab_size), np.float32)
            allowed = grammar(np.array([[*prompt, *ids[:number]]]), scores)[0]
            if not np.isfinite(allowed[token]):
                return False
        return True

    def ordinary(self, number: int) -> Outcome:
        """One of SCHEMAS or EXPRESSIONS."""
        import jsonschema

        from edgellama.grammar import JsonSchema, Regex

        kind: Any = (*SCHEMAS, *EXPRESSIONS)[number]
        rule, good, bad = kind
        if number < len(SCHEMAS):
            checker = jsonschema.Draft202012Validator(rule)
            for text in good:
                checker.validate(json.loads(text))
            made: Any = JsonSchema(rule, self.tokens)
        else:
            for text in (*good, *bad):
                if (re.fullmatch(rule, text) is not None) != (text in good):
                    raise AssertionError(f"the list of {rule!r} is wrong: {text!r}")
            made = Regex(rule, self.tokens)
        for text in (*good, *bad):
            if self.accepts(made.copy(), text) != (text in good):
                return Outcome("silent", f"{rule!r} and the text {text!r}")
        return Outcome("harmless")

    def bomb(self, rng: random.Random, folder: Path) -> Outcome:
        """A bomb, and then an ordinary grammar."""
        from edgellama.errors import UserError
        from edgellama.grammar import JsonSchema, Regex

        is_schema = rng.random() < 0.6
        rule: Any = schema_bomb(rng) if is_schema else expression_bomb(rng)
        (folder / "grammar.txt").write_text(ascii(reprlib.repr(rule)))
        refused = None
        try:
            made: Any = JsonSchema(rule, self.tokens) if is_schema else Regex(rule, self.tokens)
            self.accepts(made, "{}" if is_schema else "aaaa")
        except UserError as error:
            refused = error
        if not self.accepts(Regex("yes|no", self.tokens), "yes"):
            return Outcome("silent", "another grammar does not work afterwards")
        if refused is not None:
            raise refused
        return Outcome("harmless")


def run(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Every second case is a bomb."""
    compiler = Compiler(fixture(shared, "artifact"))
    count = len(SCHEMAS) + len(EXPRESSIONS)
    for case in cases:
        if case.number % 2:
            number = case.number // 2 % count
            outcome = in_child(lambda number=number: compiler.ordinary(number), seconds=SECONDS)  # type: ignore[misc]
            yield Outcome("unclear", f"refused: {outcome.detail}") if outcome.kind == "clear" else outcome
        else:
            yield in_child(lambda case=case: compiler.bomb(case.rng, case.folder), seconds=SECONDS)  # type: ignore[misc]


CLASSES = (
    FaultClass(
        "grammars",
        f"schemas and expressions that are large, deep, ambiguous or endless, and {len(SCHEMAS) + len(EXPRESSIONS)} "
        "ordinary ones",
        "an ordinary one accepts and refuses the texts of its lists, and a bomb is compiled within the limits",
        160,
        40,
        run,
    ),
)
