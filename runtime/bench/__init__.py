"""edgellama bench ARTIFACT: measures an artifact, and compares a decode step with the memory bandwidth.

--json writes one object. Times are in seconds, sizes in bytes, rates in bytes per second. A *statistic* is
{"median", "min", "max", "samples"} over the repeats; samples are in the order of measurement.

schema_version  1
artifact   name, digest, target, opset, weights_format, cache_dtype, batch, context, buckets, weights_bytes,
           step_weights_bytes (read by every decode step), cache_bytes (at full context), kernel_abi
machine    cpu, architecture, processors (that this process may use), memory_bytes, system
versions   of python, numpy, mindspore_lite, tokenizers and edgellama; null for what is not installed
settings   threads, weights_memory (where the weights are: copy or map), isa (the instruction set that the CPU kernels
           used), repeats, steps (decode steps per sample), prompt_lengths, depths, batches
bandwidth  read bandwidth of the memory, measured between the other measurements: method (the fastest of several
           readers), buffer_bytes, rate (statistic; of the fastest reader in each measurement). The buffer has the size
           of what one decode step reads, so caches serve it equally well; it lies on huge pages where the weights do
prefill    a list: prompt_tokens, rows, seconds (statistic; empty cache to the first new token of each row),
           tokens_per_second
decode     a list: depth (tokens in the cache before the first of the steps), rows, seconds (statistic; one step of
           all rows: graph, inputs, selecting the greedy token), model_seconds (statistic; the graph's part of that),
           tokens_per_second, bytes_per_step (weights once, and the rows' filled cache), rate, bandwidth_share (rate
           over bandwidth.rate.max: other programs lower both rates, and the maximum is what the memory could do)
first_token  fresh: prompt_tokens, seconds (statistic; from the interpreter's start to the first token of a prompt in a
           fresh process, loaded with LlamaForCausalLM.from_pretrained; files in the page cache). cached: prompt_tokens,
           cached_tokens, seconds (statistic; first token of a prompt in row 0 whose first cached_tokens are in the
           cache, in this process)
prompt_lookup  a list by file of --lookup: name, prompt_tokens, new_tokens, guessed_tokens, accepted_tokens,
           plain_seconds and lookup_seconds (statistics; the greedy answer without its first token, one by one and
           with prompt lookup), gain (statistic; plain over lookup of each round)
step_overhead  the part of a decode step of one row outside the graph (inputs, checks, token selection, stopping), a
           list by setting: name, settings (of generate()), seconds (statistic), step_seconds (statistic; the whole
           step), share (of the medians), large_vocabulary_seconds (statistic; token selection alone, from 128,256
           scores by Zipf's law, after reading as much memory as a step reads)
loop       work outside the model, seconds per token: encode, detokenize (streaming), greedy; null without a tokenizer
load       of fresh processes whose files are in the page cache: process (statistic; from the interpreter's start until
           a first token is possible), engine (statistic; the part that opens the artifact and builds the graphs)
memory     of a fresh process that filled the cache of all rows to the deepest depth and decoded a step: peak_bytes
           (VmHWM), after_load_bytes, filled_cache_bytes, overhead_bytes (peak minus weights_bytes and
           filled_cache_bytes); null on systems without VmHWM
output     prompt_tokens, new_tokens and sha256 of the greedy token ids (int32, little-endian) of a fixed prompt
"""
