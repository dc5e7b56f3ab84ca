// Vector instructions that change the type or the layout: Cast, the reductions, Gather, Brcb.
#ifndef EDGELLAMA_STANDIN_REARRANGE_H
#define EDGELLAMA_STANDIN_REARRANGE_H

#include "vector.h"

namespace standin {

template <typename T, typename U>
void CheckCast(AscendC::RoundMode mode) {
    using AscendC::RoundMode;
    RequireDataType<T>("Cast");
    RequireDataType<U>("Cast");
    constexpr bool widen = std::is_same_v<T, float> && (std::is_same_v<U, half> || std::is_same_v<U, bfloat16_t>);
    constexpr bool narrow = std::is_same_v<T, half> && std::is_same_v<U, float>;
    constexpr bool integer = std::is_same_v<T, half> && (std::is_same_v<U, std::int8_t> || std::is_same_v<U, std::uint8_t>);
    static_assert(widen || narrow || integer,
                  "the stand-in casts half and bfloat16 to float, float to half, and 8-bit integers to half");
    if (integer && mode != RoundMode::CAST_NONE) Fail("unsupported", "Cast of an integer to half takes CAST_NONE only");
    if (widen && mode != RoundMode::CAST_NONE) Fail("unsupported", "Cast to float takes CAST_NONE only");
    if (narrow && mode != RoundMode::CAST_NONE && mode != RoundMode::CAST_ODD && !kChip.castFloatToHalfRounding) {
        Fail("unsupported", "Cast from float to half on the %s takes CAST_NONE or CAST_ODD", kChip.name);
    }
    if (narrow && mode != RoundMode::CAST_NONE && mode != RoundMode::CAST_RINT) {
        Fail("unsupported", "the stand-in rounds to nearest even only (CAST_NONE, CAST_RINT)");
    }
}

template <typename T>
void CheckReduce(const AscendC::LocalTensor<T>& src, std::int32_t mask, std::int32_t repeats, const char* what) {
    static_assert(std::is_same_v<T, float>, "the stand-in reduces float");
    CheckMask<T>(mask, what);
    if (repeats < 0 || repeats > 255) Fail("range", "%s: %d repeats; 0 to 255 are possible", what, repeats);
    src.RequireAligned(what);
}

}  // namespace standin

namespace AscendC {

template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const std::uint32_t count) {
    standin::CheckCast<T, U>(roundMode);
    if (count == 0) standin::Fail("range", "Cast of 0 elements");
    dst.RequireAligned("Cast");
    src.RequireAligned("Cast");
    const standin::Stride from = standin::Strides<U>(1, 8), to = standin::Strides<T>(1, 8);
    standin::RefuseOverlap(dst, to, src, from, count, 1, "Cast");
    const std::size_t repeats = standin::RepeatsOf(count * std::max(sizeof(T), sizeof(U)));
    const std::uint32_t seq = standin::CurrentCore().IssueVector(repeats);
    src.Access(0, count * sizeof(U), PIPE_V, seq, false, "Cast");
    dst.Access(0, count * sizeof(T), PIPE_V, seq, true, "Cast");
    for (std::uint32_t i = 0; i < count; ++i) dst.At(0)[i] = static_cast<T>(static_cast<float>(src.At(0)[i]));
}

// The wider of the two types determines the number of elements per repeat.
template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode, const std::uint64_t mask,
          standin::U8 repeatTime, const UnaryRepeatParams& p) {
    standin::CheckCast<T, U>(roundMode);
    standin::CheckMask<std::conditional_t<(sizeof(T) > sizeof(U)), T, U>>(mask, "Cast");
    if (repeatTime == 0) return;
    dst.RequireAligned("Cast");
    src.RequireAligned("Cast");
    const standin::Stride to = standin::Strides<T>(p.dstBlkStride, p.dstRepStride),
                          from = standin::Strides<U>(p.srcBlkStride, p.srcRepStride);
    standin::RefuseOverlap(dst, to, src, from, mask, repeatTime, "Cast");
    const std::uint32_t seq = standin::CurrentCore().IssueVector(repeatTime);
    standin::AccessStrided(src, from, mask, repeatTime, seq, false, "Cast");
    standin::AccessStrided(dst, to, mask, repeatTime, seq, true, "Cast");
    for (std::size_t r = 0; r < repeatTime; ++r) {
        for (std::size_t i = 0; i < mask; ++i) {
            dst.At(0)[to.Index(r, i)] = static_cast<T>(static_cast<float>(src.At(0)[from.Index(r, i)]));
        }
    }
}

// dst[r * dstRepStride] = the sum of repeat r.
template <typename T>
void WholeReduceSum(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t mask,
                    const std::int32_t repeatTime, const std::int32_t dstRepStride, const std::int32_t srcBlkStride,
                    const std::int32_t srcRepStride) {
    standin::CheckReduce(src, mask, repeatTime, "WholeReduceSum");
    const standin::Stride from = standin::Strides<T>(srcBlkStride, srcRepStride);
    const std::uint32_t seq = standin::CurrentCore().IssueVector(repeatTime);
    standin::AccessStrided(src, from, mask, repeatTime, seq, false, "WholeReduceSum");
    for (std::int32_t r = 0; r < repeatTime; ++r) {
        float lanes[64] = {};
        for (std::int32_t i = 0; i < mask; ++i) lanes[i] = src.At(0)[from.Index(r, i)];
        for (int width = 1; width < 64; width *= 2) {  // the chip adds in a binary tree
            for (int i = 0; i < 64; i += 2 * width) lanes[i] += lanes[i + width];
        }
        dst.Access(static_cast<std::size_t>(r) * dstRepStride * sizeof(T), sizeof(T), PIPE_V, seq, true,
                   "WholeReduceSum");
        dst.At(0)[static_cast<std::size_t>(r) * dstRepStride] = lanes[0];
    }
}

// dst: the maximum of repeat r and its index, as a pair (ORDER_VALUE_INDEX, which every chip has), or in another order.
template <typename T>
void WholeReduceMax(const LocalTensor<T>& dst, const LocalTensor<T>& src, const std::int32_t mask,
                    const std::int32_t repeatTime, const std::int32_t dstRepStride, const std::int32_t srcBlkStride,
                    const std::int32_t srcRepStride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX) {
    standin::CheckReduce(src, mask, repeatTime, "WholeReduceMax");
    if ((order == ReduceOrder::ORDER_ONLY_VALUE && !standin::kChip.reduceOnlyValue) ||
        (order == ReduceOrder::ORDER_INDEX_VALUE && !standin::kChip.reduceIndexValue) ||
        (order == ReduceOrder::ORDER_ONLY_INDEX && !standin::kChip.reduceOnlyIndex)) {
        standin::Fail("unsupported", "WholeReduceMax on the %s does not have this ReduceOrder", standin::kChip.name);
    }
    if (order == ReduceOrder::ORDER_ONLY_INDEX) {
        standin::Fail("unsupported", "the stand-in does not model ORDER_ONLY_INDEX");
    }
    const bool pairs = order != ReduceOrder::ORDER_ONLY_VALUE;
    dst.RequireAligned("WholeReduceMax", pairs ? 2 * sizeof(T) : sizeof(T));
    const standin::Stride from = standin::Strides<T>(srcBlkStride, srcRepStride);
    const std::uint32_t seq = standin::CurrentCore().IssueVector(repeatTime);
    standin::AccessStrided(src, from, mask, repeatTime, seq, false, "WholeReduceMax");
    for (std::int32_t r = 0; r < repeatTime; ++r) {
        std::uint32_t best = 0;
        for (std::int32_t i = 1; i < mask; ++i) {
            if (src.At(0)[from.Index(r, i)] > src.At(0)[from.Index(r, best)]) best = i;
        }
        const T value = src.At(0)[from.Index(r, best)];
        const std::size_t at = static_cast<std::size_t>(r) * dstRepStride * (pairs ? 2 : 1);
        dst.Access(at * sizeof(T), (pairs ? 2 : 1) * sizeof(T), PIPE_V, seq, true, "WholeReduceMax");
        const int valueAt = order == ReduceOrder::ORDER_INDEX_VALUE ? 1 : 0;
        dst.At(0)[at + valueAt] = value;
        if (pairs) std::memcpy(&dst.At(0)[at + 1 - valueAt], &best, sizeof best);
    }
}

// dst[i] = the element of src at byte srcBaseOffset + srcOffset[i].
template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src, const LocalTensor<std::uint32_t>& srcOffset,
            const std::uint32_t srcBaseOffset, const std::uint32_t count) {
    standin::RequireVectorType<T>("Gather");
    dst.RequireAligned("Gather");
    src.RequireAligned("Gather");
    srcOffset.RequireAligned("Gather");
    const std::uint32_t seq = standin::CurrentCore().IssueVector(standin::RepeatsOf(count * sizeof(T)));
    srcOffset.Access(0, count * 4, PIPE_V, seq, false, "Gather");
    for (std::uint32_t i = 0; i < count; ++i) {
        const std::size_t from = static_cast<std::size_t>(srcBaseOffset) + srcOffset.At(0)[i];
        if (from % sizeof(T) != 0) {
            standin::Fail("alignment", "Gather: offset %zu is not a multiple of the element size %zu", from, sizeof(T));
        }
        src.Access(from, sizeof(T), PIPE_V, seq, false, "Gather");
    }
    dst.Access(0, count * sizeof(T), PIPE_V, seq, true, "Gather");
    if (dst.Offset() < src.Offset() + src.Bytes() && src.Offset() < dst.Offset() + count * sizeof(T)) {
        standin::Fail("overlap", "Gather: source and result overlap");
    }
    for (std::uint32_t i = 0; i < count; ++i) {
        dst.At(0)[i] = src.At(0)[(srcBaseOffset + srcOffset.At(0)[i]) / sizeof(T)];
    }
}

// Reads eight elements per repeat, and writes each one to a whole 32-byte block.
template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, standin::U8 repeatTime, const BrcbRepeatParams& p) {
    if (!standin::kChip.brcb) standin::Fail("unsupported", "Brcb does not exist on the %s", standin::kChip.name);
    dst.RequireAligned("Brcb");
    src.RequireAligned("Brcb");
    constexpr std::size_t lane = 32 / sizeof(T);
    const std::uint32_t seq = standin::CurrentCore().IssueVector(repeatTime);
    src.Access(0, repeatTime * 8 * sizeof(T), PIPE_V, seq, false, "Brcb");
    for (std::size_t r = 0; r < repeatTime; ++r) {
        for (std::size_t e = 0; e < 8; ++e) {
            const std::size_t at = (r * p.dstRepStride + e * p.dstBlkStride) * lane;
            dst.Access(at * sizeof(T), 32, PIPE_V, seq, true, "Brcb");
            for (std::size_t i = 0; i < lane; ++i) dst.At(0)[at + i] = src.At(0)[r * 8 + e];
        }
    }
}

}  // namespace AscendC

#endif
