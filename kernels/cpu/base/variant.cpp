// Compiled once for each instruction set: fills the table with that variant's kernels. A new kernel is declared here.
#include "base/kernels.h"
#include "sampling/sampling.h"

namespace edgellama::EDGELLAMA_ISA {

void embedding(const EmbeddingArgs& args, Worker& me);
void linear(const LinearArgs& args, Worker& me);
void pack(const PackArgs& args, Worker& me);
void fused_attention(const AttentionArgs& args, Worker& me);
void decoder_layer(const DecoderLayerArgs& args, Worker& me);
uint32_t read(const uint8_t* data, long bytes, long ahead);
float score_maxima(const float* scores, long n, float* maxima);
void weigh_scores(ScoreScale scale, const float* scores, long n, float* weights, float* sums);
double score_moment(ScoreScale scale, const float* scores, const float* weights, long n);
void add_bins(Distance distance, const float* scores, const float* weights, long n, double* bins);
double weights_within(Distance distance, const float* scores, const float* weights, long n, float end);
long scores_between(Distance distance, const float* scores, const float* weights, long n, float begin, float end,
                    int32_t* places);
void keep_near(Distance distance, const float* scores, float end, float* weights, long n, float* sums);
void keep_heavy(float least, float* weights, long n, float* sums);

const Kernels& variant() {
  static constexpr ScorePasses scores = {score_maxima,   weigh_scores,   score_moment, add_bins,
                                         weights_within, scores_between, keep_near,    keep_heavy};
  static constexpr Kernels table = {embedding, linear, pack, fused_attention, decoder_layer, &scores, read};
  return table;
}

}  // namespace edgellama::EDGELLAMA_ISA
