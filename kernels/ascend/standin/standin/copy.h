// DataCopy between global memory and the unified buffer.
#ifndef EDGELLAMA_STANDIN_COPY_H
#define EDGELLAMA_STANDIN_COPY_H

#include "rearrange.h"

namespace standin {

// Returns the bytes of `count` elements, which must be whole 32-byte blocks.
template <typename T>
std::size_t CheckedBytes(std::uint32_t count, const char* what) {
    const std::size_t bytes = count * sizeof(T);
    if (bytes == 0 || bytes % 32 != 0) {
        Fail("alignment", "%s of %zu bytes: it copies whole 32-byte blocks only", what, bytes);
    }
    return bytes;
}

inline void CheckCopyParams(const AscendC::DataCopyParams& p) {
    if (p.blockCount > 4095) Fail("range", "DataCopy: %d blocks; at most 4095 are possible", p.blockCount);
}

inline void RequireDataCopyPad() {
    if (!kChip.dataCopyPad) Fail("unsupported", "DataCopyPad does not exist on the %s", kChip.name);
}

// Copies p.blockCount blocks between global and local memory, on `pipe`.
template <class Destination, class Source>
void CopyBlocks(const Destination& dst, const Source& src, const AscendC::DataCopyParams& p, int pipe) {
    using T = typename Source::PrimType;
    CheckCopyParams(p);
    RequireDataType<T>("DataCopy");
    dst.RequireAligned("DataCopy");
    src.RequireAligned("DataCopy");
    const std::size_t length = p.blockLen * 32u;
    const std::uint32_t seq = CurrentCore().IssueCopy(pipe, length > 0 ? p.blockCount : 0, length);
    for (std::size_t i = 0; i < p.blockCount && length > 0; ++i) {
        const std::size_t from = i * (length + p.srcStride * 32u), to = i * (length + p.dstStride * 32u);
        src.Access(from, length, pipe, seq, false, "DataCopy");
        dst.Access(to, length, pipe, seq, true, "DataCopy");
        std::memcpy(static_cast<void*>(dst.At(to / sizeof(T))), src.At(from / sizeof(T)), length);
    }
}

}  // namespace standin

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyParams& p) {
    standin::CopyBlocks(dst, src, p, PIPE_MTE2);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyParams& p) {
    standin::CopyBlocks(dst, src, p, PIPE_MTE3);
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const std::uint32_t count) {
    const std::size_t blocks = standin::CheckedBytes<T>(count, "DataCopy") / 32;
    DataCopy(dst, src, DataCopyParams(1, blocks, 0, 0));
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const std::uint32_t count) {
    const std::size_t blocks = standin::CheckedBytes<T>(count, "DataCopy") / 32;
    DataCopy(dst, src, DataCopyParams(1, blocks, 0, 0));
}

// Copies blocks of any number of bytes, padded to a multiple of 32 in local memory.
template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const DataCopyExtParams& p,
                 const DataCopyPadExtParams<T>&) {
    standin::RequireDataCopyPad();
    dst.RequireAligned("DataCopyPad");
    const std::uint32_t seq = standin::CurrentCore().IssueCopy(PIPE_MTE2, p.blockCount, p.blockLen);
    for (std::size_t i = 0; i < p.blockCount; ++i) {
        const std::size_t from = i * (p.blockLen + p.srcStride);
        const std::size_t to = i * (standin::WholeBlockBytes(p.blockLen) + p.dstStride * 32u);
        src.Access(from, p.blockLen, PIPE_MTE2, seq, false, "DataCopyPad");
        dst.Access(to, standin::WholeBlockBytes(p.blockLen), PIPE_MTE2, seq, true, "DataCopyPad");
        std::memcpy(static_cast<void*>(dst.At(to / sizeof(T))), src.At(from / sizeof(T)), p.blockLen);
    }
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const DataCopyExtParams& p) {
    standin::RequireDataCopyPad();
    src.RequireAligned("DataCopyPad");
    const std::uint32_t seq = standin::CurrentCore().IssueCopy(PIPE_MTE3, p.blockCount, p.blockLen);
    for (std::size_t i = 0; i < p.blockCount; ++i) {
        const std::size_t from = i * (standin::WholeBlockBytes(p.blockLen) + p.srcStride * 32u);
        const std::size_t to = i * (p.blockLen + p.dstStride);
        src.Access(from, p.blockLen, PIPE_MTE3, seq, false, "DataCopyPad");
        dst.Access(to, p.blockLen, PIPE_MTE3, seq, true, "DataCopyPad");
        std::memcpy(static_cast<void*>(dst.At(to / sizeof(T))), src.At(from / sizeof(T)), p.blockLen);
    }
}

}  // namespace AscendC

#endif
