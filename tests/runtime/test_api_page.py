"""runtime/API.md names every part of the Python interface as the code has it, and its Python blocks run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgellama
from edgellama import (
    Chat,
    GenerationConfig,
    LlamaForCausalLM,
    Tokenizer,
    UserError,
    pipeline,
)
from edgellama.conversation.methods import ChatMethods
from edgellama.conversation.session import Session
from edgellama.conversation.transcript import Transcript
from edgellama.generation.config import DEFAULTS
from edgellama.generation.decode import GenerationTimings
from edgellama.generation.output import ChatAnswer, GenerateOutput, Piece, Streamer
from edgellama.generation.scoring import Score
from edgellama.generation.stream import Stream
from edgellama.grammar import Grammar, GrammarTokenizer, JsonSchema, Regex
from edgellama.hf_adapters import AdapterMethods
from edgellama.hf_keywords import PLACEMENT, set_seed
from edgellama.hf_model import CausalLMOutput, ModelMethods
from edgellama.pipelines import OWN, TextGenerationPipeline
from edgellama.scoring import ScoringMethods
from edgellama.text.detokenizer import TextStream
from edgellama.tools.functions import CalledFunction
from support.child import REPOSITORY, run_child
from support.exported import export

PAGE = (REPOSITORY / "runtime" / "API.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```\n", "", PAGE, flags=re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)
CLASSES: dict[str, type] = {
    found.__name__: found
    for found in (
        *(LlamaForCausalLM, Chat, GenerationConfig, Tokenizer, UserError, TextGenerationPipeline, Session, Stream),
        *(Piece, GenerateOutput, ChatAnswer, GenerationTimings, Transcript, TextStream, Streamer),
        *(Grammar, GrammarTokenizer, JsonSchema, Regex, AdapterMethods, ScoringMethods, Score),
        *(ChatMethods, ModelMethods, CausalLMOutput, CalledFunction),
    )
}
METHODS = {
    f"{owner}.{name}": method
    for owner, found in CLASSES.items()
    for name, method in inspect.getmembers(found, callable)
    if not name.startswith("_") and name in vars(found)
}
# Lower-case words in backticks that are no names of the interface: of files, extras, other libraries and of prose.
OTHER_WORDS = {"bool", "dict", "edgellama", "float", "int", "mindspore", "num_beam_groups", "past_key_values"}
OTHER_WORDS |= {"rows", "str", "tokenizers", "with"}
# The range of a setting as the page writes it -> values that fit, values that do not.
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "at least 1": ([1, 9], [0, 1.5, True]),
    "at least 0": ([0, 9], [-1, 0.5]),
    "at least -1": ([-1], [-2]),
    "an id or a list of ids": ([1, [1, 2], []], ["a", [0.5]]),
    "a string or a list of strings": (["a", ["a", "b"]], ["", 1]),
    "`True` or `False`": ([True, False], [1, "yes"]),
    "above 0": ([0.1, 9], [0, -1]),
    "0, below 1": ([0, 0.5], [1, -0.1]),
    "`(n, factor)`": ([(5, 1.01), [0, 2]], [(1.5, 1.0), 3, (1, 0)]),
    "above 0; 0 without `do_sample`": ([0, 0.1, 5], [-0.1]),
    "above 0, at most 1": ([0.1, 1], [0, 1.1]),
    "0 to 1": ([0, 1], [-0.1, 1.1]),
    "1 to the artifact's batch": ([1, 4], [0]),
    "-7 to 7": ([-7, 7], [-7.1, 7.1]),
    '`True`, `False` or `"never"`': ([True, False, "never"], ["always", 1]),
    "`{(id, ...): bias}` or `[[[id, ...], bias], ...]`": ([{(1, 2): 0.5}, [[[1], float("-inf")]]], [[1], {(): 1.0}]),
    "1e-30 to 1e30": ([1e-30, 1e30], [0, 1e31]),
    "a list of lists of ids": ([[[1], [2, 3]]], [[1], [[]]]),
}


def sections() -> dict[str, str]:
    """Returns the page's sections by their headings, without backticks."""
    parts = re.split(r"^##+ (.*)\n", PROSE, flags=re.MULTILINE)
    return {heading.strip("`"): body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = sections()


def table(body: str, *columns: str) -> list[list[str]]:
    """Returns the rows of all tables in `body` whose header begins with `columns`."""
    found: list[list[str]] = []
    inside = False
    for line in body.splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")] if line.startswith("|") else []
        if cells[: len(columns)] == list(columns):
            inside = True
        elif not cells:
            inside = False
        elif inside and not cells[0].startswith("---"):
            found.append(cells)
    return found


def parameters(of: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the parameters of a function or class, without self."""
    return [parameter for parameter in inspect.signature(of).parameters.values() if parameter.name != "self"]


def written(of: Callable[..., Any]) -> str:
    """Returns the parameters as the page writes them: names and defaults, without types."""
    plain = [parameter.replace(annotation=parameter.empty) for parameter in parameters(of)]
    return str(inspect.Signature(plain))[1:-1]


def members(of: type) -> set[str]:
    """Returns the public methods, properties and attributes of a class, without inherited ones."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(of)))
    stored = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    fields = {field.name for field in dataclasses.fields(of)} if dataclasses.is_dataclass(of) else set()
    return {name for name in {*vars(of), *stored, *fields} if not name.startswith("_")}


def arguments(of: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yields the names and defaults that the page's table of arguments must have."""
    for parameter in parameters(of):
        if parameter.name == "hugging_face":
            yield from ((name, "") for name in PLACEMENT)
        elif parameter.kind is parameter.VAR_KEYWORD:
            yield f"**{parameter.name}", ""
        else:
            yield parameter.name, "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"


def heading(name: str) -> Any:
    """Returns what the section with this heading describes; None for a chapter."""
    return {**CLASSES, **METHODS, "pipeline": pipeline, "set_seed": set_seed}.get(name)


def test_every_public_name_has_a_section_or_a_row() -> None:
    rows = {span for row in table(PAGE, "name", "what it is") for span in re.findall(r"`(\w+)`", row[0])}
    assert rows == set(edgellama.__all__)
    assert CLASSES.keys() <= SECTIONS.keys()
    assert {getattr(edgellama, name) for name in edgellama.__all__} <= {*CLASSES.values(), pipeline, set_seed}


def test_every_link_within_the_page_has_its_heading() -> None:
    anchors = {re.sub(r"[^\w\- ]", "", title).replace(" ", "-").lower() for title in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def test_every_heading_with_the_form_of_a_name_is_one() -> None:
    headings = re.findall(r"^##+ `(.*)`$", PROSE, re.MULTILINE)
    assert [name for name in headings if heading(name) is None] == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_member_of_a_class_is_on_the_page_and_no_other(name: str) -> None:
    """A method is a heading, or a row with its exact arguments; an attribute is a row."""
    body = SECTIONS[name]
    rows = [
        *table(body, "attribute", "type"),
        *table(body, "method", "meaning"),
        *table(body, "setting", "default", "range"),
    ]
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row[0])]
    calls = {span.partition("(")[0]: span.partition("(")[2].removesuffix(")") for span in spans if "(" in span}
    headings = {title.partition(".")[2] for title in SECTIONS if title.startswith(f"{name}.")}
    attributes = {span for span in spans if "(" not in span}
    methods = {key.partition(".")[2] for key in METHODS if key.startswith(f"{name}.")}
    assert {*calls, *headings} == methods
    assert attributes == members(CLASSES[name]) - methods
    assert {method: written(METHODS[f"{name}.{method}"]) for method in calls} == calls


@pytest.mark.parametrize("name", [name for name in SECTIONS if heading(name) is not None])
def test_the_arguments_and_defaults_of_a_table_are_those_of_the_code(name: str) -> None:
    rows = table(SECTIONS[name], "argument", "default")
    found = [(span, row[1]) for row in rows for span in re.findall(r"`([*\w]+)`", row[0])]
    if rows or name not in CLASSES:
        assert found == list(arguments(heading(name)))


def test_every_constructor_that_the_page_writes_is_that_of_the_code() -> None:
    calls = [call for span in SPANS if (call := re.fullmatch(r"(\w+)\((.*)\)", span))]
    found = {call[1]: call[2] for call in calls if call[1] in CLASSES}
    assert {"Chat", "JsonSchema", "Regex", "GrammarTokenizer"} <= found.keys()
    assert {name: written(CLASSES[name]) for name in found} == found


def test_every_setting_has_its_default_and_range() -> None:
    rows = table(PAGE, "setting", "default", "range")
    assert {row[0].strip("`"): row[1] for row in rows} == {name: f"`{value!r}`" for name, value in DEFAULTS.items()}
    for name, _, range_, _ in rows:
        fitting, others = RANGES[range_]
        for value in fitting:
            GenerationConfig(**{name.strip("`"): value})
        for value in others:
            with pytest.raises(UserError):
                GenerationConfig(**{name.strip("`"): value})
    with pytest.raises(UserError):
        GenerationConfig(temperature=0, do_sample=True)


def test_every_setting_of_the_pipeline_has_its_default() -> None:
    rows = table(PAGE, "pipeline setting", "default")
    assert {row[0].strip("`"): row[1] for row in rows} == {name: f"`{value!r}`" for name, value in OWN.items()}


def test_the_page_uses_no_unknown_name() -> None:
    known = {*edgellama.__all__, *CLASSES, *DEFAULTS, *OWN, *PLACEMENT}
    for of in CLASSES.values():
        known |= members(of)
    for function in (*METHODS.values(), *CLASSES.values(), pipeline):
        known |= {parameter.name for parameter in parameters(function)} if function is not UserError else set()
    words = {span for span in SPANS if re.fullmatch(r"[a-z][a-z0-9_]*", span)}
    assert words - known == OTHER_WORDS


@pytest.mark.parametrize("name", [*CLASSES, *METHODS, "pipeline"])
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(heading(name))
    for property_ in vars(heading(name)).values() if name in CLASSES else ():
        if isinstance(property_, property):
            assert property_.__doc__, property_


def test_the_blocks_run_in_order(tmp_path: Path) -> None:
    """Random weights stand for the model, so only the form of the answers counts."""
    sizes = ["--context", "512", "--buckets", "8,32", "--batch", "2"]
    artifact = str(export("api-page", "--target", "cpu", "--weights", "fp32", *sizes))
    code = "\n".join(BLOCKS)
    for folder in ("artifacts/smollm2-135m-instruct-cpu-int8", "artifacts/batch4"):
        assert folder in code
        code = code.replace(folder, artifact)
    script = tmp_path / "page.py"
    script.write_text(re.sub(r'"(\w+\.safetensors)"', lambda found: f'"{tmp_path / found[1]}"', code), encoding="utf-8")
    done = run_child("-c", f"exec(compile(open({str(script)!r}).read(), {str(script)!r}, 'exec'))")
    assert len(BLOCKS) >= 15 and len(done.stdout) > 200
    assert {path.name for path in tmp_path.iterdir()} == {"page.py", "chat.safetensors", "story.safetensors"}
