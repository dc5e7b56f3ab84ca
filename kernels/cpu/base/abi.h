#pragma once

namespace edgellama {

// The version of what a graph, its weights and this library share: operators, their inputs and attributes, and the
// packed layout. Increase it when one of them changes, here and in kernels/cpu/library.py. A graph stores the number,
// and a library with another number refuses the graph.
constexpr int kAbi = 2;

}  // namespace edgellama
