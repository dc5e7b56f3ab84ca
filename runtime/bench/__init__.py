"""python -m runtime bench ARTIFACT: how fast an artifact is here, and how near to what the memory allows.

--json writes one object. Times are in seconds, sizes in bytes, rates in bytes per second. A *statistic* is
{"median", "min", "max", "samples"} over the repeats, in the order they were measured.

schema_version  1
artifact   name, digest, target, opset, weights_format, cache_dtype, batch, context, buckets, weights_bytes,
           step_weights_bytes (read by every decode step), cache_bytes (at full context), kernel_abi
machine    cpu, architecture, processors (that this process may use), memory_bytes, system
versions   of python, numpy, mindspore_lite, tokenizers and edgellama; null for what is not installed
settings   threads, repeats, steps (decode steps a sample), prompt_lengths, depths, batches
bandwidth  read bandwidth of the memory, measured between the other measurements: method, buffer_bytes, rate
           (statistic). The buffer is as large as what one decode step reads, so it is as far from the processor
prefill    a list: prompt_tokens, rows, seconds (statistic; empty cache to the first new token of each row),
           tokens_per_second
decode     a list: depth (tokens in the cache before the first of the steps), rows, seconds (statistic; one step of
           all rows: graph, inputs, picking the greedy token), model_seconds (statistic; of that the graph alone),
           tokens_per_second, bytes_per_step (weights once, and the rows' filled cache), rate, bandwidth_share (rate
           over bandwidth.rate.max: what else runs on the machine lowers both, and the limit is what it could do)
step_overhead  what a decode step of one row costs beside the graph (inputs, checks, choosing the token, ends), a list
           by setting: name, settings (of generate()), seconds (statistic), step_seconds (statistic; the whole step),
           share (of the medians), large_vocabulary_seconds (statistic; choosing alone among 128,256 scores by Zipf's
           law, behind reading as much as a step reads)
loop       what surrounds the model, seconds a token: encode, detokenize (streaming), greedy; null without a tokenizer
load       of fresh processes whose files are in the page cache: process (statistic; interpreter start to a first token
           being possible), engine (statistic; of that opening the artifact and building the graphs)
memory     of a fresh process that filled the cache of all rows to the deepest depth and decoded a step: peak_bytes
           (VmHWM), after_load_bytes, filled_cache_bytes, overhead_bytes (peak less weights_bytes and
           filled_cache_bytes); null where there is no VmHWM
output     prompt_tokens, new_tokens and sha256 of the greedy token ids (int32, little-endian) of a fixed prompt
"""
