#pragma once

namespace edgellama {

// The version of what a graph, its weights and this library share: operators, their inputs and attributes, and the
// packed layout. Increase it when one of them changes, here and in kernels/cpu/library.py. A graph stores the version
// that it needs, and this library runs graphs of the versions kOldestAbi .. kAbi.
//   2  the operators of Llama
//   3  optional attributes: norms of q and k, norms after attention and MLP, GELU, soft caps
//   4  the weight formats w4g32, w4g64 and w4g128; the optional attributes query_beta and query_period
constexpr int kOldestAbi = 2, kAbi = 4;

}  // namespace edgellama
