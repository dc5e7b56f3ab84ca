// Kernels that use features which only some of the chips have, and kernels that misuse Matmul.
#include "wrong.h"

KERNEL(datacopypad) {
    Ones k;
    DataCopyExtParams params;
    params.blockLen = 20;
    DataCopyPad(k.y, Global(in), params, DataCopyPadExtParams<float>());
}

KERNEL(datacopypad_out) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    DataCopyExtParams params;
    params.blockLen = 20;
    DataCopyPad(Global(out), k.x, params);
}

KERNEL(brcb) {
    Ones k;
    Brcb(k.y, k.x, 1, BrcbRepeatParams(1, 8));
}

KERNEL(cast_rint) {
    Ones k;
    Cast(k.y.ReinterpretCast<half>(), k.x, RoundMode::CAST_RINT, 64);
}

KERNEL(cast_to_float_with_rounding) {
    Ones k;
    Cast(k.y, k.x.ReinterpretCast<half>(), RoundMode::CAST_RINT, 64);
}

KERNEL(cast_to_odd) {
    Ones k;
    Cast(k.y.ReinterpretCast<half>(), k.x, RoundMode::CAST_ODD, 64);
}

KERNEL(cast_integers_with_rounding) {
    Ones k;
    Cast(k.y.ReinterpretCast<half>(), k.x.ReinterpretCast<std::int8_t>(), RoundMode::CAST_RINT, 64);
}

KERNEL(half_into_float) {
    Ones k;
    Duplicate(k.y, 1.0f, 64);
    PipeBarrier<PIPE_V>();
    MulAddDst(k.y, k.x.ReinterpretCast<half>(), k.x.ReinterpretCast<half>(), 64, 1, BinaryRepeatParams(1, 1, 1, 8, 4, 4));
}

KERNEL(copy_bfloat16) {
    Ones k;
    GlobalTensor<bfloat16_t> x;
    x.SetGlobalBuffer(reinterpret_cast<bfloat16_t*>(in));
    DataCopy(k.y.ReinterpretCast<bfloat16_t>(), x, 16);
}

KERNEL(add_bfloat16) {
    Ones k;
    Add(k.y.ReinterpretCast<bfloat16_t>(), k.x.ReinterpretCast<bfloat16_t>(), k.x.ReinterpretCast<bfloat16_t>(), 16);
}

KERNEL(reduce_only_value) {
    Ones k;
    WholeReduceMax(k.y, k.x, 64, 4, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
}

KERNEL(reduce_index_value) {
    Ones k;
    WholeReduceMax(k.y, k.x, 64, 4, 1, 1, 8, ReduceOrder::ORDER_INDEX_VALUE);
}

KERNEL(reduce_only_index) {
    Ones k;
    WholeReduceMax(k.y, k.x, 64, 4, 1, 1, 8, ReduceOrder::ORDER_ONLY_INDEX);
}

KERNEL(free_flags) {
    SetFlag<HardEvent::V_MTE3>(EVENT_ID0);
    WaitFlag<HardEvent::V_MTE3>(EVENT_ID0);
}

KERNEL(unknown_event) { SetFlag<static_cast<HardEvent>(99)>(EVENT_ID0); }

KERNEL(syncall_in_hardware) { SyncAll(); }

KERNEL(syncall_through_memory) {
    TPipe pipe;
    Buffer buffer;
    pipe.InitBuffer(buffer, 2 * 32);
    GlobalTensor<std::int32_t> flags;
    flags.SetGlobalBuffer(reinterpret_cast<std::int32_t*>(out));
    SyncAll(flags, buffer.Get<std::int32_t>());
}

KERNEL(syncall_with_half_its_workspace) {
    TPipe pipe;
    Buffer buffer;
    pipe.InitBuffer(buffer, 32);
    GlobalTensor<std::int32_t> flags;
    flags.SetGlobalBuffer(reinterpret_cast<std::int32_t*>(out));
    if (standin::kChip.softSyncAll) SyncAll(flags, buffer.Get<std::int32_t>(4));
}

KERNEL(kernel_type_mixed) { KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2); }

KERNEL(kernel_type_unified) { KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AICORE); }

// --- Matmul: out[16, 16] = workspace[16, 16] * workspace[16, 16]^T of ones in float16 ---

namespace {

template <typename T>
using Row = MatmulType<TPosition::GM, CubeFormat::ND, T>;
template <typename T, bool transposed = true>
using Product = Matmul<Row<T>, MatmulType<TPosition::GM, CubeFormat::ND, T, transposed>, Row<float>>;

TCubeTiling Tiling(int baseM = 16, int baseN = 16, int depth = 1) {
    TCubeTiling t{};
    t.usedCoreNum = 1;
    t.M = t.singleCoreM = t.N = t.singleCoreN = t.Ka = t.Kb = t.singleCoreK = 16;
    t.baseM = baseM;
    t.baseN = baseN;
    t.baseK = 16;
    t.depthA1 = t.depthB1 = depth;
    t.stepM = t.stepN = t.stepKa = t.stepKb = 1;
    t.dbL0A = t.dbL0B = t.dbL0C = 1;
    t.transLength = 1024;
    return t;
}

// Registers a product with the given tiling, which reports the errors of the tiling.
void Register(TCubeTiling tiling_) {
    TPipe pipe;
    Product<half> mm;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), mm, &tiling_);
}

// A kernel with one product, registered with a valid tiling.
template <class M = Product<half>>
struct Registered {
    Registered() { REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), mm, &tiling); }
    TPipe pipe;
    TCubeTiling tiling = Tiling();
    M mm;
};

template <typename T>
GlobalTensor<T> Typed(GM_ADDR address) {
    GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<T*>(address), 256);
    return tensor;
}

// Fills the operand in the workspace with ones. `Lend` gives Matmul the unified buffer that it needs on the 310P.
struct Operand {
    Operand(TPipe& pipe, GM_ADDR workspace) {
        pipe.InitBuffer(ones, 512);
        pipe.InitBuffer(loan, 2048);
        LocalTensor<half> x = ones.Get<half>();
        Duplicate(x, half(1.0f), 256);
        Order<PIPE_V, PIPE_MTE3>();
        DataCopy(Typed<half>(workspace), x, 256);
    }
    template <class M>
    void Lend([[maybe_unused]] M& matmul) {
        if (standin::kChip.matmulNeedsUb) matmul.SetLocalWorkspace(loan.Get<std::uint8_t>());
    }
    Buffer ones, loan;
};

template <class M>
void Set(M& matmul, GM_ADDR workspace) {
    matmul.SetTensorA(Typed<half>(workspace));
    matmul.SetTensorB(Typed<half>(workspace), true);
}

}  // namespace

KERNEL(right_matmul) {
    Registered k;
    Operand operand(k.pipe, workspace);
    PipeBarrier<PIPE_ALL>();
    Set(k.mm, workspace);
    operand.Lend(k.mm);
    k.mm.IterateAll(Global(out));
    k.mm.End();
    PipeBarrier<PIPE_ALL>();
    LocalTensor<float> back = operand.loan.Get<float>();
    DataCopy(back, Global(out), 256);
}

KERNEL(matmul_before_its_operand_is_written) {
    Registered k;
    Operand operand(k.pipe, workspace);
    Set(k.mm, workspace);
    operand.Lend(k.mm);
    k.mm.IterateAll(Global(out));
}

// On a chip with split cores, the call itself waits for the result.
KERNEL(matmul_result_read_at_once) {
    Registered k;
    Operand operand(k.pipe, workspace);
    Buffer buffer;
    k.pipe.InitBuffer(buffer, 1024);
    PipeBarrier<PIPE_ALL>();
    Set(k.mm, workspace);
    operand.Lend(k.mm);
    k.mm.IterateAll(Global(out));
    k.mm.End();
    DataCopy(buffer.Get<float>(), Global(out), 256);
}

KERNEL(matmul_without_end) {
    TPipe pipe;
    TCubeTiling tiling_ = Tiling();
    Product<half> first, second;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), first, &tiling_, second, &tiling_);
    Operand operand(pipe, workspace);
    PipeBarrier<PIPE_ALL>();
    Set(first, workspace);
    operand.Lend(first);
    first.IterateAll(Global(out));
    PipeBarrier<PIPE_ALL>();
    Set(second, workspace);
    operand.Lend(second);
    second.IterateAll(Global(out));
}

KERNEL(matmul_without_local_workspace) {
    Registered k;
    Operand operand(k.pipe, workspace);
    PipeBarrier<PIPE_ALL>();
    Set(k.mm, workspace);
    k.mm.IterateAll(Global(out));
}

KERNEL(matmul_with_a_small_local_workspace) {
    Registered k;
    Operand operand(k.pipe, workspace);
    PipeBarrier<PIPE_ALL>();
    Set(k.mm, workspace);
    if (standin::kChip.matmulNeedsUb) k.mm.SetLocalWorkspace(operand.loan.Get<std::uint8_t>(1024));
    k.mm.IterateAll(Global(out));
}

KERNEL(matmul_with_local_workspace) {
    Registered k;
    Operand operand(k.pipe, workspace);
    k.mm.SetLocalWorkspace(operand.loan.Get<std::uint8_t>());
}

KERNEL(matmul_rearranged_by_the_vector_unit) {
    static constexpr MatmulConfig config = GetNormalConfig(false, false, true);
    using Transposed = MatmulType<TPosition::GM, CubeFormat::ND, half, true>;
    Registered<Matmul<Row<half>, Transposed, Row<float>, Row<float>, config>> k;
}

KERNEL(matmul_registered_after_initbuffer) {
    TPipe pipe;
    TCubeTiling tiling_ = Tiling();
    Product<half> mm;
    Operand operand(pipe, workspace);
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), mm, &tiling_);
}

KERNEL(matmul_transposed_without_istrans) {
    Registered<Product<half, false>> k;
    k.mm.SetTensorB(Typed<half>(workspace), true);
}

KERNEL(matmul_of_half_a_fractal) {
    TPipe pipe;
    Matmul<Row<half>, MatmulType<TPosition::GM, CubeFormat::NZ, half>, Row<float>> mm;
    TCubeTiling t = Tiling();
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), mm, &t);
    mm.SetSingleShape(16, 8, 16);
    mm.SetTensorA(Typed<half>(in));
    mm.SetTensorB(Typed<half>(in));
    mm.IterateAll(Global(out));
}

KERNEL(matmul_with_a_transposed) {
    Registered k;
    k.mm.SetTensorA(Typed<half>(workspace), true);
}

KERNEL(matmul_never_registered) {
    Product<half> mm;
    mm.IterateAll(Global(out));
}

KERNEL(matmul_that_adds_to_its_result) {
    Registered k;
    k.mm.IterateAll(Global(out), 1);
}

KERNEL(five_matmul_objects) {
    TPipe pipe;
    TCubeTiling t = Tiling();
    Product<half> a, b, c, d, e;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), a, &t, b, &t, c, &t, d, &t, e, &t);
}

KERNEL(matmul_shape_over_its_tiling) {
    Registered k;
    k.mm.SetSingleShape(32, 16, 16);
}

KERNEL(matmul_base_of_8) { Register(Tiling(8)); }

KERNEL(matmul_on_no_cores) {
    TCubeTiling tiling_ = Tiling();
    tiling_.usedCoreNum = 0;
    Register(tiling_);
}

KERNEL(matmul_depth_below_its_step) {
    TCubeTiling tiling_ = Tiling();
    tiling_.stepKa = 2;
    Register(tiling_);
}

KERNEL(matmul_without_translength) {
    TCubeTiling tiling_ = Tiling();
    tiling_.transLength = 0;
    Register(tiling_);
}

KERNEL(matmul_over_l0b) { Register(Tiling(16, 2064)); }

KERNEL(matmul_over_l0a) { Register(Tiling(2064)); }

KERNEL(matmul_l0c_of_256_kb) { Register(Tiling(256, 256)); }

KERNEL(matmul_l1_of_512_kb) { Register(Tiling(128, 128, 64)); }

KERNEL(matmul_of_float) {
    Registered<Product<float>> k;
}

KERNEL(matmul_of_bfloat16) {
    Registered<Product<bfloat16_t>> k;
}
