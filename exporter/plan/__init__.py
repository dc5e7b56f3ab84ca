"""`edgellama plan MODEL`: estimate the memory and the speed of a model before an export.

Sizes follow from the config. Weights and caches are exact: they are what export writes. The other sizes are estimates,
as described below. Times are lower bounds from the roofline model (Williams et al., CACM 2009): a pass takes at least
as long as it takes to read its bytes, and as long as it takes to compute its operations, at the chip's published peaks.
For Ascend, estimate.py also estimates times from the performance model of the kernels; no board has been measured.

--json prints one object. Sizes are in bytes, times in seconds, rates per second.

schema_version  1
model       name, parameters, layers, config (Hugging Face's)
target      the target, followed by: weights, cache (formats), batch, context, buckets
memory      weights, copies (what loading adds), cache, workspace (intermediate results of the largest bucket), gears
            (intermediate results of the other buckets, if the device shares no memory between them), libraries, total
files       weights_file (bytes of the file with the weights)
passes      a list with one entry per bucket: bucket, start, weight_bytes, cache_bytes, bytes, flops. Decode (bucket 1)
            is listed with half of the context in the cache and with all of it, prefill with an empty cache
boards      a list: name, memory_bytes, available_bytes, bandwidth, flops (null for hosts: unknown), fits,
            largest_context (0 if not even one token fits), times (null, or one entry per pass: bucket, start, seconds,
            memory_seconds, compute_seconds, tokens_per_second, estimated_seconds: the pessimistic and the optimistic
            end, null for hosts), sources, assumed (facts that no public page states)
measured    with --measured: bandwidth, flops (reached by the longest prompt), sizes (what, predicted, found), times
            (what, predicted, found, ratio)
"""
