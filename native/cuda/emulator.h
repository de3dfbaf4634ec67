// A CUDA device emulated on the host, for tests: the kernels run thread by thread, one fiber for each, and the part of the
// runtime API that engine.cu uses does what it says. Slow, and strict where a real device would be lucky:
//   - one warp, chosen at random, runs as far ahead as the barriers let it; blocks run in random order
//   - fresh device and shared memory is all ones (NaN, -1), and ends at a page that cannot be touched
//   - asynchronous copies arrive as late as their wait allows, or at once (in every second launch)
// What it cannot show: races inside one warp between barriers, instructions' own semantics, and speed.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct uint2 {
    uint32_t x, y;
};
struct uint4 {
    uint32_t x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace bitnet::cuda::emulator {

// ---- fibers -------------------------------------------------------------------------------------------------------------

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = 64 << 10;

#if defined(__x86_64__)
// Keep the registers a call must keep on the stack, and go on on another stack.
extern "C" void bitnet_emulator_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.type bitnet_emulator_switch, @function
bitnet_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size bitnet_emulator_switch, .-bitnet_emulator_switch
)");
using Context = void*;
#else
using Context = ucontext_t;
#endif

struct PendingCopy {
    void* target;
    uint4 value;
    int group;
};

struct Fiber {
    Context context;
    bool done = false;
    const int* gate = nullptr;  // it waits until *gate differs from `closed`
    int closed = 0;
    std::vector<PendingCopy> copies;
    int group = 0;
};

struct Warp {
    int arrived = 0, generation = 0;
    uint32_t slots[32][8];
};

struct State {
    std::mutex mutex;  // one launch at a time
    unsigned char* stacks = nullptr;
    unsigned char* shared_end = nullptr;
    unsigned char* shared = nullptr;
    std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
    std::vector<Warp> warps = std::vector<Warp>(kMaxThreads / 32);
    Context scheduler;
    int current = 0, live = 0;
    int arrived = 0, generation = 0;  // of the block's barrier
    bool early_copies = false;
    dim3 block_index, grid, block;
    std::function<void()> kernel;
    uint64_t random = 1;
};

inline State state;

constexpr size_t kMaxSharedBytes = 232448;  // what a block may have on compute capability 9.0

inline void enter();

inline void yield() {
#if defined(__x86_64__)
    bitnet_emulator_switch(&state.fibers[static_cast<size_t>(state.current)].context, state.scheduler);
#else
    swapcontext(&state.fibers[static_cast<size_t>(state.current)].context, &state.scheduler);
#endif
}

inline void resume(int thread) {
    state.current = thread;
    Fiber& fiber = state.fibers[static_cast<size_t>(thread)];
#if defined(__x86_64__)
    bitnet_emulator_switch(&state.scheduler, fiber.context);
#else
    swapcontext(&state.scheduler, &fiber.context);
#endif
}

inline void prepare(int thread) {
    Fiber& fiber = state.fibers[static_cast<size_t>(thread)];
    fiber.done = false;
    fiber.gate = nullptr;
    fiber.copies.clear();
    fiber.group = 0;
    unsigned char* stack = state.stacks + static_cast<size_t>(thread) * kStackBytes;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + kStackBytes) - 2;  // what `ret` of the switch jumps to; a call's alignment
    *top = reinterpret_cast<void*>(&enter);
    std::fill(top - 6, top, nullptr);
    fiber.context = top - 6;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&enter), 0);
#endif
}

inline void wait_at(int& arrived, int& generation, int expected) {
    if (++arrived == expected) {
        arrived = 0;
        generation++;
        return;
    }
    Fiber& fiber = state.fibers[static_cast<size_t>(state.current)];
    fiber.gate = &generation;
    fiber.closed = generation;
    yield();
}

inline void block_barrier() { wait_at(state.arrived, state.generation, state.live); }
inline Warp& warp() { return state.warps[static_cast<size_t>(state.current / 32)]; }
inline void warp_barrier() { wait_at(warp().arrived, warp().generation, 32); }

inline void enter() {
    state.kernel();
    state.fibers[static_cast<size_t>(state.current)].done = true;
    if (--state.live > 0 && state.arrived == state.live) {  // who has left does not count at __syncthreads
        state.arrived = 0;
        state.generation++;
    }
    yield();
}

inline uint32_t next_random() {
    state.random = state.random * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state.random >> 33);
}

// Memory that ends right before a page that must not be touched, all ones.
inline unsigned char* guarded(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = (bytes + page - 1) / page * page;
    void* start = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    mprotect(static_cast<unsigned char*>(start) + whole, page, PROT_NONE);
    std::memset(start, 0xff, whole);
    return static_cast<unsigned char*>(start) + whole - bytes;
}

inline void run_block(int n_threads, size_t shared_bytes) {
    state.shared = state.shared_end - shared_bytes;
    std::memset(state.shared, 0xff, shared_bytes);
    state.live = n_threads;
    state.arrived = 0;
    for (int i = 0; i < n_threads; i++) prepare(i);
    const int n_warps = n_threads / 32;
    for (int i = 0; i < n_warps; i++) state.warps[static_cast<size_t>(i)].arrived = 0;
    int idle = 0;
    while (state.live > 0) {
        const int w = static_cast<int>(next_random() % static_cast<uint32_t>(n_warps));
        static constexpr int kRounds[4] = {1, 4, 64, 1 << 30};
        const int rounds = kRounds[next_random() % 4], first = static_cast<int>(next_random() % 32);
        bool any = false;
        for (int round = 0; round < rounds; round++) {
            bool progress = false;
            for (int k = 0; k < 32; k++) {
                const int thread = w * 32 + (first + k) % 32;
                Fiber& fiber = state.fibers[static_cast<size_t>(thread)];
                if (fiber.done || (fiber.gate && *fiber.gate == fiber.closed)) continue;
                fiber.gate = nullptr;
                resume(thread);
                progress = true;
            }
            if (!progress) break;
            any = true;
        }
        idle = any ? 0 : idle + 1;
        if (idle > 100000) {
            std::fprintf(stderr, "CUDA emulator: the threads of a block wait for each other for ever\n");
            std::abort();
        }
    }
}

inline void run_grid(dim3 grid, int n_threads, size_t shared_bytes, std::function<void()> kernel) {
    const std::lock_guard lock(state.mutex);
    shared_bytes = (shared_bytes + 127) / 128 * 128;
    if (n_threads % 32 != 0 || n_threads > kMaxThreads || shared_bytes > kMaxSharedBytes || grid.x == 0 || grid.y == 0 || grid.z != 1) {
        std::fprintf(stderr, "CUDA emulator: a launch no device takes: %u x %u blocks of %d threads, %zu bytes\n", grid.x, grid.y, n_threads,
                     shared_bytes);
        std::abort();
    }
    if (!state.stacks) {
        void* stacks = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stacks == MAP_FAILED) std::abort();
        state.stacks = static_cast<unsigned char*>(stacks);
        state.shared_end = guarded(kMaxSharedBytes) + kMaxSharedBytes;
    }
    state.kernel = std::move(kernel);
    state.grid = grid;
    state.block = dim3(static_cast<unsigned>(n_threads));
    state.early_copies = next_random() & 1;
    // Every block once, in an order given by a step that shares no factor with their number.
    const uint64_t n = uint64_t{grid.x} * grid.y;
    uint64_t step = next_random() % n + 1, index = next_random() % n;
    while (std::gcd(step, n) != 1) step++;
    for (uint64_t i = 0; i < n; i++, index = (index + step) % n) {
        state.block_index = dim3(static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x));
        run_block(n_threads, shared_bytes);
    }
    state.kernel = nullptr;
}

}  // namespace bitnet::cuda::emulator

// ---- what kernels see ---------------------------------------------------------------------------------------------------

#define BITNET_KERNEL(max_threads) static void
#define BITNET_KERNEL_BLOCKS(max_threads, blocks) static void
#define BITNET_DEVICE inline
#define BITNET_BOTH inline
#define BITNET_UNROLL
#define BITNET_UNROLL_BY_4
#define BITNET_UNROLL_BY_8
#define threadIdx (dim3(static_cast<unsigned>(bitnet::cuda::emulator::state.current), 0, 0))
#define blockIdx (bitnet::cuda::emulator::state.block_index)
#define blockDim (bitnet::cuda::emulator::state.block)
#define gridDim (bitnet::cuda::emulator::state.grid)
#define __syncthreads() bitnet::cuda::emulator::block_barrier()
#define __syncwarp() bitnet::cuda::emulator::warp_barrier()

namespace bitnet::cuda {

constexpr size_t kColdBytes = 0;  // times mean nothing here

inline unsigned char* shared_memory() { return emulator::state.shared; }

inline float fma_(float a, float b, float c) { return std::fma(a, b, c); }
inline int round_to_int(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float bits_to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// As quant/dense.cpp does it.
inline float half_to_float(uint16_t half) {
    const uint32_t magnitude = half & 0x7fffu, sign = (half & 0x8000u) << 16;
    if (magnitude < 0x0400) return bits_to_float(float_to_bits(static_cast<float>(magnitude) * 0x1p-24f) | sign);
    return bits_to_float((magnitude << 13) + (magnitude > 0x7bff ? 224u << 23 : 112u << 23) + sign);
}
inline uint16_t float_to_half(float x) {
    const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7fffu);
    if (magnitude >= (143u << 23)) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude < (113u << 23)) return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f)));
    return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

// Atomics: fibers do not interrupt each other.
template <class T>
T atomicAdd(T* p, T value) {
    const T old = *p;
    *p = old + value;
    return old;
}
template <class T>
T atomicMax(T* p, T value) {
    const T old = *p;
    *p = std::max(old, value);
    return old;
}
template <class T>
T atomicOr(T* p, T value) {
    const T old = *p;
    *p = old | value;
    return old;
}

template <class T>
T shuffle_xor(T value, int mask) {
    static_assert(sizeof(T) == 4);
    emulator::Warp& warp = emulator::warp();
    const int lane = emulator::state.current % 32;
    std::memcpy(&warp.slots[lane][0], &value, 4);
    emulator::warp_barrier();
    T other;
    std::memcpy(&other, &warp.slots[lane ^ mask][0], 4);
    emulator::warp_barrier();
    return other;
}

inline int dot4(bool is_unsigned, uint32_t a, uint32_t b, int c) {
    for (int i = 0; i < 32; i += 8)
        c += (is_unsigned ? int{static_cast<uint8_t>(a >> i)} : int{static_cast<int8_t>(a >> i)}) * static_cast<int8_t>(b >> i);
    return c;
}
inline int dot4(uint32_t a, uint32_t b, int c) { return dot4(false, a, b, c); }

inline uint4 load_streaming(const uint4* p) { return *p; }

// The fragment layout of mma.m16n8k32, see device.cuh.
template <bool kUnsigned>
void multiply_tile(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    emulator::Warp& warp = emulator::warp();
    const int lane = emulator::state.current % 32, g = lane / 4, t = lane % 4;
    const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1};
    std::memcpy(warp.slots[lane], mine, sizeof mine);
    emulator::warp_barrier();
    for (int j = 0; j < 4; j++) {
        const int row = g + 8 * (j / 2), column = 2 * t + j % 2;
        for (int q = 0; q < 4; q++)
            for (int half = 0; half < 2; half++)
                c[j] = dot4(kUnsigned, warp.slots[row % 8 * 4 + q][row / 8 + 2 * half], warp.slots[column * 4 + q][4 + half], c[j]);
    }
    emulator::warp_barrier();
}

inline void copy_async(void* shared, const void* global) {
    emulator::Fiber& fiber = emulator::state.fibers[static_cast<size_t>(emulator::state.current)];
    emulator::PendingCopy copy{shared, {}, fiber.group};
    std::memcpy(&copy.value, global, sizeof copy.value);
    if (emulator::state.early_copies)
        std::memcpy(shared, &copy.value, sizeof copy.value);
    else
        fiber.copies.push_back(copy);
}
inline void copies_commit() { emulator::state.fibers[static_cast<size_t>(emulator::state.current)].group++; }
template <int kLeft>
void copies_wait() {
    emulator::Fiber& fiber = emulator::state.fibers[static_cast<size_t>(emulator::state.current)];
    auto copy = fiber.copies.begin();
    for (; copy != fiber.copies.end() && copy->group < fiber.group - kLeft; ++copy) std::memcpy(copy->target, &copy->value, sizeof copy->value);
    fiber.copies.erase(fiber.copies.begin(), copy);
}

}  // namespace bitnet::cuda

#include "cuda/emulator_runtime.h"
