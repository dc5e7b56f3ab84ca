"""Text generation with PyTorch and transformers: one prompt, a padded batch, and sampling.

generate.py is the same script with an exported model, line by line. This script needs the extra "test".

    python -m edgellama.examples.generate_pt HuggingFaceTB/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="one prompt, a padded batch, and sampling, in PyTorch")
    parser.add_argument("model", help="a Hugging Face folder or hub id")
    parser.add_argument("--max-new-tokens", type=int, default=30, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the sampled answer; default: %(default)s"
    )
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    print("One prompt:")
    inputs = tokenizer(["A list of colors: red, blue"], return_tensors="pt")
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
    inputs = tokenizer(["A list of colors: red, blue", "Portugal is"], padding=True, return_tensors="pt")
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
    torch.manual_seed(options.seed)
    generated_ids = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=options.max_new_tokens,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    for text in tokenizer.batch_decode(generated_ids, skip_special_tokens=True):
        print(text)


if __name__ == "__main__":
    main()
