// What kernels are written with: names for the few things that differ between nvcc and the emulator (emulator.h), which
// compiles the same sources for the host. Everything else in the kernels is plain C++.
//
// Floats must come out as the CPU's do, bit for bit: no contraction (nvcc -fmad=false), fused multiply-adds are written
// out, division and square root are the IEEE ones.
#pragma once

#include <stdint.h>

#ifdef BITNET_CUDA_EMULATE
#include "cuda/emulator.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define BITNET_KERNEL(max_threads) static __global__ void __launch_bounds__(max_threads)
#define BITNET_KERNEL_BLOCKS(max_threads, blocks) static __global__ void __launch_bounds__(max_threads, blocks)
#define BITNET_DEVICE __device__ __forceinline__
#define BITNET_BOTH __host__ __device__ __forceinline__
#define BITNET_UNROLL _Pragma("unroll")
#define BITNET_UNROLL_BY_4 _Pragma("unroll 4")
#define BITNET_UNROLL_BY_8 _Pragma("unroll 8")

namespace bitnet::cuda {

// Products are timed with weights that fill this much memory: more than any cache holds.
constexpr size_t kColdBytes = 512 << 20;

// The block's dynamic shared memory, 128-byte aligned.
BITNET_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char bitnet_shared[];
    return bitnet_shared;
}

BITNET_DEVICE float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
BITNET_DEVICE int round_to_int(float x) { return __float2int_rn(x); }
BITNET_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
BITNET_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }
BITNET_DEVICE float half_to_float(uint16_t half) { return __half2float(__ushort_as_half(half)); }
BITNET_DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

template <class T>
BITNET_DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// c + sum of 4 signed products.
BITNET_DEVICE int dot4(uint32_t a, uint32_t b, int c) { return __dp4a(static_cast<int>(a), static_cast<int>(b), c); }

// 16 bytes that are read once and shall not push others out of the cache.
BITNET_DEVICE uint4 load_streaming(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// c[16 x 8] += a[16 x 32] b[32 x 8] over a warp; a unsigned (kUnsigned) or signed bytes, b signed. Lane 4g + t holds
//   a0, a2: row g, k = 4t.. and 16 + 4t..    a1, a3: row g + 8    b0, b1: column g, k = 4t.. and 16 + 4t..
//   c[j]: row g + 8 (j / 2), column 2t + j % 2
template <bool kUnsigned>
BITNET_DEVICE void multiply_tile(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    if constexpr (kUnsigned)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else  // Turing has m8n8k16: the same registers make four of them
    const auto multiply = [](int& c0, int& c1, uint32_t a, uint32_t b) {
        if constexpr (kUnsigned)
            asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c0), "+r"(c1) : "r"(a), "r"(b));
        else
            asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c0), "+r"(c1) : "r"(a), "r"(b));
    };
    multiply(c[0], c[1], a0, b0);
    multiply(c[2], c[3], a1, b0);
    multiply(c[0], c[1], a2, b1);
    multiply(c[2], c[3], a3, b1);
#endif
}

// 16 bytes from global to shared memory, in the background; they are there after copies_wait and __syncthreads.
BITNET_DEVICE void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
BITNET_DEVICE void copies_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Wait for all but the last `kLeft` groups.
template <int kLeft>
BITNET_DEVICE void copies_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// kernel<<<grid, threads, shared_bytes, stream>>>(arguments...). An error is found by cudaGetLastError.
template <class Kernel, class... Arguments>
void launch(cudaStream_t stream, Kernel* kernel, dim3 grid, int threads, size_t shared_bytes, Arguments... arguments) {
    kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
}

}  // namespace bitnet::cuda
#endif
