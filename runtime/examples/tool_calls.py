"""Tools: the model calls Python functions, and answers with what they return.

    python -m edgellama.examples.tool_calls artifacts/qwen3-0.6b-cpu-int8 "What is 17 times 23?"

The model's chat template must have tools; --chat-template FILE gives one that has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from .. import LlamaForCausalLM, UserError

ROUNDS = 5  # most rounds of calls


def multiply(a: float, b: float) -> float:
    """Multiply two numbers.

    Args:
        a: the first number.
        b: the second number.
    """
    return a * b


def time_now() -> str:
    """Tell the date and the time."""
    return datetime.now().isoformat(timespec="minutes")


def answer(
    model: LlamaForCausalLM, question: str, tools: Sequence[Callable[..., Any]], **settings: Any
) -> list[dict[str, Any]]:
    """Return the conversation: the question, the calls with their results, and the answer."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for _ in range(ROUNDS):
        reply = model.chat(messages, tools=tools, **settings)
        messages.append(reply.message)
        if not reply.tool_calls:
            break
        for call in reply.tool_calls:
            try:
                result = call.run()
            except (UserError, TypeError, ValueError) as error:  # the model may do better when it knows
                result = f"error: {error}"
            print(f"{call.name}({call.text}) -> {result}")
            messages.append(call.message(result))
    return messages


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="a model that calls Python functions")
    parser.add_argument("artifact", help="artifact folder")
    parser.add_argument("question")
    parser.add_argument("--chat-template", metavar="FILE", help="a chat template with tools")
    options = parser.parse_args()
    with LlamaForCausalLM.from_pretrained(options.artifact) as model:
        if options.chat_template is not None:
            model.tokenizer.use_chat_template(options.chat_template)
        print(answer(model, options.question, [multiply, time_now], max_new_tokens=300)[-1]["content"])


if __name__ == "__main__":
    main()
