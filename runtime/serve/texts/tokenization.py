"""Answers to /tokenize and /detokenize, in the form of vLLM's."""

from __future__ import annotations

from typing import Any

from ...model import LlamaForCausalLM
from ..answers.form import check_tools
from ..errors import ApiError
from ..fields.messages import message_dicts
from ..fields.tokenization import DetokenizeRequest, TokenizeRequest
from ..responses import token_text


def tokenize(model: LlamaForCausalLM, request: TokenizeRequest) -> dict[str, Any]:
    """The token ids of a text, or of messages as the chat template writes them.

    Raises UserError if the model has no tokenizer or template, or the template refuses the messages.
    """
    tokenizer = model.tokenizer
    text = request.prompt
    if text is None:
        check_tools(request, tokenizer)
        text = tokenizer.render_chat(
            message_dicts(request.messages or ()),
            tools=[tool.as_tool().as_dict() for tool in request.tools] or None,
            add_generation_prompt=request.add_generation_prompt,
            **request.chat_template_kwargs,
        )
    ids = tokenizer.encode(text, add_special_tokens=request.adds_special_tokens)
    texts = [token_text(tokenizer.token_bytes(token), "bytes:") for token in ids] if request.return_token_strs else None
    return {"count": len(ids), "max_model_len": model.engine.context, "tokens": ids, "token_strs": texts}


def detokenize(model: LlamaForCausalLM, request: DetokenizeRequest) -> dict[str, Any]:
    """The text of token ids, special tokens included. Raises ApiError for an id that the model does not have."""
    size = model.engine.vocab_size
    if request.tokens and max(request.tokens) >= size:
        raise ApiError(
            400, f"token id {max(request.tokens)}; this model's are 0..{size - 1}. Use these", param="tokens"
        )
    return {"prompt": model.tokenizer.decode(request.tokens, skip_special_tokens=False)}
