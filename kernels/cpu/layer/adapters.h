// The low-rank adapters (linear/low_rank.h) of the models in this process.
//
// A graph does not know adapters: they are loaded and chosen while it runs. So each model has a table here, which its
// layers find by the address of their key cache: it belongs to one model and one layer, and a graph writes it in place,
// so a kernel sees the address that the runtime has bound.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "base/export.h"
#include "layer/decoder_layer.h"

namespace edgellama {

constexpr int kParts = 4;  // qkv, o, gate_up, down

// The adapters of one model. The caller does not change the table while the model runs.
class AdapterTable {
 public:
  AdapterTable(int rows, int layers);

  // Stores matrices of adapter `id` (above 0) for a part of a layer, in the order of the part's packed columns. Returns
  // whether the arguments fit, and the part has no matrices of this adapter yet.
  bool add(int id, int layer, int part, StoredLowRank matrices);
  void remove(int id);
  // Chooses the adapter of each row: `ids` [rows], 0 for none. Returns false, and changes nothing, if one is unknown.
  bool select(const int32_t* ids);

  int rows() const { return rows_; }
  // The choice for a part of a layer, [rows]; nullptr if no row has matrices there.
  const LowRank* const* chosen(int layer, int part) const;
  // The largest rank of the choice.
  int most_rank() const { return most_rank_; }

 private:
  using Parts = std::array<StoredLowRank, kParts>;
  const int rows_, layers_;
  int most_rank_ = 0;
  std::map<int, std::vector<Parts>> adapters_;  // id -> [layers]
  std::vector<const LowRank*> chosen_;          // [layers, kParts, rows]
  std::vector<char> any_;                       // [layers, kParts]
};

// Sets the low-rank additions of a layer's call, or none. Takes a nanosecond while no model has a table. Returns an
// error, or an empty text.
EDGELLAMA_EXPORT std::string choose_adapters(DecoderLayerArgs& args);

}  // namespace edgellama
