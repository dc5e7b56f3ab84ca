"""Programs of about ten lines, each with one call that the guides of transformers teach, in this project's words.

The name before the colon is the page of transformers' documentation. Every program begins with BEGIN. A name of a model
in a program stands for the small model of the test. A value is the program, or (program, part of the error that names
the remedy).
"""

from __future__ import annotations

BEGIN = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
tokenizer = AutoTokenizer.from_pretrained("some/model", padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained("some/model", device_map="auto")
inputs = tokenizer("Alice was beginning to get", return_tensors="pt").to(model.device)
"""
CHAT = """
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is Alice?"}]
"""
GUIDES: dict[str, str | tuple[str, str]] = {
    "llm_tutorial: default length": "ids = model.generate(**inputs)\nprint(tokenizer.batch_decode(ids)[0])",
    "llm_tutorial: longer": "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))",
    "llm_tutorial: a padded batch": """
batch = tokenizer(["Down, down, down.", "The Cat"], return_tensors="pt", padding=True).to(model.device)
print(tokenizer.batch_decode(model.generate(**batch, max_new_tokens=12), skip_special_tokens=True))""",
    "llm_tutorial: right padding": """
tokenizer.padding_side = "right"
batch = tokenizer(["Alice", "Alice was"], return_tensors="pt", padding=True)
model.generate(**{**batch, "input_ids": batch.input_ids[1:], "attention_mask": batch.attention_mask[1:]})""",
    "llm_tutorial: sampling after set_seed": """
from transformers import set_seed
set_seed(42)
model.generate(**inputs, do_sample=True, max_new_tokens=15)""",
    "llm_tutorial: only the new text": """
length = inputs.input_ids.shape[1]
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=8)[:, length:])[0])""",
    "llm_tutorial: a chat prompt": CHAT
    + """
chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**chat, max_new_tokens=9)[0][chat["input_ids"].shape[1]:]))""",
    "generation_strategies: greedy": "model.generate(**inputs, max_new_tokens=20, do_sample=False, num_beams=1)",
    "generation_strategies: sampling": "model.generate(**inputs, do_sample=True, num_beams=1, max_new_tokens=15)",
    "generation_strategies: beam search": "model.generate(**inputs, num_beams=2, max_new_tokens=10)",
    "generation_strategies: five beams": """
out = model.generate(**inputs, num_beams=5, num_return_sequences=3, no_repeat_ngram_size=2, early_stopping=True)
print(tokenizer.batch_decode(out, skip_special_tokens=True))""",
    "generation_strategies: length penalty": "model.generate(**inputs, num_beams=4, length_penalty=2.0)",
    "generation_strategies: a configuration": """
config = GenerationConfig(max_new_tokens=7, repetition_penalty=1.3, pad_token_id=tokenizer.eos_token_id)
model.generate(**inputs, generation_config=config)""",
    "generation_strategies: a configuration and keywords": """
config = GenerationConfig(do_sample=True, top_k=20, temperature=0.7, max_new_tokens=4)
model.generate(**inputs, generation_config=config, max_new_tokens=9)""",
    "generation_strategies: the model's configuration": """
model.generation_config.max_new_tokens = 6
model.generation_config.pad_token_id = tokenizer.eos_token_id
model.generate(**inputs)""",
    "generation_strategies: save and read a configuration": """
import tempfile
folder = tempfile.mkdtemp()
GenerationConfig(max_new_tokens=5, num_beams=2).save_pretrained(folder, "two_beams.json")
model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(folder, "two_beams.json"))""",
    "generation_strategies: diverse beams": (
        "model.generate(**inputs, num_beams=4, num_beam_groups=2, diversity_penalty=1.0)",
        "Use num_beams",
    ),
    "generation_strategies: contrastive search": ("model.generate(**inputs, penalty_alpha=0.6, top_k=4)", "removed"),
    "generation_strategies: DoLa": ('model.generate(**inputs, dola_layers="low")', "removed"),
    "generation_features: stream to the screen": """
from transformers import TextStreamer
model.generate(**inputs, streamer=TextStreamer(tokenizer, skip_prompt=True), max_new_tokens=9)""",
    "generation_features: a streamer of one's own": """
class Counter:
    def __init__(self):
        self.count = 0
    def put(self, value):
        self.count += value.numel()
    def end(self):
        print(self.count)
model.generate(**inputs, streamer=Counter(), max_new_tokens=9)""",
    "generation_features: watermarks": (
        """
from transformers import WatermarkingConfig
model.generate(**inputs, watermarking_config=WatermarkingConfig(bias=2.5), max_new_tokens=9)""",
        "construct_processor",
    ),
    "generation_features: watermarks, the remedy": """
from transformers import WatermarkingConfig
config = WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")
processor = config.construct_processor(model.config.vocab_size, "cpu")
model.generate(**inputs, logits_processor=[processor], max_new_tokens=9)""",
    "assisted_decoding: prompt lookup": """
text = tokenizer("Alice was not a bit hurt, and she was not a bit hurt, and", return_tensors="pt")
model.generate(**text, prompt_lookup_num_tokens=3, max_new_tokens=15)""",
    "assisted_decoding: an assistant": (
        """
assistant = AutoModelForCausalLM.from_pretrained("some/small-model")
model.generate(**inputs, assistant_model=assistant)""",
        "prompt_lookup_num_tokens",
    ),
    "assisted_decoding: early exit": ("model.generate(**inputs, assistant_early_exit=4)", "prompt_lookup_num_tokens"),
    "kv_cache: a static cache": 'model.generate(**inputs, cache_implementation="static", max_new_tokens=9)',
    "kv_cache: a quantized cache": ('model.generate(**inputs, cache_implementation="quantized")', "CACHE=int8"),
    "kv_cache: a cache of one's own": (
        """
from transformers import DynamicCache
model.generate(**inputs, past_key_values=DynamicCache(config=None), max_new_tokens=9)""",
        "reuse_prefix",
    ),
    "logits processors: a list of transformers' own": """
from transformers import LogitsProcessorList, MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor
own = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.2)])
length, eos = inputs.input_ids.shape[1], tokenizer.eos_token_id
own.append(MinNewTokensLengthLogitsProcessor(length, 5, eos_token_id=eos))
model.generate(**inputs, logits_processor=own, max_new_tokens=9)""",
    "logits processors: one's own": """
from transformers import LogitsProcessor, LogitsProcessorList
class Even(LogitsProcessor):
    def __call__(self, input_ids, scores):
        odd = torch.arange(scores.shape[-1]) % 2 == 1
        return scores.masked_fill(odd, -float("inf"))
model.generate(**inputs, logits_processor=LogitsProcessorList([Even()]), max_new_tokens=9)""",
    "stopping criteria: one's own": """
from transformers import StoppingCriteria, StoppingCriteriaList
class After(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] > 14)
model.generate(**inputs, stopping_criteria=StoppingCriteriaList([After()]), max_new_tokens=40)""",
    "stopping criteria: max_time": "model.generate(**inputs, max_time=100.0, max_new_tokens=9)",
    "stopping criteria: several eos ids": """
model.generate(**inputs, eos_token_id=[tokenizer.eos_token_id, 11, 12, 13, 14, 15], max_new_tokens=30)""",
    "output: scores and logits": """
out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, output_scores=True, output_logits=True)
print(out.sequences, out.scores[0].topk(3), torch.log_softmax(out.logits[-1], dim=-1).max())""",
    "output: attentions": ("model.generate(**inputs, output_attentions=True)", "do not return it"),
    "model_doc: logits of the next token": """
with torch.no_grad():
    logits = model.eval()(**inputs).logits
model.generate(torch.cat([inputs.input_ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1), max_new_tokens=3)""",
    "perplexity: loss": """
loss = model(inputs.input_ids, labels=inputs.input_ids).loss
print(torch.exp(loss).item())
model.generate(inputs.input_ids, max_new_tokens=int(loss.item()))""",
    "autoregressive loop": """
ids = inputs.input_ids
for _ in range(4):
    ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=-1)
assert model.generate(**inputs, max_new_tokens=4).tolist() == ids.tolist()""",
    "chat_templating: text first": CHAT
    + """
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = tokenizer([text], return_tensors="pt", add_special_tokens=False).to(model.device)
model.generate(**inputs, max_new_tokens=7)""",
    "conversations: pipeline": CHAT
    + """
from transformers import pipeline
chat = pipeline("text-generation", model="some/model", device_map="auto")
messages = chat(messages, max_new_tokens=6, do_sample=False)[0]["generated_text"]
messages.append({"role": "user", "content": "Why?"})
print(chat(messages, max_new_tokens=6, do_sample=False)[0]["generated_text"][-1]["content"])""",
    "pipeline_tutorial: several texts": """
from transformers import pipeline
write = pipeline("text-generation", model="some/model")
print(write(["Alice", "The Cat"], max_new_tokens=5, do_sample=False, batch_size=1))""",
    "performance: no effect on the tokens": """
model.generate(**inputs, max_new_tokens=5, low_memory=True, disable_compile=True, synced_gpus=False, use_cache=True)""",
    "quicktour: token type ids": "model.generate(**inputs, token_type_ids=None, max_new_tokens=5)",
    "beam scores": """
out = model.generate(
    **inputs, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True, max_new_tokens=5
)
print(model.compute_transition_scores(out.sequences, out.scores, out.beam_indices), out.sequences_scores)""",
    "constrained beams": ("model.generate(**inputs, num_beams=3, force_words_ids=[[40]])", "prefix_allowed_tokens_fn"),
    "sequence bias": "model.generate(**inputs, sequence_bias=[[[40], 9.0], [[41, 42], -9.0]], max_new_tokens=6)",
}
