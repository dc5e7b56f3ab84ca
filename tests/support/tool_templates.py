"""Chat templates with tools, one for each syntax of calls: the decisive parts of the published ones."""

from __future__ import annotations

CHAT = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
END = "</s>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
TOOLS = "{% if tools %}<|start|>system\n{{ tools | tojson }}</s>{% endif %}"


def template(ask: str, call: str) -> str:
    """Returns a template that describes the syntax as `ask`, and writes earlier calls as `call`."""
    return f"{TOOLS}{{# {ask} #}}{CHAT}{CALLS}{call}{{% endfor %}}{END}"


JSON_CALL = '{"name": {{ f.name | tojson }}, "arguments": {{ f.arguments | tojson }}}'
TEMPLATES = {
    "hermes": template("", f"<tool_call>\n{JSON_CALL}\n</tool_call>"),
    "smollm": template("", f"<tool_call>[{JSON_CALL}]</tool_call>"),
    "granite": template("", f"<|tool_call|>[{JSON_CALL}]"),
    "mistral": template("", f"[TOOL_CALLS][{JSON_CALL}]"),
    "mistral-args": template("", "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"),
    "llama-json": template(
        '{"name": function name, "parameters": dictionary of argument name and its value}',
        '{"name": {{ f.name | tojson }}, "parameters": {{ f.arguments | tojson }}}',
    ),
    "pythonic": template("[func_name1(params_name1=params_value1, ...), func_name2(params)]", "[{{ f.name }}()]"),
}
