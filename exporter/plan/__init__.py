"""python -m exporter plan MODEL: what a model needs and how fast it can be, before anything is exported.

Sizes follow from the config: weights and caches to the byte as export writes them, the rest estimated as said below.
Times are the roofline's (Williams et al., CACM 2009): a pass takes no less than its bytes take to be read, nor than its
arithmetic takes, from the chip's published peaks; nothing gets there.

--json writes one object. Sizes are in bytes, times in seconds, rates a second.

schema_version  1
model       name, parameters, layers, config (Hugging Face's)
target      as given; weights, cache (formats), batch, context, buckets
memory      weights, copies (what loading adds), cache, workspace (intermediate results of the largest bucket), gears
            (those of the other buckets, where the device shares none), libraries, total. files: weights_file (bytes of
            the file with the weights)
passes      a list, one a bucket; decode (bucket 1) behind half the context and behind all of it, prefill on an empty
            cache: bucket, start, weight_bytes, cache_bytes, bytes, flops
boards      a list: name, memory_bytes, available_bytes, bandwidth, flops (null for hosts, which are not known),
            fits, largest_context (0 where not even one token fits), times (null, or as in passes: bucket, start,
            seconds, memory_seconds, compute_seconds, tokens_per_second), sources, assumed (what no public page says)
measured    with --measured: bandwidth, flops (that the longest prompt reached), sizes (what, predicted, found), times
            (what, predicted, found, ratio)
"""
