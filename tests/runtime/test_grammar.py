"""Constrained output: a random toy that samples always writes text that matches the schema or the expression.

The jsonschema library and re.fullmatch check the text.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgellama.__main__ import main
from edgellama.errors import UserError
from edgellama.grammar import TRIAL, Grammar, GrammarTokenizer, JsonSchema, Regex
from edgellama.model import LlamaForCausalLM
from support.child import run_child
from support.tiny import VOCAB, artifact, numpy_graphs
from support.toy_model import model_of

LETTERS = 'abcdefghilmnorstuxy0123456789{}[]":,.-+\\/ \nE'
EOS = (len(LETTERS), len(LETTERS) + 1)
CONTEXT = 512
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 18, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "minItems": 1, "maxItems": 3},
        "at": {"$ref": "#/$defs/point"},
    },
    "required": ["name", "age", "tags", "at"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "boolean"}, "y": {"anyOf": [{"const": 1}, {"type": "null"}]}},
            "required": ["x", "y"],
            "additionalProperties": False,
        }
    },
}
PATTERNS = [
    r"[a-f]{2,5}-\d{3}",
    r"(yes|no|[0-9]{1,12}/[0-9])",
    r'"[^"\\]{0,9}"',
    r"^\d+(\.\d{2})?$",
    "a|",
    r"[ab]\n{1,4}c?",
]


def tokenizer() -> Tokenizer:
    """Returns a tokenizer with one token per character of LETTERS, and then two eos ids.

    It is byte-level: \u0120 is the space, \u010a the line break.
    """
    names = LETTERS.replace(" ", "\u0120").replace("\n", "\u010a")
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("</s>", special=True), AddedToken("</turn>", special=True)])
    return made


def save(folder: Path, batch: int) -> None:
    artifact(folder, context=CONTEXT, batch=batch, eos_token_id=EOS)
    tokenizer().save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = tmp_path_factory.mktemp("toy")
    opened = artifact(folder, context=CONTEXT, batch=4, eos_token_id=EOS)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model_of(opened)


def texts(model: LlamaForCausalLM, grammar: Grammar, **settings: Any) -> list[str]:
    """Returns the texts after three prompts of different length (left padding), each of which an eos id ended."""
    ids = np.array([[0, 0, 5], [0, 3, 4], [1, 2, 3]])
    mask = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1]])
    out = model.generate(
        ids, mask, logits_processor=grammar, max_new_tokens=450, return_dict_in_generate=True, **settings
    )
    assert set(out.finish_reasons) == {"eos"}  # type: ignore[union-attr]
    return [model.tokenizer.decode(row) for row in out.sequences[:, 3:].tolist()]  # type: ignore[union-attr]


def sampled(seed: int) -> dict[str, Any]:
    return {"do_sample": True, "top_k": 0, "temperature": 2.0, "seed": seed}


@pytest.mark.parametrize("seed", range(8))
def test_sampled_json_always_fits_its_schema(model: LlamaForCausalLM, seed: int) -> None:
    written = texts(model, JsonSchema(PERSON, model), num_return_sequences=2, **sampled(seed))  # six rows: two batches
    for text in written:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(written)) == len(written) == 6


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sampled_text_always_matches_the_whole_expression(model: LlamaForCausalLM, pattern: str) -> None:
    grammar = Regex(pattern, model)  # one processor for several calls
    for seed in range(4):
        for text in texts(model, grammar, **sampled(seed)):
            assert re.fullmatch(pattern, text), text


def test_greedy_and_beam_search_keep_to_the_grammar(model: LlamaForCausalLM) -> None:
    pattern = r"(no|yes|[a-c]{3})"
    assert all(re.fullmatch(pattern, text) for text in texts(model, Regex(pattern, model)))
    beams = texts(model, Regex(pattern, model), num_beams=2)
    assert all(re.fullmatch(pattern, text) for text in beams)
    assert texts(model, Regex("yes", model), num_beams=2) == ["yes"] * 3  # most beams have no allowed continuation


def test_a_grammar_keeps_the_distribution_over_the_allowed_tokens(model: LlamaForCausalLM) -> None:
    ids = [[3, 4, 5]]
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = model.generate(ids, logits_processor=Regex("[a-d]|q", model), **settings)
    scores, logits = out.scores[0][0], out.logits[0][0]  # type: ignore[union-attr,index]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(scores)), [LETTERS.index(c) for c in "abcd"])
    np.testing.assert_array_equal(scores[:4], logits[:4])


def test_every_eos_id_ends_a_whole_text_and_none_an_incomplete_one(model: LlamaForCausalLM) -> None:
    grammar = Regex("ab?", model)
    scores = np.ones((1, VOCAB), np.float32)
    a = LETTERS.index("a")
    first = grammar(np.array([[9, 9]]), scores.copy())
    assert np.flatnonzero(np.isfinite(first[0])).tolist() == [a]
    second = grammar(np.array([[9, 9, a]]), scores.copy())
    assert np.flatnonzero(np.isfinite(second[0])).tolist() == [a + 1, *EOS]
    others = GrammarTokenizer.of(model, eos_token_id=[7])
    grammar = Regex("ab?", others)
    grammar(np.array([[9, 9]]), scores.copy())
    assert np.flatnonzero(np.isfinite(grammar(np.array([[9, 9, a]]), scores.copy())[0])).tolist() == [a + 1, 7]


def test_a_new_prompt_starts_again_also_after_an_abandoned_text(model: LlamaForCausalLM) -> None:
    grammar = JsonSchema(PERSON, model)
    stream = model.stream([1, 2], logits_processor=grammar, max_new_tokens=50)
    assert next(stream).text == "{"
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    again = "".join(piece.text for piece in model.stream([1, 2, 3], logits_processor=grammar, max_new_tokens=200))
    jsonschema.validate(json.loads(again), PERSON)


ENDLESS = "a \\$ref leads back to itself .* Put such a \\$ref under `properties`"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not valid JSON .* Correct it"),
        ("[" * 100_000, "nested too deeply. Simplify it"),
        ("3", "a JSON int. Give an object"),
        ([1], "a JSON list. Give an object"),
        ({"type": "foo"}, "Invalid type: foo. Correct it"),
        ({"type": "string", "not": {"const": "a"}}, 'not supported: "not". Leave it out; supported are type, enum,'),
        ({"$dynamicRef": "#a"}, 'not supported: "\\$dynamicRef"'),
        ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, "oneOf is supported only .* Use anyOf"),
        ({"type": "string", "format": "regex"}, "format regex is not supported. Leave it out, or use one of date"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around.* not supported. Correct it"),
        ({"type": "string", "maxLength": 10**15}, "a repetition or a length is too large. Lower it"),
        ({"type": "integer", "minimum": 10**40}, "a limit of a number is too large"),
        ({"multipleOf": 0}, "multipleOf is 0"),
        ({"const": float("inf")}, "not finite. Use finite numbers"),
        ({"$ref": "#/nowhere"}, "has a \\$ref to #/nowhere, which is not in the schema. Correct it"),
        ({"$ref": "#nowhere"}, "has a \\$ref to #nowhere, and no \\$anchor has that name. Correct it"),
        ({"$ref": "other.json#/a"}, "is other.json, and nothing is fetched. Put the schema under \\$defs"),
        ({"$ref": "https://example.com/a"}, "is https://example.com/a, and nothing is fetched"),
        ({"$ref": "#/%"}, "Invalid URI reference '#/%'.* Correct the \\$ref"),
        ({"$ref": "#/enum/0", "enum": ["a"]}, "what a \\$ref refers to, is not a schema. Give an object"),
        ({"$ref": "#"}, ENDLESS),
        ({"$ref": ""}, ENDLESS),
        ({"allOf": [{"$ref": "#"}]}, ENDLESS),
        ({"anyOf": [{"$ref": "#"}]}, ENDLESS),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, ENDLESS),
        ({"$ref": "#/properties/a", "properties": {"a": {"$ref": "#"}}}, "leads back .* has other keywords"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "Unsatisfiable schema.* Change one of its limits"),
        ({"type": "string", "pattern": "a{5}", "maxLength": 3}, "no text fits: pattern, .* Change one of them"),
        ({"const": {1, 2}}, "not JSON serializable"),
        (False, "Unsatisfiable"),
    ],
)
def test_an_unsupported_schema_is_refused(model: LlamaForCausalLM, schema: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        JsonSchema(schema, model)


def test_any_json_value(model: LlamaForCausalLM) -> None:
    tokens = GrammarTokenizer.of(model)
    for text in ('{"a": [1.5, null, {}]}', "[]", '"a"', "true", '{\n  "a":0\n}'):
        for schema in (True, {}, "true"):
            assert accepts(JsonSchema(schema, tokens), tokens, text), text
    # the amount of whitespace is limited
    assert not accepts(JsonSchema(True, tokens), tokens, '{"a":' + "\n" * 2 + "0}")


def accepts(grammar: Grammar, tokens: GrammarTokenizer, text: str) -> bool:
    """Returns whether the processor allows every character of the text, and then an eos."""
    ids = [9]
    for letter in [LETTERS.index(c) if c in LETTERS else None for c in text] + [EOS[0]]:
        allowed = np.isfinite(grammar(np.array([ids]), np.ones((1, tokens.vocab_size), np.float32))[0])
        if letter is None or not allowed[letter]:
            return False
        ids.append(letter)
    return True


def test_a_schema_that_refers_to_itself_describes_trees(model: LlamaForCausalLM) -> None:
    tokens = GrammarTokenizer.of(model)
    node = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]}
    assert accepts(JsonSchema(node, tokens), tokens, '{"a":{"a":null}}')


def test_a_schema_cannot_change_how_it_is_read(model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match='not supported: "not"'):
        JsonSchema({"not": {"type": "string"}, "x-guidance": {"lenient": True}}, model)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "unclosed group. Correct it"),
        ("(?=a)b", "look-around.* not supported. Correct it"),
        (r"(a)\1", "backreferences are not supported. Correct it"),
        (r"a\b", "the anchors .* are not supported. Leave them out"),
        ("\ud800", "not Unicode text .* Correct it"),
        ("x" * 70_000, "70,000 characters; at most 65,536 are possible. Shorten it"),
    ],
)
def test_an_expression_outside_the_syntax_is_refused(model: LlamaForCausalLM, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=f"regular expression: .*{message}"):
        Regex(pattern, model)


def test_without_eos_nothing_could_end(model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="eos_token_id is empty"):
        GrammarTokenizer.of(model, eos_token_id=())


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    save(tmp_path, batch=1)
    opened = artifact(tmp_path, context=CONTEXT, eos_token_id=EOS)
    monkeypatch.setattr("edgellama.engine.engine.LiteGraph", numpy_graphs(opened))
    monkeypatch.setattr("edgellama.engine.engine.check_graphs", lambda _: True)  # its graph file is a dummy
    return ["generate", str(tmp_path), "--prompt", "abc", "--temperature", "2", "--seed", "1"]


def test_the_command_line_takes_both(command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    assert main([*command, "--json-schema", str(tmp_path / "person.json")]) == 0
    jsonschema.validate(json.loads(capfd.readouterr().out), PERSON)
    assert main([*command, "--regex", r"[a-f]{3}-\d"]) == 0
    assert re.fullmatch(r"[a-f]{3}-\d\n", capfd.readouterr().out)
    for arguments, message in (
        (["--regex", "(a"], "error: --regex: "),
        (["--json-schema", str(tmp_path / "none.json")], "none.json: cannot be read"),
        (["--json-schema", str(tmp_path / "step.mindir")], "step.mindir: not valid JSON"),
    ):
        assert main([*command, *arguments]) == 2
        assert message in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--regex", "a", "--json-schema", "x"])


def test_without_the_library_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from edgellama.grammar import GrammarTokenizer\n"
        "from edgellama.errors import UserError\n"
        "try: GrammarTokenizer(None, 10, [1])\n"
        "except UserError as error: print(error)"
    )
    assert 'pip install "edgellama[grammar]"' in run_child("-c", code).stdout


def test_a_real_artifact_writes_what_fits(tiny_artifact: Path) -> None:
    """MindSpore Lite, with bytes as tokens and a vocabulary that is larger than the tokenizer's."""
    model = LlamaForCausalLM.from_pretrained(tiny_artifact)
    pattern = r"(é|\d{1,3}|[^\x00-\x7f]{2}) [a-z]{0,9}"
    for seed in range(4):
        out = model.generate(
            [[5, 6, 7]] * 2, logits_processor=Regex(pattern, model), max_new_tokens=30, **sampled(seed)
        )
        for row in out[:, 3:].tolist():  # type: ignore[index]
            assert re.fullmatch(pattern, model.tokenizer.decode(row))


def shared_parts(levels: int) -> dict[str, Any]:
    """A small object in Python, whose text would have 2**levels parts."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema, schema]}
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}, "3,000 properties; at most 2,000"),
        ({"const": "x" * (1 << 20)}, "more than 1,048,576 characters"),
        ({"const": '"' * 600_000}, "1,200,013 characters; at most 1,048,576"),
        (shared_parts(40), "more than 1,048,576 characters"),
        ({"allOf": [{"pattern": f".*a.{{{i}}}"} for i in range(15)]}, "processor time to compile|MiB of memory"),
    ],
)
def test_a_schema_that_would_take_too_long_is_refused(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any], reason: str
) -> None:
    """Without the limits the third of these takes 100 seconds and two gigabytes."""
    monkeypatch.setattr("edgellama.grammar.TRIAL", replace(TRIAL, seconds=0.5))
    with pytest.raises(UserError, match=f"JSON schema: .*({reason})"):
        JsonSchema(schema, model)


def test_a_copy_is_a_grammar_without_compiling_again(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Regex("(yes|no)", model)
    monkeypatch.setattr(GrammarTokenizer, "try_grammar", lambda *_: pytest.fail("compiled again"))
    scores = [grammar(np.array([[5]]), np.ones((1, VOCAB), np.float32)) for grammar in (compiled, compiled.copy())]
    assert np.array_equal(*scores) and np.isneginf(scores[0]).any()
    assert compiled.copy()._states == {}
