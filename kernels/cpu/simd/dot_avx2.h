// Integer dot products of 16 columns with 256-bit vectors: VNNI if the variant has it, otherwise 16-bit multiplies. See
// dot.h.
#pragma once

namespace edgellama::EDGELLAMA_ISA {

constexpr int kRowBlock = 4;  // rows that share one read of a panel
constexpr int kTogether = 1;  // rows whose sums are in registers at the same time

#if defined(__AVXVNNI__)

struct Quad {
  __m256i w[2];
};
struct Sum {
  __m256i hi[2], lo[2];
};
constexpr int kByteBias = 128;

static inline Quad load_quad(const uint8_t* p) {
  return {{_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))}};
}
static inline void load_nibbles(const uint8_t* p, Quad& first, Quad& second) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int i = 0; i < 2; ++i) {
    const __m256i both = _mm256_loadu_si256((const __m256i*)(p + 32 * i));
    first.w[i] = _mm256_and_si256(both, mask);
    second.w[i] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
}
static inline Sum start_sum(int32_t value) {
  const __m256i zero = _mm256_setzero_si256(), first = _mm256_set1_epi32(value);
  return {{zero, zero}, {first, first}};
}
static inline __m256i four_bytes(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
static inline void dot(Sum& sum, const Quad& quad, const Activations& a, int k) {
  const __m256i hi = four_bytes(a.plane.hi + k), lo = four_bytes(a.plane.lo + k);
  for (int i = 0; i < 2; ++i) {
    sum.hi[i] = _mm256_dpbusd_avx_epi32(sum.hi[i], quad.w[i], hi);
    sum.lo[i] = _mm256_dpbusd_avx_epi32(sum.lo[i], quad.w[i], lo);
  }
}
static inline void to_float(const Sum& sum, F out[2]) {
  for (int i = 0; i < 2; ++i)
    out[i] = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(sum.hi[i], 8), sum.lo[i]));
}
// 8 values in [-32639, 32639]
static inline void store_activations(Activations& a, int k, I value) {
  for (int i = 0; i < 8; ++i) {
    const int32_t hi = (value[i] + 128) >> 8;
    a.plane.hi[k + i] = static_cast<int8_t>(hi);
    a.plane.lo[k + i] = static_cast<int8_t>(value[i] - hi * 256);
  }
}

#else

struct Quad {
  __m256i w[4];  // 16-bit words: 4 columns of 4 steps each
};
struct Sum {
  __m256i s[4];  // 4 columns of 2 partial sums each
};
constexpr int kByteBias = 0;  // load_quad gives int8 weights as q, signed

static inline Quad load_quad(const uint8_t* p) {
  Quad quad;
  const __m128i sign = _mm_set1_epi8(-128);
  for (int i = 0; i < 4; ++i)
    quad.w[i] = _mm256_cvtepi8_epi16(_mm_xor_si128(_mm_loadu_si128((const __m128i*)(p + 16 * i)), sign));
  return quad;
}
static inline void load_nibbles(const uint8_t* p, Quad& first, Quad& second) {
  const __m128i mask = _mm_set1_epi8(15);
  for (int i = 0; i < 4; ++i) {
    const __m128i both = _mm_loadu_si128((const __m128i*)(p + 16 * i));
    first.w[i] = _mm256_cvtepi8_epi16(_mm_and_si128(both, mask));
    second.w[i] = _mm256_cvtepi8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), mask));
  }
}
static inline Sum start_sum(int32_t value) {
  const __m256i first = _mm256_set1_epi64x(static_cast<uint32_t>(value));
  return {{first, first, first, first}};
}
static inline void dot(Sum& sum, const Quad& quad, const Activations& a, int k) {
  int64_t four;
  std::memcpy(&four, a.word + k, sizeof four);
  const __m256i x = _mm256_set1_epi64x(four);
  for (int i = 0; i < 4; ++i) sum.s[i] = _mm256_add_epi32(sum.s[i], _mm256_madd_epi16(quad.w[i], x));
}
static inline void to_float(const Sum& sum, F out[2]) {
  for (int i = 0; i < 2; ++i) {  // hadd gives the order of columns 0 1 4 5 | 2 3 6 7
    const __m256i halves = _mm256_hadd_epi32(sum.s[2 * i], sum.s[2 * i + 1]);
    out[i] = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(halves, 0xd8));
  }
}
static inline void store_activations(Activations& a, int k, I value) {
  const __m256i q = (__m256i)value;
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storeu_si128((__m128i*)(a.word + k), words);
}

#endif

// Dot products of 16-bit integers, for many rows.
constexpr int kWordRows = 3;   // rows whose sums, two vectors of columns each, fit in registers

// sum += w . x, over the pair of words in each 32-bit lane.
static inline I dot_words(I sum, I w, I x) {
#if defined(__AVXVNNI__)
  return (I)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#else
  return sum + (I)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#endif
}
#if defined(__AVXVNNI__)
// Dot products of bytes, for the rows of a prefill.
constexpr int kByteRows = 3;          // as kWordRows
constexpr bool kSignedBytes = false;  // int8 weights are read as q + 128

// sum += w . x, over the four bytes in each 32-bit lane; x is signed.
static inline I dot_bytes(I sum, I w, I x) { return (I)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x); }
#endif
// Each lane holds four unsigned bytes: widens the first two and the last two to words.
static inline void bytes_to_words(I bytes, I& first, I& last) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));  // -1: zero
  first = (I)_mm256_shuffle_epi8((__m256i)bytes, order);
  last = (I)_mm256_shuffle_epi8(_mm256_srli_epi32((__m256i)bytes, 16), order);
}
static inline I subtract_words(I a, I b) { return (I)_mm256_sub_epi16((__m256i)a, (__m256i)b); }
static inline void store_words(int16_t* p, I value) {  // 8 words
  const __m256i q = (__m256i)value;
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)));
}
static inline void load_int4_scales(const uint16_t* p, F d[2], F z[2]) {
  const __m128i mask = _mm_set1_epi16(63);
  for (int i = 0; i < 2; ++i) {
    const __m128i v = _mm_loadu_si128((const __m128i*)(p + 8 * i));
    d[i] = _mm256_cvtph_ps(_mm_srli_epi16(_mm_andnot_si128(mask, v), 1));
    z[i] = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_and_si128(v, mask))) * broadcast(0.25f);
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
