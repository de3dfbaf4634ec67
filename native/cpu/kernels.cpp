// The dispatch tables, put together from the kernels of each instruction set, and the choice between them.
#include "cpu/kernels.h"

#include <array>
#include <climits>
#include <string_view>

#include "cpu/ternary.h"
#include "cpu/vector.h"
#include "platform/cpu_features.h"

namespace bitnet {

const Kernels kScalarKernels = {
    .name = "scalar",
    .table_min_tokens = kTableMinTokens,
    .ternary_direct = scalar::ternary_direct,
    .table_tile = scalar::table_tile,
    .table_scratch_bytes = scalar::table_scratch_bytes,
    .ternary_table = scalar::ternary_table,
    .quantize_row = scalar::quantize_row,
    .rms_norm = scalar::rms_norm,
    .add = scalar::add,
    .relu2_mul = scalar::relu2_mul,
    .silu_mul = scalar::silu_mul,
    .gelu_mul = scalar::gelu_mul,
    .rope_neox = scalar::rope_neox,
    .kv_write = scalar::kv_write,
    .attention_block = scalar::attention_block,
    .kv_write_q8_0 = scalar::kv_write_q8_0,
    .attention_block_q8_0 = scalar::attention_block_q8_0,
    .head_rows = scalar::head_rows,
    .dot_f32 = scalar::dot_f32,
    .dot_f16 = scalar::dot_f16,
    .dot_bf16 = scalar::dot_bf16,
};

#if defined(__x86_64__) || defined(_M_X64)
const Kernels kAvx2Kernels = {
    .name = "avx2",
    .table_min_tokens = kTableMinTokens,
    .ternary_direct = avx2::ternary_direct,
    .table_tile = avx2::table_tile,
    .table_scratch_bytes = avx2::table_scratch_bytes,
    .ternary_table = avx2::ternary_table,
    .quantize_row = avx2::quantize_row,
    .rms_norm = avx2::rms_norm,
    .add = avx2::add,
    .relu2_mul = avx2::relu2_mul,
    .silu_mul = avx2::silu_mul,
    .gelu_mul = avx2::gelu_mul,
    .rope_neox = avx2::rope_neox,
    .kv_write = avx2::kv_write,
    .attention_block = avx2::attention_block,
    .kv_write_q8_0 = avx2::kv_write_q8_0,
    .attention_block_q8_0 = avx2::attention_block_q8_0,
    .head_rows = avx2::head_rows,
    .dot_f32 = avx2::dot_f32,
    .dot_f16 = avx2::dot_f16,
    .dot_bf16 = avx2::dot_bf16,
};

// AVX2 code where registers of twice the size gain nothing worth mentioning in a whole model.
const Kernels kAvx512VnniKernels = {
    .name = "avx512vnni",
    .table_min_tokens = INT_MAX,
    .ternary_direct = avx512::ternary_direct,
    .table_tile = avx2::table_tile,
    .table_scratch_bytes = avx2::table_scratch_bytes,
    .ternary_table = avx2::ternary_table,
    .quantize_row = avx2::quantize_row,
    .rms_norm = avx2::rms_norm,
    .add = avx2::add,
    .relu2_mul = avx2::relu2_mul,
    .silu_mul = avx2::silu_mul,
    .gelu_mul = avx2::gelu_mul,
    .rope_neox = avx2::rope_neox,
    .kv_write = avx2::kv_write,
    .attention_block = avx512::attention_block,
    .kv_write_q8_0 = avx2::kv_write_q8_0,
    .attention_block_q8_0 = avx512::attention_block_q8_0,
    .head_rows = avx512::head_rows,
    .dot_f32 = avx2::dot_f32,
    .dot_f16 = avx2::dot_f16,
    .dot_bf16 = avx2::dot_bf16,
};
#endif

const Kernels* const* supported_kernels() {
    static const std::array<const Kernels*, 4> tables = [] {
        std::array<const Kernels*, 4> supported = {};
        size_t n = 0;
#if defined(__x86_64__) || defined(_M_X64)
        const CpuFeatures cpu = cpu_features();
        const bool avx2 = cpu.avx2 && cpu.fma && cpu.f16c;
        if (avx2 && cpu.avx512_vnni) supported[n++] = &kAvx512VnniKernels;
        if (avx2) supported[n++] = &kAvx2Kernels;
#endif
        supported[n] = &kScalarKernels;
        return supported;
    }();
    return tables.data();
}

const Kernels* select_kernels(const char* name) {
    const std::string_view wanted = name == nullptr ? "" : name;
    for (const Kernels* const* table = supported_kernels(); *table; ++table)
        if (wanted.empty() || wanted == (*table)->name) return *table;
    return nullptr;
}

}  // namespace bitnet
