// What this processor and this process may use: instruction sets and compute cores.
#pragma once

namespace bitnet {

// Instruction sets that both the processor and the operating system (saved registers) support. All false except on x86.
struct CpuFeatures {
    bool avx2 = false;
    bool fma = false;
    bool f16c = false;
    bool avx512_vnni = false;  // AVX-512 F, BW, DQ, VL and VNNI
};

CpuFeatures cpu_features();

// Physical cores this process may keep busy: distinct cores among the processors it may be scheduled on, no more than
// its cgroup's CPU quota; on Apple silicon only the performance cores (work is split evenly: a slow core would hold up
// the rest). At least 1.
int physical_cores();

}  // namespace bitnet
