"""Op sets: what the pieces of the network become on a target. Each is one module with the same names:

inputs(config, shape) -> list[Input]   the graph's inputs before the caches
caches(config, shape) -> list[Input]   the graph's caches, layer by layer
outputs(config, shape) -> list[Input]  the graph's outputs
graphs(buckets) -> list[tuple[int, ...]]        the buckets that each graph file serves; it is traced at the largest
pieces(name, checkpoint, shape)        what makes one weight of the graph, block by block (row_blocks.py)
check(config, shape, buckets)          raises UserError for what the op set cannot do
CACHE_POLICY, CACHES                   "returned" or "in_place"; the cache dtypes it takes, its default first
stored(weight, config, shape) -> list[Input]    where weights are inputs: the tensors of the file that make up one
WEIGHTS, WEIGHTS_ARE                   the weight formats it takes, its default first; "constants" or "inputs"
DYNAMIC_TOKENS                         whether the graph's token axis is -1, or that of the traced bucket
Prepare, Embedding, Head               the cells that exporter.network.llama is made of, and of a layer either
NormQKV, Attention, LinearAdd, NormSwiGLU       its parts, or
DecoderLayer                           the whole, where one operator does it
"""
