// Scalar types, enumerations and parameter structures of the Ascend C interface, written from its documentation.
#ifndef EDGELLAMA_STANDIN_TYPES_H
#define EDGELLAMA_STANDIN_TYPES_H

#include <cstdint>
#include <cstring>

#include "report.h"

// IEEE 754 binary16 as a storage type; arithmetic is in float.
struct half {
    std::uint16_t bits = 0;
    half() = default;
    half(float value) {
        std::uint32_t x;
        std::memcpy(&x, &value, 4);
        const std::uint32_t sign = (x >> 16) & 0x8000u;
        x &= 0x7fffffffu;
        if (x >= 0x7f800000u) {
            bits = static_cast<std::uint16_t>(sign | 0x7c00u | (x > 0x7f800000u ? 0x200u : 0u));
        } else if (x >= 0x477ff000u) {  // rounds to 65536 or more
            bits = static_cast<std::uint16_t>(sign | 0x7c00u);
        } else if (x < 0x38800000u) {   // subnormal: the FPU rounds to nearest even
            float f, magic = 0.5f;
            std::memcpy(&f, &x, 4);
            f += magic;
            std::memcpy(&x, &f, 4);
            bits = static_cast<std::uint16_t>(sign | (x - 0x3f000000u));
        } else {
            bits = static_cast<std::uint16_t>(sign | ((x - 0x38000000u + 0xfffu + ((x >> 13) & 1u)) >> 13));
        }
    }
    operator float() const {
        const std::uint32_t sign = (bits & 0x8000u) << 16, body = bits & 0x7fffu;
        std::uint32_t x;
        if (body >= 0x7c00u) {
            x = 0x7f800000u | (body & 0x3ffu) << 13;
        } else if (body >= 0x400u) {
            x = (body << 13) + 0x38000000u;
        } else {
            const float f = static_cast<float>(body) * 5.9604644775390625e-8f;  // 2^-24
            std::memcpy(&x, &f, 4);
        }
        x |= sign;
        float value;
        std::memcpy(&value, &x, 4);
        return value;
    }
};

struct bfloat16_t {
    std::uint16_t bits = 0;
    bfloat16_t() = default;
    bfloat16_t(float value) {
        std::uint32_t x;
        std::memcpy(&x, &value, 4);
        bits = static_cast<std::uint16_t>((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
    }
    operator float() const {
        const std::uint32_t x = static_cast<std::uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &x, 4);
        return value;
    }
};

enum pipe_t { PIPE_S = 0, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };

enum class CubeFormat { ND = 0, NZ, ZN, ZZ, NN, VECTOR };

enum event_t { EVENT_ID0 = 0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

namespace standin {

// An integer parameter with the width of the device's. It refuses a value that the device would silently truncate.
template <typename Stored>
struct Narrow {
    Stored value = 0;
    Narrow() = default;
    template <typename From>
    Narrow(From from) : value(static_cast<Stored>(from)) {
        if (static_cast<long long>(value) != static_cast<long long>(from)) {
            Fail("range", "an instruction parameter of %d bits is %lld", static_cast<int>(sizeof(Stored) * 8),
                 static_cast<long long>(from));
        }
    }
    operator Stored() const { return value; }
};
using U8 = Narrow<std::uint8_t>;
using U16 = Narrow<std::uint16_t>;

}  // namespace standin

namespace AscendC {

enum class TPosition { GM = 0, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC, LCM, SPM, TSCM };
using QuePosition = TPosition;

enum class HardEvent {
    MTE2_V, V_MTE2, MTE3_V, V_MTE3, V_S, S_V, MTE2_S, S_MTE2, MTE3_S, S_MTE3, MTE2_MTE3, MTE3_MTE2, V_V
};

enum class RoundMode { CAST_NONE = 0, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };

enum class ReduceOrder { ORDER_VALUE_INDEX = 0, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };

enum class LayoutMode { NONE = 0, NORMAL, BSNGD, SBNGD, BNGS1S2 };

using TEventID = std::int8_t;

struct BinaryRepeatParams {
    BinaryRepeatParams() = default;
    BinaryRepeatParams(standin::U8 dstBlk, standin::U8 src0Blk, standin::U8 src1Blk, standin::U8 dstRep,
                       standin::U8 src0Rep, standin::U8 src1Rep)
        : dstBlkStride(dstBlk), src0BlkStride(src0Blk), src1BlkStride(src1Blk), dstRepStride(dstRep),
          src0RepStride(src0Rep), src1RepStride(src1Rep) {}
    std::uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1;
    std::uint8_t dstRepStride = 8, src0RepStride = 8, src1RepStride = 8;
};

struct UnaryRepeatParams {
    UnaryRepeatParams() = default;
    UnaryRepeatParams(standin::U16 dstBlk, standin::U16 srcBlk, standin::U8 dstRep, standin::U8 srcRep)
        : dstBlkStride(dstBlk), srcBlkStride(srcBlk), dstRepStride(dstRep), srcRepStride(srcRep) {}
    std::uint16_t dstBlkStride = 1, srcBlkStride = 1;
    std::uint8_t dstRepStride = 8, srcRepStride = 8;
};

struct BrcbRepeatParams {
    BrcbRepeatParams() = default;
    BrcbRepeatParams(standin::U16 dstBlk, standin::U16 dstRep) : dstBlkStride(dstBlk), dstRepStride(dstRep) {}
    std::uint16_t dstBlkStride = 1, dstRepStride = 8;
};

struct DataCopyParams {
    DataCopyParams() = default;
    DataCopyParams(standin::U16 count, standin::U16 len, standin::U16 srcGapIn, standin::U16 dstGapIn)
        : blockCount(count), blockLen(len), srcStride(srcGapIn), dstStride(dstGapIn) {}
    std::uint16_t blockCount = 1, blockLen = 0;  // blocks; 32-byte units each
    std::uint16_t srcStride = 0, dstStride = 0;  // gaps between blocks, in 32-byte units
};

struct DataCopyExtParams {
    std::uint16_t blockCount = 1;
    std::uint32_t blockLen = 0, srcStride = 0, dstStride = 0, rsv = 0;  // blockLen in bytes
};

template <typename T>
struct DataCopyPadExtParams {
    bool isPad = false;
    std::uint8_t leftPadding = 0, rightPadding = 0;
    T paddingValue{};
};

}  // namespace AscendC

#endif
