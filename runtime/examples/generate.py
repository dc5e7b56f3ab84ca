"""Text generation with an exported model: one prompt, a padded batch, and sampling.

generate_pt.py is the same script in PyTorch, line by line, for comparison.

    python -m edgellama.examples.generate artifacts/smollm2-135m-instruct-cpu-int8
"""

from __future__ import annotations

import argparse

from transformers import AutoTokenizer

from .. import LlamaForCausalLM


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="one prompt, a padded batch, and sampling, through MindSpore Lite")
    parser.add_argument("model", help="folder written by `make export`")
    parser.add_argument("--max-new-tokens", type=int, default=30, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the sampled answer; default: %(default)s"
    )
    options = parser.parse_args()

    model = LlamaForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    print("One prompt:")
    inputs = tokenizer(["A list of colors: red, blue"], return_tensors="np")
    generated_ids = model.generate(
        input_ids=inputs.input_ids,
        max_new_tokens=options.max_new_tokens,
        use_cache=True,
        do_sample=False,
    )
    print(tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0].strip())

    print("A padded batch:")
    tokenizer.pad_token = tokenizer.eos_token  # most LLMs don't have a pad token by default
    tokenizer.padding_side = "left"
    inputs = tokenizer(["A list of colors: red, blue", "Portugal is"], padding=True, return_tensors="np")
    generated_ids = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=options.max_new_tokens,
        use_cache=True,
        do_sample=False,
    )
    for text in tokenizer.batch_decode(generated_ids, skip_special_tokens=True):
        print(text)

    print("Sampled:")
    generated_ids = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=options.max_new_tokens,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        seed=options.seed,
    )
    for text in tokenizer.batch_decode(generated_ids, skip_special_tokens=True):
        print(text)


if __name__ == "__main__":
    main()
