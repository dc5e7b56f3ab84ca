"""What the grammar library reports, in the words of the user: what is wrong, and a remedy."""

from __future__ import annotations

import re

MAX_REASON = 300  # characters
KEYWORDS = (
    "type, enum, const, anyOf, allOf, oneOf, properties, patternProperties, additionalProperties, required, "
    "minProperties, maxProperties, items, prefixItems, minItems, maxItems, minimum, maximum, exclusiveMinimum, "
    "exclusiveMaximum, multipleOf, minLength, maxLength, pattern, format, $ref, $defs"
)
FORMATS = "date, time, date-time, duration, email, hostname, ipv4, ipv6, uri, uuid"
LOCAL = "Put the schema under $defs, and refer to it as #/$defs/NAME"
ENDLESS = (
    "no text fits it, for example because a $ref leads back to itself with nothing in between. Put such a $ref under "
    "`properties` or `items`, or in an `anyOf` beside another schema"
)
COMPLEX = "it is too complex to be followed. Simplify it"
# The library's text, and ours, which may use groups of the pattern.
MESSAGES: tuple[tuple[str, str], ...] = (
    (r"NoExtension(?:Bias)?", ENDLESS),
    (r"(?:Parser|Lexer)TooComplex|MaxTokens\w*|.*too many states.*|.*(?:fuel|limit) exceeded.*", COMPLEX),
    (r"InternalError|Cancelled|NotStopped|EndOfSentence", "the grammar library failed. Simplify it"),
    (r"Pointer '(.*)' does not exist", r"it has a $ref to #\1, which is not in the schema. Correct it, or add #\1"),
    (r"Anchor '(.*)' does not exist", r"it has a $ref to #\1, and no $anchor has that name. Correct it, or add one"),
    (
        r"Resource '(?:json-schema:///)?(.*?)' is not present.*",
        rf"$ref or $schema is \1, and nothing is fetched. {LOCAL}",
    ),
    (r"(Invalid URI reference .*)", rf"\1. Correct the $ref. {LOCAL}"),
    (
        r"circular references with sibling keys .*",
        "a $ref that leads back to itself has other keywords beside it. "
        "Remove them, or put the $ref under `properties` or `items`",
    ),
    (r"Unimplemented keys: \[(.*)\]", rf"not supported: \1. Leave it out; supported are {KEYWORDS}"),
    (r"oneOf constraints .*", "oneOf is supported only if its schemas differ in type or value. Use anyOf"),
    (r"Unknown format: (.*)", rf"the format \1 is not supported. Leave it out, or use one of {FORMATS}"),
    (
        r"Unsatisfiable schema: Regex is empty.*",
        "no text fits: pattern, format and lengths contradict each other. Change one of them",
    ),
    (
        r"schema must be an object or boolean",
        "a part of it, or what a $ref refers to, is not a schema. Give an object, true or false",
    ),
    (r"Out of range float .*", "a number is not finite. Use finite numbers"),
    (r"Unsatisfiable schema: (.*)", r"Unsatisfiable schema: \1. Change one of its limits"),
    (
        r"Failed to generate regex for .*",
        "a limit of a number is too large, or no number is within its limits. Use limits below 2**53",
    ),
    (
        r"invalid multiple of|Value for 'multipleOf' .*",
        "multipleOf is 0, or has too many digits. Use a value such as 5 or 0.01",
    ),
    (r"lookarounds not supported.*", r"look-around and the anchors \\b and \\B are not supported. Leave them out"),
    (
        r"decimal literal invalid|.*too big.*|.*size limit.*|.*exceeds the size.*",
        "a repetition or a length is too large. Lower it",
    ),
)


def reason(text: str) -> str:
    """Return what is wrong, with a remedy, on one line of about MAX_REASON characters.

    Args:
        text: what the library reported: a sentence, the name of a state of its parser, or several lines about a regular
            expression.
    """
    lines = text.strip().splitlines() or [""]
    found = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    found = re.sub(r"^at \d+\(\d+\): invalid regex .* \(in regex\): ", "", found)
    found = "".join(c if c.isprintable() else " " for c in found)[:MAX_REASON].strip()
    for pattern, ours in MESSAGES:
        if match := re.fullmatch(pattern, found):
            return match.expand(ours)
    found = found.rstrip(".") or "the grammar library refuses it"
    return f"{found}. Correct it"
