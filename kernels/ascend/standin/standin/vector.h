// Vector instructions. One repeat is 256 bytes in eight 32-byte blocks. Strides between blocks and between repeats are
// in blocks. `mask` is the number of elements of a repeat that take part.
#ifndef EDGELLAMA_STANDIN_VECTOR_H
#define EDGELLAMA_STANDIN_VECTOR_H

#include <cmath>

#include "sync.h"

namespace standin {

template <typename T>
void RequireVectorType(const char* what) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t> ||
                  std::is_integral_v<T>);
    if (std::is_same_v<T, bfloat16_t>) Fail("unsupported", "%s: no chip computes in bfloat16", what);
}

// Two of the chips can copy and convert bfloat16.
template <typename T>
void RequireDataType(const char* what) {
    if (std::is_same_v<T, bfloat16_t> && !kChip.bfloat16) {
        Fail("unsupported", "%s: the %s has no bfloat16", what, kChip.name);
    }
}

template <typename T>
void CheckMask(std::uint64_t mask, const char* what) {
    if (mask == 0 || mask > 256 / sizeof(T)) {
        Fail("range", "%s: a mask of %llu elements; 1 to %zu are possible", what,
             static_cast<unsigned long long>(mask), 256 / sizeof(T));
    }
}

// One operand of a strided instruction: element `i` of repeat `r` is at Index(r, i).
struct Stride {
    std::size_t block, repeat;  // elements between blocks, between repeats
    std::size_t lane;           // elements in a block
    std::size_t Index(std::size_t r, std::size_t i) const { return r * repeat + i / lane * block + i % lane; }
};

template <typename T>
Stride Strides(std::size_t blockStride, std::size_t repeatStride) {
    const std::size_t lane = 32 / sizeof(T);
    return {blockStride * lane, repeatStride * lane, lane};
}

template <typename T>
void AccessStrided(const AscendC::LocalTensor<T>& tensor, const Stride& s, std::size_t mask, std::size_t repeats,
                   std::uint32_t seq, bool write, const char* what) {
    for (std::size_t r = 0; r < repeats; ++r) {
        if (s.block == s.lane) {
            tensor.Access(r * s.repeat * sizeof(T), mask * sizeof(T), PIPE_V, seq, write, what);
            continue;
        }
        for (std::size_t i = 0; i < mask; i += s.lane) {
            tensor.Access(s.Index(r, i) * sizeof(T), std::min(s.lane, mask - i) * sizeof(T), PIPE_V, seq, write, what);
        }
    }
}

// A result may be in place of an operand: same start, same strides. Any other overlap is an error.
template <typename T, typename U>
void RefuseOverlap(const AscendC::LocalTensor<T>& dst, const Stride& d, const AscendC::LocalTensor<U>& src,
                   const Stride& s, std::size_t mask, std::size_t repeats, const char* what) {
    const std::size_t dstEnd = dst.Offset() + (d.Index(repeats - 1, mask - 1) + 1) * sizeof(T);
    const std::size_t srcEnd = src.Offset() + (s.Index(repeats - 1, mask - 1) + 1) * sizeof(U);
    const bool apart = dstEnd <= src.Offset() || srcEnd <= dst.Offset();
    const bool same = dst.Offset() == src.Offset() && d.block * sizeof(T) == s.block * sizeof(U) &&
                      d.repeat * sizeof(T) == s.repeat * sizeof(U);
    // Interleaved rows without common bytes (two column ranges of one matrix) do not overlap.
    const bool interleaved = d.repeat * sizeof(T) == s.repeat * sizeof(U) && d.repeat != 0 && [&] {
        const std::size_t row = d.repeat * sizeof(T);
        const std::size_t gap = (src.Offset() % row + row - dst.Offset() % row) % row;
        const std::size_t dstWide = (d.Index(0, mask - 1) + 1) * sizeof(T);
        const std::size_t srcWide = (s.Index(0, mask - 1) + 1) * sizeof(U);
        return gap >= dstWide && gap + srcWide <= row;
    }();
    if (!apart && !same && !interleaved) {
        Fail("overlap", "%s: the result overlaps an operand and is not in place", what);
    }
}

template <typename T, typename Op>
void Binary(const char* what, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
            const AscendC::LocalTensor<T>& src1, std::uint64_t mask, std::size_t repeats,
            const AscendC::BinaryRepeatParams& p, Op op, bool readsDst = false) {
    RequireVectorType<T>(what);
    CheckMask<T>(mask, what);
    if (repeats == 0) return;
    const Stride d = Strides<T>(p.dstBlkStride, p.dstRepStride), a = Strides<T>(p.src0BlkStride, p.src0RepStride),
                 b = Strides<T>(p.src1BlkStride, p.src1RepStride);
    dst.RequireAligned(what);
    src0.RequireAligned(what);
    src1.RequireAligned(what);
    RefuseOverlap(dst, d, src0, a, mask, repeats, what);
    RefuseOverlap(dst, d, src1, b, mask, repeats, what);
    const std::uint32_t seq = CurrentCore().IssueVector(repeats);
    AccessStrided(src0, a, mask, repeats, seq, false, what);
    AccessStrided(src1, b, mask, repeats, seq, false, what);
    if (readsDst) AccessStrided(dst, d, mask, repeats, seq, false, what);
    AccessStrided(dst, d, mask, repeats, seq, true, what);
    T* const out = dst.At(0);
    const T *const x = src0.At(0), *const y = src1.At(0);
    for (std::size_t r = 0; r < repeats; ++r) {
        for (std::size_t i = 0; i < mask; ++i) {
            T& z = out[d.Index(r, i)];
            z = op(x[a.Index(r, i)], y[b.Index(r, i)], z);
        }
    }
}

// The same without strides, for `count` consecutive elements.
template <typename T, typename Op>
void BinaryRow(const char* what, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src0,
               const AscendC::LocalTensor<T>& src1, std::int32_t count, Op op, bool readsDst = false) {
    RequireVectorType<T>(what);
    if (count <= 0) Fail("range", "%s of %d elements", what, count);
    const Stride row{32 / sizeof(T), 0, 32 / sizeof(T)};
    dst.RequireAligned(what);
    src0.RequireAligned(what);
    src1.RequireAligned(what);
    RefuseOverlap(dst, row, src0, row, count, 1, what);
    RefuseOverlap(dst, row, src1, row, count, 1, what);
    const std::uint32_t seq = CurrentCore().IssueVector(RepeatsOf(count * sizeof(T)));
    src0.Access(0, count * sizeof(T), PIPE_V, seq, false, what);
    src1.Access(0, count * sizeof(T), PIPE_V, seq, false, what);
    if (readsDst) dst.Access(0, count * sizeof(T), PIPE_V, seq, false, what);
    dst.Access(0, count * sizeof(T), PIPE_V, seq, true, what);
    T* const out = dst.At(0);
    const T *const x = src0.At(0), *const y = src1.At(0);
    for (std::int32_t i = 0; i < count; ++i) out[i] = op(x[i], y[i], out[i]);
}

template <typename T, typename Op>
void Unary(const char* what, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
           std::uint64_t mask, std::size_t repeats, const AscendC::UnaryRepeatParams& p, Op op) {
    RequireVectorType<T>(what);
    CheckMask<T>(mask, what);
    if (repeats == 0) return;
    const Stride d = Strides<T>(p.dstBlkStride, p.dstRepStride), a = Strides<T>(p.srcBlkStride, p.srcRepStride);
    dst.RequireAligned(what);
    src.RequireAligned(what);
    RefuseOverlap(dst, d, src, a, mask, repeats, what);
    const std::uint32_t seq = CurrentCore().IssueVector(repeats);
    AccessStrided(src, a, mask, repeats, seq, false, what);
    AccessStrided(dst, d, mask, repeats, seq, true, what);
    T* const out = dst.At(0);
    const T* const x = src.At(0);
    for (std::size_t r = 0; r < repeats; ++r) {
        for (std::size_t i = 0; i < mask; ++i) out[d.Index(r, i)] = op(x[a.Index(r, i)]);
    }
}

template <typename T, typename Op>
void UnaryRow(const char* what, const AscendC::LocalTensor<T>& dst, const AscendC::LocalTensor<T>& src,
              std::int32_t count, Op op) {
    RequireVectorType<T>(what);
    if (count <= 0) Fail("range", "%s of %d elements", what, count);
    const Stride row{32 / sizeof(T), 0, 32 / sizeof(T)};
    dst.RequireAligned(what);
    src.RequireAligned(what);
    RefuseOverlap(dst, row, src, row, count, 1, what);
    const std::uint32_t seq = CurrentCore().IssueVector(RepeatsOf(count * sizeof(T)));
    src.Access(0, count * sizeof(T), PIPE_V, seq, false, what);
    dst.Access(0, count * sizeof(T), PIPE_V, seq, true, what);
    T* const out = dst.At(0);
    const T* const x = src.At(0);
    for (std::int32_t i = 0; i < count; ++i) out[i] = op(x[i]);
}

}  // namespace standin

namespace AscendC {

#define EDGELLAMA_STANDIN_BINARY(Name, expression, readsDst)                                                       \
    template <typename T>                                                                                          \
    void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,                   \
              std::uint64_t mask, standin::U8 repeatTime, const BinaryRepeatParams& repeatParams) {                \
        standin::Binary(#Name, dst, src0, src1, mask, repeatTime, repeatParams,                                    \
                        [](T x, T y, [[maybe_unused]] T z) -> T { return expression; }, readsDst);                 \
    }                                                                                                              \
    template <typename T>                                                                                          \
    void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,                   \
              const std::int32_t& count) {                                                                         \
        standin::BinaryRow(#Name, dst, src0, src1, count,                                                          \
                           [](T x, T y, [[maybe_unused]] T z) -> T { return expression; }, readsDst);              \
    }

EDGELLAMA_STANDIN_BINARY(Add, x + y, false)
EDGELLAMA_STANDIN_BINARY(Sub, x - y, false)
EDGELLAMA_STANDIN_BINARY(Mul, x* y, false)
EDGELLAMA_STANDIN_BINARY(Div, x / y, false)
EDGELLAMA_STANDIN_BINARY(Max, x > y ? x : y, false)
EDGELLAMA_STANDIN_BINARY(Min, x < y ? x : y, false)
EDGELLAMA_STANDIN_BINARY(MulAddDst, x* y + z, true)
#undef EDGELLAMA_STANDIN_BINARY

// Half operands into float: a repeat is 64 elements, which are 4 blocks of each operand and 8 of the result.
inline void MulAddDst(const LocalTensor<float>& dst, const LocalTensor<half>& src0, const LocalTensor<half>& src1,
                      std::uint64_t mask, standin::U8 repeatTime, const BinaryRepeatParams& p) {
    const char* const what = "MulAddDst";
    if (!standin::kChip.mulAddDstMixed) {
        standin::Fail("unsupported", "MulAddDst of half into float does not exist on the %s", standin::kChip.name);
    }
    standin::CheckMask<float>(mask, what);
    if (repeatTime == 0) return;
    const standin::Stride d = standin::Strides<float>(p.dstBlkStride, p.dstRepStride),
                          a = standin::Strides<half>(p.src0BlkStride, p.src0RepStride),
                          b = standin::Strides<half>(p.src1BlkStride, p.src1RepStride);
    dst.RequireAligned(what);
    src0.RequireAligned(what);
    src1.RequireAligned(what);
    standin::RefuseOverlap(dst, d, src0, a, mask, repeatTime, what);
    standin::RefuseOverlap(dst, d, src1, b, mask, repeatTime, what);
    const std::uint32_t seq = standin::CurrentCore().IssueVector(repeatTime);
    standin::AccessStrided(src0, a, mask, repeatTime, seq, false, what);
    standin::AccessStrided(src1, b, mask, repeatTime, seq, false, what);
    standin::AccessStrided(dst, d, mask, repeatTime, seq, false, what);
    standin::AccessStrided(dst, d, mask, repeatTime, seq, true, what);
    for (std::size_t r = 0; r < repeatTime; ++r) {
        for (std::size_t i = 0; i < mask; ++i) {
            dst.At(0)[d.Index(r, i)] +=
                static_cast<float>(src0.At(0)[a.Index(r, i)]) * static_cast<float>(src1.At(0)[b.Index(r, i)]);
        }
    }
}

template <typename T>
void And(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1, std::uint64_t mask,
         standin::U8 repeatTime, const BinaryRepeatParams& repeatParams) {
    static_assert(std::is_same_v<T, std::uint16_t> || std::is_same_v<T, std::int16_t>, "And takes 16-bit integers");
    standin::Binary("And", dst, src0, src1, mask, repeatTime, repeatParams,
                    [](T x, T y, T) -> T { return static_cast<T>(x & y); });
}

#define EDGELLAMA_STANDIN_SCALAR(Name, expression)                                                                 \
    template <typename T>                                                                                          \
    void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, std::uint64_t mask,           \
              standin::U8 repeatTime, const UnaryRepeatParams& repeatParams) {                                     \
        standin::Unary(#Name, dst, src, mask, repeatTime, repeatParams,                                            \
                       [y = scalar](T x) -> T { return expression; });                                             \
    }                                                                                                              \
    template <typename T>                                                                                          \
    void Name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalar, const std::int32_t& count) {  \
        standin::UnaryRow(#Name, dst, src, count, [y = scalar](T x) -> T { return expression; });                  \
    }

EDGELLAMA_STANDIN_SCALAR(Adds, x + y)
EDGELLAMA_STANDIN_SCALAR(Muls, x* y)
EDGELLAMA_STANDIN_SCALAR(Maxs, x > y ? x : y)
EDGELLAMA_STANDIN_SCALAR(Mins, x < y ? x : y)
#undef EDGELLAMA_STANDIN_SCALAR

template <typename T>
void Exp(const LocalTensor<T>& dst, const LocalTensor<T>& src, std::uint64_t mask, standin::U8 repeatTime,
         const UnaryRepeatParams& repeatParams) {
    standin::Unary("Exp", dst, src, mask, repeatTime, repeatParams, [](T x) -> T { return std::exp(x); });
}

template <typename T>
void Exp(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t& count) {
    standin::UnaryRow("Exp", dst, src, count, [](T x) -> T { return std::exp(x); });
}

template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const std::int32_t& count) {
    standin::RequireVectorType<T>("Duplicate");
    if (count <= 0) standin::Fail("range", "Duplicate of %d elements", count);
    dst.RequireAligned("Duplicate");
    const std::uint32_t seq = standin::CurrentCore().IssueVector(standin::RepeatsOf(count * sizeof(T)));
    dst.Access(0, count * sizeof(T), PIPE_V, seq, true, "Duplicate");
    for (std::int32_t i = 0; i < count; ++i) dst.At(0)[i] = scalarValue;
}

}  // namespace AscendC

#endif
