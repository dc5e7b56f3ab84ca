// The interface of the high-level Matmul: C = A * B in float32. It checks the memory that Matmul would use, and the
// restrictions that CANN's documentation states for each chip.
#ifndef EDGELLAMA_STANDIN_MATMUL_INTF_H
#define EDGELLAMA_STANDIN_MATMUL_INTF_H

#include "../kernel_operator.h"
#include "../kernel_tiling/kernel_tiling.h"

// The form of Matmul that a kernel takes. The stand-in knows one setting: whether vector instructions rearrange ND
// matrices.
struct MatmulConfig {
    bool enVecND2NZ;
};

// The first two parameters limit instructions and loop over batches; the stand-in has neither.
constexpr MatmulConfig GetNormalConfig(bool = false, bool = false, bool isVecND2NZ = false) { return {isVecND2NZ}; }
inline constexpr MatmulConfig CFG_NORM = GetNormalConfig();

namespace AscendC {

template <TPosition POSITION, CubeFormat FORMAT, typename TYPE, bool ISTRANS = false,
          LayoutMode LAYOUT = LayoutMode::NONE, bool IBSHARE = false>
struct MatmulType {
    static constexpr TPosition pos = POSITION;
    static constexpr CubeFormat format = FORMAT;
    using T = TYPE;
    static constexpr bool isTrans = ISTRANS;
};

template <class A_TYPE, class B_TYPE, class C_TYPE, class BIAS_TYPE = C_TYPE, const auto& MM_CFG = CFG_NORM>
class Matmul {
    using A = typename A_TYPE::T;
    using B = typename B_TYPE::T;
    using C = typename C_TYPE::T;
    static_assert(A_TYPE::pos == TPosition::GM && B_TYPE::pos == TPosition::GM && C_TYPE::pos == TPosition::GM,
                  "the stand-in multiplies in global memory only, which every chip supports");
    // NZ: columns of fractals, [N / 16, K, 16]. The right matrix may have this layout, not transposed.
    static constexpr bool kNzB = B_TYPE::format == CubeFormat::NZ;
    static_assert(A_TYPE::format == CubeFormat::ND && (B_TYPE::format == CubeFormat::ND || kNzB) &&
                      C_TYPE::format == CubeFormat::ND, "the stand-in multiplies ND matrices, the right one also NZ");
    static_assert(!kNzB || !B_TYPE::isTrans, "the stand-in does not transpose an NZ matrix");
    static_assert(std::is_same_v<A, B> && (std::is_same_v<C, float> || (std::is_same_v<C, half> && std::is_same_v<A, half>)),
                  "the stand-in multiplies into float, and half also into half");

public:
    void Init(const TCubeTiling* tiling, TPipe* = nullptr) {
        standin::Core& core = standin::CurrentCore();
        if (std::is_same_v<A, bfloat16_t> && !standin::kChip.bfloat16) Lacks("bfloat16 operands");
        if (std::is_same_v<A, float> && !standin::kChip.matmulFloatOperands) Lacks("float operands");
        if (MM_CFG.enVecND2NZ && !standin::kChip.matmulNeedsUb) Lacks("isVecND2NZ without SetLocalWorkspace");
        if (++core.matmulObjects > 4) standin::Fail("matmul", "a kernel has at most 4 Matmul objects");
        if (standin::kChip.splitCores && core.buffers > 0) {
            standin::Fail("matmul", "REGIST_MATMUL_OBJ must come before InitBuffer on a chip with split cores");
        }
        tiling_ = *tiling;
        CheckTiling();
        core.l1Used += L1Bytes();
        core.l0cUsed += L0cBytes();
        if (core.l1Used > standin::kChip.l1) Full("L1", core.l1Used, standin::kChip.l1);
        if (core.l0cUsed > standin::kChip.l0c) Full("L0C", core.l0cUsed, standin::kChip.l0c);
        m_ = tiling_.singleCoreM;
        n_ = tiling_.singleCoreN;
        k_ = tiling_.singleCoreK;
        registered_ = true;
    }

    // Sets the shape of this product. The row lengths of A, B and C stay those of the tiling.
    void SetSingleShape(int m, int n, int k) {
        if (m <= 0 || n <= 0 || k <= 0 || m > tiling_.M || n > tiling_.N || k > tiling_.Ka) {
            standin::Fail("matmul", "SetSingleShape(%d, %d, %d): the tiling allows %d x %d x %d", m, n, k, tiling_.M,
                          tiling_.N, tiling_.Ka);
        }
        m_ = m;
        n_ = n;
        k_ = k;
    }
    void SetTail(int m = -1, int n = -1, int k = -1) {
        SetSingleShape(m < 0 ? m_ : m, n < 0 ? n_ : n, k < 0 ? k_ : k);
    }

    void SetTensorA(const GlobalTensor<A>& gm, bool isTransposeA = false) {
        if (isTransposeA) standin::Fail("matmul", "the stand-in does not transpose A");
        a_ = gm;
    }
    void SetTensorB(const GlobalTensor<B>& gm, bool isTransposeB = false) {
        if (isTransposeB && !B_TYPE::isTrans) {
            standin::Fail("matmul", "SetTensorB(.., true) needs ISTRANS in the B type; without it the result is wrong");
        }
        b_ = gm;
        transposed_ = isTransposeB;
    }
    void SetLocalWorkspace(const LocalTensor<std::uint8_t>& tmpBuffer) {
        if (!standin::kChip.matmulNeedsUb) Lacks("SetLocalWorkspace");
        workspace_ = tmpBuffer;
        hasWorkspace_ = true;
    }

    template <bool sync = true>
    void IterateAll(const GlobalTensor<C>& gm, std::uint8_t enAtomic = 0) {
        if (!registered_) standin::Fail("matmul", "IterateAll before REGIST_MATMUL_OBJ");
        if (enAtomic != 0) standin::Fail("unsupported", "the stand-in has no atomic results");
        static_assert(sync, "the stand-in and the 310B have no asynchronous IterateAll");
        standin::Core& core = standin::CurrentCore();
        if (core.activeMatmul != nullptr && core.activeMatmul != this) {
            standin::Fail("matmul", "two Matmul objects are in use: End() of the first is missing");
        }
        core.activeMatmul = this;
        const auto blocks = [](int size) { return std::int64_t{(size + 15) / 16}; };
        ++core.counts[standin::kProducts];
        core.counts[standin::kCubeFractals] += blocks(m_) * blocks(n_) * blocks(k_);
        core.counts[standin::kCubeBytes] += (std::int64_t{m_} + n_) * k_ * static_cast<std::int64_t>(sizeof(A));
        core.counts[standin::kCubeBursts] += Bursts();
        const std::size_t lda = tiling_.Ka, ldb = transposed_ ? tiling_.Kb : tiling_.N, ldc = tiling_.N;
        if (kNzB && (n_ % 16 != 0 || k_ % 16 != 0)) standin::Fail("matmul", "NZ: %d x %d is no whole fractals", k_, n_);
        const int rowsB = kNzB ? n_ / 16 : transposed_ ? n_ : k_, widthB = kNzB ? 16 * k_ : transposed_ ? k_ : n_;
        const std::size_t strideB = kNzB ? std::size_t{16} * tiling_.Kb : ldb;

        // Split cores: the product runs on another core, between a message and its answer. Unified cores: its
        // instructions run on the pipes of this core, and the caller orders them with its own.
        const int reader = standin::kChip.splitCores ? PIPE_M : PIPE_MTE2;
        const int writer = standin::kChip.splitCores ? PIPE_M
                           : standin::kChip.matmulNeedsUb ? PIPE_MTE3 : PIPE_FIX;
        const Times times = Time(core);
        const std::uint32_t read = core.pipes.Issue(reader, times.read, times.readLatency);
        core.pipes.AddBusy(PIPE_V, times.rearrange);
        if (!standin::kChip.splitCores) core.pipes.AddBusy(PIPE_M, times.compute);
        for (int i = 0; i < m_; ++i) a_.Access(i * lda * sizeof(A), k_ * sizeof(A), reader, read, false, "Matmul A");
        for (int i = 0; i < rowsB; ++i) {
            b_.Access(i * strideB * sizeof(B), widthB * sizeof(B), reader, read, false, "Matmul B");
        }
        if (standin::kChip.matmulNeedsUb) {
            if (!hasWorkspace_) standin::Fail("matmul", "the %s needs SetLocalWorkspace first", standin::kChip.name);
            const std::size_t need = std::size_t{2} * tiling_.transLength;  // as MatmulGetTmpBufSize computes it
            if (workspace_.Bytes() < need) {
                standin::Fail("capacity", "Matmul's local workspace has %zu bytes, it needs %zu", workspace_.Bytes(),
                              need);
            }
            if (MM_CFG.enVecND2NZ) {  // blocks come here first, and the vector unit rearranges them
                core.pipes.Wait(PIPE_MTE2, core.pipes.Snapshot(PIPE_V));
                core.pipes.Wait(PIPE_MTE2, core.pipes.Snapshot(writer));
                workspace_.Access(0, need, PIPE_MTE2, core.pipes.Issue(PIPE_MTE2), true, "Matmul workspace");
                core.pipes.Wait(PIPE_V, core.pipes.Snapshot(PIPE_MTE2));
            }
            workspace_.Access(0, need, PIPE_V, core.pipes.Issue(PIPE_V), true, "Matmul workspace");
            core.pipes.Wait(writer, core.pipes.Snapshot(PIPE_V));
            workspace_.Access(0, need, writer, core.pipes.Issue(writer), false, "Matmul workspace");
        }
        Multiply(gm, lda, ldb, ldc);
        core.pipes.Wait(writer, core.pipes.Snapshot(reader));
        const std::uint32_t write = core.pipes.Issue(writer, times.write);
        for (int i = 0; i < m_; ++i) gm.Access(i * ldc * sizeof(C), n_ * sizeof(C), writer, write, true, "Matmul C");
        if (standin::kChip.splitCores) core.pipes.Wait(PIPE_S, core.pipes.Snapshot(writer));
    }

    void End() { standin::CurrentCore().activeMatmul = nullptr; }

private:
    [[noreturn]] static void Lacks(const standin::CheckSite& what) {
        standin::Fail({"unsupported", what.file, what.line}, "Matmul on the %s has no %s", standin::kChip.name,
                      what.word);
    }
    [[noreturn]] static void Full(const standin::CheckSite& where, std::size_t used, std::size_t has) {
        standin::Fail({"capacity", where.file, where.line}, "%s of the %s has %zu bytes, the Matmul objects need %zu",
                      where.word, standin::kChip.name, has, used);
    }

    // The contiguous pieces in which the operands are read, each operand once: 32 bytes where neither the copy nor the
    // vector unit rearranges a block; else the rows of a block, or the whole block if its rows follow one another.
    std::int64_t Bursts() const {
        const std::int64_t m = m_, n = n_, k = k_;
        if (kNzB) {  // a column of fractals is contiguous; the left matrix is read in rows of a block
            const std::int64_t parts = (k + tiling_.baseK - 1) / tiling_.baseK;
            return (m + n / 16) * parts;
        }
        if (standin::kChip.matmulNeedsUb && !MM_CFG.enVecND2NZ) {
            return (m + n) * k * static_cast<std::int64_t>(sizeof(A)) / 32;
        }
        const auto blocks = [](std::int64_t size, std::int64_t base) { return (size + base - 1) / base; };
        const auto pieces = [&](std::int64_t rows, std::int64_t width, std::int64_t apart, std::int64_t baseRows,
                                std::int64_t baseWidth) {
            const bool follow = width == apart && baseWidth >= width;
            return follow ? blocks(rows, baseRows) : rows * blocks(width, baseWidth);
        };
        return pieces(m, k, tiling_.Ka, tiling_.baseM, tiling_.baseK) +
               (transposed_ ? pieces(n, k, tiling_.Kb, tiling_.baseN, tiling_.baseK)
                            : pieces(k, n, tiling_.N, tiling_.baseK, tiling_.baseN));
    }

    struct Times {
        standin::Ends read{}, readLatency{}, rearrange{}, compute{}, write{};
    };

    // The cycles of a product. It reads B in blocks of baseN columns and as much of K as L1 holds. Loads overlap with
    // the cube's work if L1 has room for two blocks. On the 310P the vector unit rearranges each block before the next
    // one is read into its place. The cube is done with the last block, and its result is written, after the last load.
    Times Time(const standin::Core& core) const {
        using namespace standin;
        const auto parts = [](int size, int step) { return static_cast<double>((size + step - 1) / step); };
        const double across = parts(m_, tiling_.baseM) * parts(n_, tiling_.baseN);
        const double loads = across * parts(k_, tiling_.baseK * tiling_.stepKb);
        const double right = double{sizeof(A)} * n_ * k_, bytes = right + double{sizeof(A)} * m_ * k_;
        const double fractals = parts(m_, 16) * parts(n_, 16) * parts(k_, 16);
        const bool twoBlocks = tiling_.depthB1 >= 2 * tiling_.stepN * tiling_.stepKb;
        const bool rearranges = kChip.matmulNeedsUb && MM_CFG.enVecND2NZ && !kNzB;
        const Ends load = core.Cycles(kCopyInstruction, loads + 1, kCopyBurst, Bursts(), kOperandByte, bytes);
        const Ends cube = core.Cycles(kCubeFractal, fractals);
        const Ends feed = core.Cycles(kRightByte, right * parts(m_, tiling_.baseM));
        const Ends result = core.Cycles(kResultByte, 4.0 * m_ * n_);
        const Ends memory = core.Cycles(kMemoryLatency, 1), message = core.Cycles(kProductMessage, 1);
        Times t;
        if (rearranges) t.rearrange = core.Cycles(kVectorInstruction, loads, kVectorRepeat, bytes / 256);
        for (int e = 0; e < kEnds; ++e) {
            t.compute[e] = std::max(cube[e], feed[e]);
            const double after = t.compute[e] + result[e], last = std::max(after - load[e], after / loads);
            t.read[e] = load[e] + t.rearrange[e];
            if (rearranges || !twoBlocks) t.read[e] += (loads - 1) * memory[e];
            if (!twoBlocks) t.read[e] += after - after / loads;
            t.readLatency[e] = memory[e];
            t.write[e] = last;
            if (!kChip.splitCores) continue;
            t.read[e] = std::max(t.read[e], after);  // the cube's core does nothing else for this one meanwhile
            t.readLatency[e] += message[e] + last;
            t.write[e] = 0;
        }
        return t;
    }

    std::size_t L1Bytes() const {
        const std::size_t a = std::size_t{1} * tiling_.baseM * tiling_.baseK * tiling_.depthA1;
        const std::size_t b = std::size_t{1} * tiling_.baseN * tiling_.baseK * tiling_.depthB1;
        return (a + b) * sizeof(A);
    }
    std::size_t L0cBytes() const { return std::size_t{4} * tiling_.baseM * tiling_.baseN * tiling_.dbL0C; }

    void CheckTiling() const {
        const TCubeTiling& t = tiling_;
        const std::int32_t positive[] = {t.usedCoreNum, t.M, t.N, t.Ka, t.Kb, t.singleCoreM, t.singleCoreN,
                                         t.singleCoreK, t.baseM, t.baseN, t.baseK, t.depthA1, t.depthB1, t.stepM,
                                         t.stepN, t.stepKa, t.stepKb, t.dbL0A, t.dbL0B, t.dbL0C};
        for (std::int32_t value : positive) {
            if (value <= 0) standin::Fail("matmul", "a field of TCubeTiling is %d; it must be positive", value);
        }
        if (t.baseM % 16 != 0 || t.baseN % 16 != 0 || t.baseK % 16 != 0) {
            standin::Fail("matmul", "base block %d x %d x %d: needed: multiples of 16", t.baseM, t.baseN, t.baseK);
        }
        const std::size_t l0a = std::size_t{1} * t.baseM * t.baseK * sizeof(A) * t.dbL0A;
        const std::size_t l0b = std::size_t{1} * t.baseN * t.baseK * sizeof(B) * t.dbL0B;
        if (l0a > standin::kChip.l0a) Full("L0A", l0a, standin::kChip.l0a);
        if (l0b > standin::kChip.l0b) Full("L0B", l0b, standin::kChip.l0b);
        if (t.depthA1 % (t.stepM * t.stepKa) != 0 || t.depthB1 % (t.stepN * t.stepKb) != 0) {
            standin::Fail("matmul", "depthA1 or depthB1 is not a multiple of the steps");
        }
        if (standin::kChip.matmulNeedsUb && t.transLength <= 0) {
            standin::Fail("matmul", "transLength must be positive on the %s", standin::kChip.name);
        }
    }

    void Multiply(const GlobalTensor<C>& gm, std::size_t lda, std::size_t ldb, std::size_t ldc) {
        left_.resize(static_cast<std::size_t>(m_) * k_);
        right_.resize(static_cast<std::size_t>(k_) * n_);
        for (int i = 0; i < m_; ++i) {
            for (int j = 0; j < k_; ++j) left_[static_cast<std::size_t>(i) * k_ + j] = a_.GetPhyAddr()[i * lda + j];
        }
        for (int j = 0; j < k_; ++j) {
            for (int c = 0; c < n_; ++c) {
                const std::size_t at = kNzB ? (c / 16) * (std::size_t{16} * tiling_.Kb) + j * 16 + c % 16
                                       : transposed_ ? c * ldb + j : j * ldb + c;
                right_[static_cast<std::size_t>(j) * n_ + c] = b_.GetPhyAddr()[at];
            }
        }
        for (int i = 0; i < m_; ++i) {
            sums_.assign(n_, 0.0f);
            for (int j = 0; j < k_; ++j) {
                const float x = left_[static_cast<std::size_t>(i) * k_ + j];
                const float* const row = &right_[static_cast<std::size_t>(j) * n_];
                for (int c = 0; c < n_; ++c) sums_[c] += x * row[c];
            }
            for (int c = 0; c < n_; ++c) gm.GetPhyAddr()[i * ldc + c] = static_cast<C>(sums_[c]);
        }
    }

    TCubeTiling tiling_{};
    GlobalTensor<A> a_;
    GlobalTensor<B> b_;
    LocalTensor<std::uint8_t> workspace_;
    std::vector<float> left_, right_, sums_;
    bool transposed_ = false, hasWorkspace_ = false, registered_ = false;
    int m_ = 0, n_ = 0, k_ = 0;
};

inline void RegisterMatmul(TPipe*) {}

template <class M, class... Rest>
void RegisterMatmul(TPipe* pipe, M& object, const TCubeTiling* tiling, Rest&&... rest) {
    object.Init(tiling, pipe);
    RegisterMatmul(pipe, rest...);
}

}  // namespace AscendC

inline std::uint8_t* GetSysWorkSpacePtr() { return nullptr; }

#define REGIST_MATMUL_OBJ(tpipe, workspace, ...)         \
    do {                                                 \
        (void)(workspace);                               \
        AscendC::RegisterMatmul((tpipe), __VA_ARGS__);   \
    } while (false)

#endif
