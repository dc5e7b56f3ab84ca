#include "layer/adapters.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

namespace edgellama {
namespace {

struct Place {
  const AdapterTable* table;
  int layer;
};

// Which table a layer belongs to, by the address of its key cache.
struct Directory {
  std::atomic<int> tables{0};
  std::shared_mutex mutex;
  std::unordered_map<const void*, Place> places;
};

Directory& directory() {
  static Directory* const one = new Directory;  // never destroyed: a thread may run a model while the process ends
  return *one;
}

}  // namespace

AdapterTable::AdapterTable(int rows, int layers)
    : rows_(rows), layers_(layers), chosen_(static_cast<size_t>(layers) * kParts * rows), any_(layers * kParts) {}

bool AdapterTable::add(int id, int layer, int part, StoredLowRank matrices) {
  if (id < 1 || layer < 0 || layer >= layers_ || part < 0 || part >= kParts) return false;
  std::vector<Parts>& mine = adapters_[id];
  if (mine.empty()) mine.resize(layers_);
  StoredLowRank& place = mine[layer][part];
  if (place.view().rank) return false;
  place = std::move(matrices);
  return true;
}

void AdapterTable::remove(int id) {
  const std::vector<int32_t> none(rows_);
  select(none.data());
  adapters_.erase(id);
}

bool AdapterTable::select(const int32_t* ids) {
  for (int row = 0; row < rows_; ++row)
    if (ids[row] && !adapters_.count(ids[row])) return false;
  most_rank_ = 0;
  std::fill(any_.begin(), any_.end(), 0);
  for (int row = 0; row < rows_; ++row) {
    const std::vector<Parts>* const mine = ids[row] ? &adapters_[ids[row]] : nullptr;
    for (int i = 0; i < layers_ * kParts; ++i) {
      const LowRank* const low = mine ? &(*mine)[i / kParts][i % kParts].view() : nullptr;
      const bool has = low && low->rank;
      chosen_[static_cast<size_t>(i) * rows_ + row] = has ? low : nullptr;
      if (!has) continue;
      any_[i] = 1;
      most_rank_ = std::max(most_rank_, low->rank);
    }
  }
  return true;
}

const LowRank* const* AdapterTable::chosen(int layer, int part) const {
  const size_t at = static_cast<size_t>(layer) * kParts + part;
  return any_[at] ? chosen_.data() + at * rows_ : nullptr;
}

std::string choose_adapters(DecoderLayerArgs& args) {
  LinearArgs* const parts[kParts] = {&args.qkv, &args.o, &args.gate_up, &args.down};
  for (LinearArgs* part : parts) part->low_rank = nullptr;
  Directory& all = directory();
  if (all.tables.load(std::memory_order_acquire) == 0) return {};
  Place place;
  {
    const std::shared_lock<std::shared_mutex> lock(all.mutex);
    const auto found = all.places.find(args.attention.k_cache);
    if (found == all.places.end()) return {};
    place = found->second;
  }
  for (int i = 0; i < kParts; ++i) {
    const LowRank* const* const chosen = place.table->chosen(place.layer, i);
    if (!chosen) continue;
    const LinearShape& shape = parts[i]->shape;
    if (place.table->rows() != shape.rows) return "its adapters are for another number of rows";
    for (int row = 0; row < shape.rows; ++row)
      if (chosen[row] && (chosen[row]->in != shape.in || chosen[row]->panels != shape.panels()))
        return "an adapter has matrices of other sizes than its weights";
    parts[i]->low_rank = chosen;
    parts[i]->most_rank = place.table->most_rank();
  }
  return {};
}

}  // namespace edgellama

using edgellama::AdapterTable;

// The C interface. A table belongs to one model; its functions are not called while the model runs. They return 0, -2
// for a wrong argument, or -3 without memory.

// Makes the table of a model with `rows` rows, whose layers have these key caches. Returns nullptr if a number is wrong,
// a cache has a table already, or there is no memory.
EDGELLAMA_API void* edgellama_adapters_new(int rows, int layers, const void* const* key_caches) {
  using namespace edgellama;
  if (!is_size(rows) || !is_size(layers) || !key_caches) return nullptr;
  try {
    auto table = std::make_unique<AdapterTable>(rows, layers);
    Directory& all = directory();
    const std::unique_lock<std::shared_mutex> lock(all.mutex);
    for (int i = 0; i < layers; ++i)
      if (!key_caches[i] || all.places.count(key_caches[i])) return nullptr;
    for (int i = 0; i < layers; ++i) all.places[key_caches[i]] = {table.get(), i};
    all.tables.fetch_add(1, std::memory_order_release);
    return table.release();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

EDGELLAMA_API void edgellama_adapters_free(void* table) {
  using namespace edgellama;
  const std::unique_ptr<AdapterTable> mine(static_cast<AdapterTable*>(table));
  if (!mine) return;
  Directory& all = directory();
  const std::unique_lock<std::shared_mutex> lock(all.mutex);
  for (auto at = all.places.begin(); at != all.places.end();)
    at = at->second.table == mine.get() ? all.places.erase(at) : std::next(at);
  all.tables.fetch_sub(1, std::memory_order_release);
}

// a: [rank, in]; b: [16 * panels, rank]. See AdapterTable::add.
EDGELLAMA_API int edgellama_adapters_add(void* table, int id, int layer, int part, int rank, int in, int panels,
                                         const float* a, const float* b) {
  using namespace edgellama;
  if (!table || !is_size(rank) || !is_size(in) || !is_size(panels) || !a || !b) return -2;
  try {
    StoredLowRank matrices(rank, in, panels, a, b);
    return static_cast<AdapterTable*>(table)->add(id, layer, part, std::move(matrices)) ? 0 : -2;
  } catch (const std::bad_alloc&) {
    return -3;
  }
}

// No row has an adapter afterwards.
EDGELLAMA_API int edgellama_adapters_remove(void* table, int id) {
  if (!table) return -2;
  static_cast<AdapterTable*>(table)->remove(id);
  return 0;
}

EDGELLAMA_API int edgellama_adapters_select(void* table, const int32_t* ids) {
  return table && ids && static_cast<AdapterTable*>(table)->select(ids) ? 0 : -2;
}
