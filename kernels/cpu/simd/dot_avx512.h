// Integer dot products of 16 columns with AVX-512 VNNI. See dot.h.
#pragma once

namespace edgellama::EDGELLAMA_ISA {

// 4 steps of K for 16 columns: unsigned bytes.
struct Quad {
  __m512i w;
};
// 16 running sums with the upper bytes of the activations, and 16 with the lower bytes.
struct Sum {
  __m512i hi, lo;
};
constexpr int kByteBias = 128;  // load_quad gives int8 weights as q + 128
constexpr int kRowBlock = 8;  // rows that share one read of a panel
constexpr int kTogether = 8;  // rows whose sums are in registers at the same time

static inline Quad load_quad(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void load_nibbles(const uint8_t* p, Quad& first, Quad& second) {
  const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
  first.w = _mm512_and_si512(both, mask);
  second.w = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}
static inline Sum start_sum(int32_t value) { return {_mm512_setzero_si512(), _mm512_set1_epi32(value)}; }
static inline __m512i four_bytes(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
static inline void dot(Sum& sum, Quad quad, const Activations& a, int k) {
  sum.hi = _mm512_dpbusd_epi32(sum.hi, quad.w, four_bytes(a.plane.hi + k));
  sum.lo = _mm512_dpbusd_epi32(sum.lo, quad.w, four_bytes(a.plane.lo + k));
}
static inline void to_float(Sum sum, F out[1]) {
  out[0] = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum.hi, 8), sum.lo));
}
static inline void store_activations(Activations& a, int k, I value) {  // 16 values in [-32639, 32639]
  const __m512i q = (__m512i)value;
  const __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
  _mm_storeu_si128((__m128i*)(a.plane.hi + k), _mm512_cvtepi32_epi8(hi));
  _mm_storeu_si128((__m128i*)(a.plane.lo + k), _mm512_cvtepi32_epi8(_mm512_sub_epi32(q, _mm512_slli_epi32(hi, 8))));
}

// Dot products of 16-bit integers, for many rows.
constexpr int kWordRows = 7;    // rows whose sums, two vectors of columns each, fit in registers

// sum += w . x, over the pair of words in each 32-bit lane.
static inline I dot_words(I sum, I w, I x) {
  return (I)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}
// Each lane holds four unsigned bytes: widens the first two and the last two to words.
static inline void bytes_to_words(I bytes, I& first, I& last) {
  const __m512i order = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));  // -1: zero
  first = (I)_mm512_shuffle_epi8((__m512i)bytes, order);
  last = (I)_mm512_shuffle_epi8(_mm512_srli_epi32((__m512i)bytes, 16), order);
}
static inline I subtract_words(I a, I b) { return (I)_mm512_sub_epi16((__m512i)a, (__m512i)b); }
static inline void store_words(int16_t* p, I value) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)value));
}
// Dot products of bytes, for the rows of a prefill.
constexpr int kByteRows = 7;         // as kWordRows
constexpr bool kSignedBytes = false;  // int8 weights are read as q + 128

// sum += w . x, over the four bytes in each 32-bit lane; x is signed.
static inline I dot_bytes(I sum, I w, I x) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
// Loads the scale d and the zero point z of 16 columns of int4.
static inline void load_int4_scales(const uint16_t* p, F d[1], F z[1]) {
  const __m256i v = _mm256_loadu_si256((const __m256i*)p);
  d[0] = _mm512_cvtph_ps(_mm256_srli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(63), v), 1));
  z[0] = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_and_si256(v, _mm256_set1_epi16(63)))) * broadcast(0.25f);
}

}  // namespace edgellama::EDGELLAMA_ISA
