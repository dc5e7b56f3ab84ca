// Applies the limits of sampling in the order of transformers' logits warpers (temperature, top_k, top_p, min_p,
// typical_p) and draws a token.
#include "sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "base/kernels.h"
#include "sampling/sampling_candidates.h"

namespace edgellama {
namespace {

constexpr long kFirstLook = 256;  // the most likely tokens, which contain most nuclei of top_p
constexpr float kFar = 1000;  // larger than any candidate's distance
// If a limit keeps at least this probability, draw() draws first, and applies the limit only after failed tries.
constexpr float kLikely = 0.5f;
constexpr int kTries = 2;  // of draw()
constexpr double kBelowOne = 1 - 0x1p-53;
constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int kNotNumbers = -1, kNothingLeft = -2, kNoKernels = -3, kOutOfRange = -4;  // returned instead of a token

// Selects a token from one row of scores.
class Row {
 public:
  Row(const Sampling& settings, const ScorePasses& passes, const float* scores, long n, Workspace& work)
      : settings_(settings), passes_(passes), work_(work), now_(&work.all) {
    Candidates& all = work.all;
    all.n = n;
    all.scores = scores;
    all.weighed = false;
    work.maxima.resize(all.runs());
    scale_.peak = passes.maxima(scores, n, work.maxima.data());
    scale_.inverse_temperature = 1.0f / settings.temperature;
  }

  // 0, or the reason why there is no token. A draw needs a finite maximum.
  int trouble(bool draw) const {
    if (std::isnan(scale_.peak) || (draw && scale_.peak == -kNone)) return kNotNumbers;
    return scale_.peak == kNone ? kNothingLeft : 0;
  }

  // The first token with the highest score.
  long likeliest() const {
    const std::vector<float>& maxima = work_.maxima;
    const long run = std::find(maxima.begin(), maxima.end(), scale_.peak) - maxima.begin();
    return std::find(work_.all.scores + run * kRun, work_.all.scores + work_.all.n, scale_.peak) - work_.all.scores;
  }

  // Applies the settings. later: leaves the last limit to draw() if that is faster.
  void apply(bool later) {
    if (settings_.top_k > 0) top_k(std::max(settings_.top_k, settings_.keep));
    if (settings_.top_p < 1) limit(0, settings_.top_p, false, later && settings_.min_p < 0 && settings_.typical_p == 1);
    if (settings_.min_p >= 0) min_p();
    if (settings_.typical_p < 1) {
      weigh();
      const double moment = passes_.moment(scale_, now_->scores, now_->weights.data(), now_->n);
      limit(static_cast<float>(moment / now_->total()), settings_.typical_p, true, later);
    }
  }

  // The token that `uniform`, in [0, 1), selects; each token has a share of its weight.
  long draw(double uniform) {
    weigh();
    const Candidates& c = *now_;
    for (int i = 0; later_ && i < kTries; ++i) {
      double left;
      const long found = c.walk(uniform * c.total(), left);
      if (admits(*later_, found)) return found;
      // The position inside the token's share is uniform again, and independent of the token.
      uniform = std::min(left / c.weights[found], kBelowOne);
    }
    if (later_) limit_all(*later_);
    double left;
    const long found = c.walk(uniform * c.total(), left);
    return now_ == &work_.few ? c.ids[found] : found;
  }

  // log(sum(exp(score / temperature)))
  double log_normaliser() {
    weigh();
    return static_cast<double>(scale_.peak) * scale_.inverse_temperature + std::log(now_->total());
  }

  // Writes scores / temperature to out [n], and -infinity for the dropped tokens.
  void write(float* out) const {
    const Candidates& c = *now_;
    const float temperature = settings_.temperature;
    if (now_ == &work_.few) {
      std::fill(out, out + work_.all.n, kNone);
      for (long i = 0; i < c.n; ++i) out[c.ids[i]] = c.scores[i] / temperature;
    } else {
      for (long i = 0; i < c.n; ++i) out[i] = c.weighed && c.weights[i] == 0 ? kNone : c.scores[i] / temperature;
    }
  }

 private:
  // Keeps candidates in the order of their distance from `centre` until their weights reach `mass`. With ties, also
  // those at the same distance as the last one.
  struct Limit {
    float centre;
    double mass;
    bool ties;
  };

  // True if the limit keeps candidate i of all: if the candidates before it weigh less than the mass. Of the candidates
  // at the same distance, the later ones are before it; with ties, none is.
  bool admits(const Limit& limit, long i) const {
    const Candidates& all = work_.all;
    const float own = near(all, i, limit.centre).distance;
    const auto within = [&](float end) {
      return passes_.within({scale_, limit.centre}, all.scores, all.weights.data(), all.n, end);
    };
    if (limit.ties) return within(own) < limit.mass;
    // Admitted even if all candidates at the same distance are before it.
    if (within(std::nextafter(own, kFar)) - all.weights[i] < limit.mass) return true;
    double before = within(own);
    for (long j = i + 1; j < all.n; ++j)
      if (all.scores[j] == all.scores[i]) before += all.weights[j];
    return before < limit.mass;
  }

  void weigh() { weigh(*now_); }

  void weigh(Candidates& c) {
    if (c.weighed) return;
    c.weights.resize(c.n);
    c.sums.resize(c.runs());
    passes_.weigh(scale_, c.scores, c.n, c.weights.data(), c.sums.data());
    c.weighed = true;
  }

  // A value that at least `count` scores reach, and not many more: the count-th largest maximum of a run.
  float bound(long count) {
    std::vector<float>& order = work_.order;
    if (count > static_cast<long>(work_.maxima.size())) return kNone;
    order = work_.maxima;
    std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), std::greater<float>());
    return order[count - 1];
  }

  // An upper bound of the weight of all candidates with scores of at least `lowest`.
  double reach(float lowest) const {
    double weight = 0;
    for (long run = 0; run < work_.all.runs(); ++run)
      if (work_.maxima[run] >= lowest) weight += work_.all.sums[run];
    return weight;
  }

  // Fills `few` with the candidates of `all` that are not dropped and have scores of at least `lowest`.
  void gather(float lowest) {
    const Candidates& all = work_.all;
    Candidates& few = work_.few;
    few.ids.clear();
    few.own.clear();
    for (long run = 0; run < all.runs(); ++run) {
      if (work_.maxima[run] < lowest) continue;
      for (long i = run * kRun; i < std::min(all.n, (run + 1) * kRun); ++i) {
        if (all.scores[i] < lowest || (all.weighed ? all.weights[i] == 0 : all.scores[i] == kNone)) continue;
        few.ids.push_back(static_cast<int32_t>(i));
        few.own.push_back(all.scores[i]);
      }
    }
    few.n = static_cast<long>(few.own.size());
    few.scores = few.own.data();
    few.weighed = false;
  }

  // Keeps the few for which `counts` (index among the few) is true.
  template <class Counts>
  void keep(const Counts& counts) {
    Candidates& few = work_.few;
    long kept = 0;
    for (long i = 0; i < few.n; ++i) {
      if (!counts(i)) continue;
      few.ids[kept] = few.ids[i];
      few.own[kept++] = few.own[i];
    }
    few.n = kept;
    few.weighed = false;
  }

  // Keeps the k highest scores, and the scores equal to the last of them.
  void top_k(long k) {
    if (k >= now_->n) return;
    if (now_ == &work_.all) {
      gather(bound(k));
      now_ = &work_.few;
    }
    Candidates& few = work_.few;
    if (k >= few.n) return;
    std::vector<float>& order = work_.order;
    order.assign(few.own.begin(), few.own.begin() + few.n);
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<float>());
    const float lowest = order[k - 1];
    keep([&](long i) { return few.own[i] >= lowest; });
  }

  // Keeps the tokens that are at least min_p times as likely as the most likely one, whose weight is 1.
  void min_p() {
    weigh();
    Candidates& c = *now_;
    const float least = settings_.min_p;
    if (settings_.keep > 1) {
      const auto heavy = [&](float weight) { return weight > 0 && weight >= least; };
      if (std::count_if(c.weights.begin(), c.weights.begin() + c.n, heavy) < settings_.keep)
        return top_k(settings_.keep);
    }
    if (now_ == &work_.all)
      passes_.keep_heavy(least, c.weights.data(), c.n, c.sums.data());
    else
      keep([&](long i) { return c.weights[i] >= least; });
  }

  // Keeps the candidates whose relative score is nearest to `centre`, until they have the share p of the total weight.
  // With centre 0 these are the most likely ones.
  void limit(float centre, float p, bool ties, bool later) {
    weigh();
    const Limit limit = {centre, p * now_->total(), ties};
    if (now_ == &work_.few)
      keep_nearest(limit);
    else if (later && p >= kLikely)
      later_ = limit;
    else if (!limit_few(limit))
      limit_all(limit);
  }

  // Applies the limit if the few most likely candidates are enough for it. Returns whether it did.
  bool limit_few(const Limit& limit) {
    const float lowest = bound(std::max<long>(kFirstLook, settings_.keep));
    if (reach(lowest) < limit.mass) return false;
    gather(lowest);
    weigh(work_.few);
    if (work_.few.total() < limit.mass) return false;
    // With centre 0, candidates below the few are farther than all of them. Otherwise the last one kept must be nearer
    // than those.
    const float outside = limit.ties ? limit.centre - relative(lowest) : -kNone;
    if (keep_nearest(limit) >= outside) return false;
    now_ = &work_.few;
    return true;
  }

  float relative(float score) const { return (score - scale_.peak) * scale_.inverse_temperature; }

  Near near(const Candidates& c, long i, float centre) const {
    return {std::abs(relative(c.scores[i]) - centre), c.weights[i], i};
  }

  // Applies the limit to the few, and returns the distance of the last one kept.
  float keep_nearest(const Limit& limit) {
    Candidates& few = work_.few;
    std::vector<Near>& list = work_.near;
    list.resize(few.n);
    for (long i = 0; i < few.n; ++i) list[i] = near(few, i, limit.centre);
    const long kept = nearest(list, limit.mass, settings_.keep, limit.ties);
    const float last = list[kept - 1].distance;
    for (long i = 0; i < few.n; ++i) few.weights[i] = 0;
    for (long i = 0; i < kept; ++i) few.weights[list[i].at] = list[i].weight;
    keep([&](long i) { return few.weights[i] > 0; });
    return last;
  }

  // Applies the limit to all: adds up the weights in bins of distance, and looks only into the bin in which the sum
  // reaches the mass.
  void limit_all(const Limit& limit) {
    Candidates& all = work_.all;
    const Distance distance = {scale_, limit.centre};
    double mass = limit.mass;
    double heavy[kBins];
    passes_.add_bins(distance, all.scores, all.weights.data(), all.n, heavy);
    long last = kBins - 1, reached = 0, before = 0;
    while (heavy[last] == 0) --last;
    const auto edge = [](long bin) { return static_cast<float>(bin) / kBinsAUnit; };
    for (; reached < last && (heavy[reached] < mass || heavy[reached] == 0); ++reached) mass -= heavy[reached];
    if (settings_.keep > 1) {  // only with beams, so a pass over the scores for each bin is acceptable
      while (reached < last && list_between(distance, 0, edge(reached + 1)) < settings_.keep) mass -= heavy[reached++];
      before = list_between(distance, 0, edge(reached));
    }
    list_between(distance, edge(reached), reached < last ? edge(reached + 1) : kFar);
    std::vector<Near>& list = work_.near;
    const long kept = nearest(list, mass, settings_.keep - before, limit.ties);
    passes_.keep_near(distance, all.scores, edge(reached), all.weights.data(), all.n, all.sums.data());
    for (long i = 0; i < kept; ++i) {
      all.weights[list[i].at] = list[i].weight;
      all.sums[list[i].at / kRun] += list[i].weight;
    }
  }

  // Lists the candidates of `all` that are not dropped and whose distance is in [begin, end). Returns their number.
  long list_between(Distance distance, float begin, float end) {
    const Candidates& all = work_.all;
    work_.places.resize(all.n);
    const long found =
        passes_.between(distance, all.scores, all.weights.data(), all.n, begin, end, work_.places.data());
    work_.near.resize(found);
    for (long i = 0; i < found; ++i) work_.near[i] = near(all, work_.places[i], distance.centre);
    return found;
  }

  const Sampling& settings_;
  const ScorePasses& passes_;
  Workspace& work_;
  Candidates* now_;
  ScoreScale scale_;
  std::optional<Limit> later_;  // of all candidates, not applied yet
};

// Returns f(Row&), or the reason why there is no token: a negative number.
template <class Function>
int with_row(const Sampling& settings, const float* scores, long n, bool draw, Function&& f) {
  const Kernels* table = kernels(settings.isa < 0 ? best_isa() : static_cast<Isa>(settings.isa));
  if (!table) return kNoKernels;
  const bool limits = settings.top_p >= 0 && settings.top_p <= 1 && settings.typical_p >= 0 && settings.typical_p <= 1 &&
                      settings.min_p <= 1 && settings.top_k >= 0 && settings.keep >= 1;
  const float inverse = 1.0f / settings.temperature;
  if (!limits || !(inverse > 0 && std::isfinite(inverse)) || n < 1 || n > std::numeric_limits<int>::max())
    return kOutOfRange;
  thread_local Workspace work;
  Row row(settings, *table->scores, scores, n, work);
  if (const int trouble = row.trouble(draw)) return trouble;
  return f(row);
}

}  // namespace
}  // namespace edgellama

using edgellama::Row;
using edgellama::Sampling;

int edgellama_likeliest(const Sampling* settings, const float* scores, long row, long n) {
  return edgellama::with_row(*settings, scores + row * n, n, false,
                             [](Row& x) { return static_cast<int>(x.likeliest()); });
}

int edgellama_draw(const Sampling* settings, const float* scores, long row, long n, double uniform) {
  if (!(uniform >= 0 && uniform < 1)) return edgellama::kOutOfRange;
  return edgellama::with_row(*settings, scores + row * n, n, true, [&](Row& x) {
    x.apply(true);
    return static_cast<int>(x.draw(uniform));
  });
}

int edgellama_warp(const Sampling* settings, const float* scores, long n, float* out) {
  return edgellama::with_row(*settings, scores, n, true, [&](Row& x) {
    x.apply(false);
    x.write(out);
    return 0;
  });
}

int edgellama_log_normaliser(const Sampling* settings, const float* scores, long row, long n, double* out) {
  return edgellama::with_row(*settings, scores + row * n, n, true, [&](Row& x) {
    *out = x.log_normaliser();
    return 0;
  });
}
