// Computes logits [B, V] float32 = x [B, E] float16 * weight [V, E]^T float16, with sums in float32.
//
// Each core multiplies all rows with a contiguous range of the vocabulary. Cores share no data and do not wait for each
// other.
#ifndef EDGELLAMA_LM_HEAD_H
#define EDGELLAMA_LM_HEAD_H

#include "cube_matmul.h"
#include "lm_head_tiling_data.h"

namespace edgellama {

class LmHead {
public:
    using Rows = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half>;
    using Weight = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half, true>;
    using Logits = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, float>;
    CubeMatmul<Rows, Weight, Logits> product;  // the kernel function registers it before Init

    __aicore__ inline void Init(GM_ADDR x, GM_ADDR weight, GM_ADDR logits, const LmHeadTiling& tiling,
                                AscendC::TPipe* pipe) {
        rows_ = tiling.rows;
        hidden_ = tiling.hidden;
        vocabulary_ = tiling.vocabulary;
        columns_ = tiling.columns;
        x_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(x));
        weight_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(weight));
        logits_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(logits));
#if EDGELLAMA_MATMUL_BORROWS_UB
        pipe->InitBuffer(matmulBuffer_, tiling.matmulBytes);
#else
        (void)pipe;
#endif
    }

    __aicore__ inline void Process() {
        const int32_t first = static_cast<int32_t>(AscendC::GetBlockIdx()) * columns_;
        if (first >= vocabulary_) return;
        const int32_t left = vocabulary_ - first;
        product.SetSingleShape(rows_, left < columns_ ? left : columns_, hidden_);
        product.SetTensorA(x_);
        product.SetTensorB(weight_[static_cast<int64_t>(first) * hidden_], true);
#if EDGELLAMA_MATMUL_BORROWS_UB
        product.SetLocalWorkspace(matmulBuffer_.Get<uint8_t>());
#endif
        product.IterateAll(logits_[first]);
        product.End();
    }

private:
    int32_t rows_ = 0, hidden_ = 0, vocabulary_ = 0, columns_ = 0;
    AscendC::GlobalTensor<half> x_, weight_;
    AscendC::GlobalTensor<float> logits_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> matmulBuffer_;
};

}  // namespace edgellama

#endif
