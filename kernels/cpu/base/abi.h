#pragma once

namespace edgellama {

// What a graph and its weights must agree on with this library: operators, their inputs and attributes, the packed
// layout. A change to any of them makes a new number; graphs carry it and are refused by a library of another.
constexpr int kAbi = 2;

}  // namespace edgellama
