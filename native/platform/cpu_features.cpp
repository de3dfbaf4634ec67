// cpuid, and the number of usable cores: scheduler affinity and cgroup quota on Linux, sysctl on macOS.
#include "platform/cpu_features.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <thread>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__linux__)
#include <sched.h>

#include <fstream>
#include <set>
#include <string>
#include <utility>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bitnet {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

struct CpuidRegisters {
    uint32_t eax, ebx, ecx, edx;
};

CpuidRegisters cpuid(uint32_t leaf) {  // subleaf 0
    CpuidRegisters r{};
#if defined(_MSC_VER)
    int out[4];
    __cpuidex(out, int(leaf), 0);
    r = {uint32_t(out[0]), uint32_t(out[1]), uint32_t(out[2]), uint32_t(out[3])};
#else
    __cpuid_count(leaf, 0, r.eax, r.ebx, r.ecx, r.edx);
#endif
    return r;
}

// XCR0: the register sets the operating system saves on a context switch. Only if cpuid reports OSXSAVE.
uint64_t saved_register_sets() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // the intrinsic would need -mxsave
    return uint64_t(high) << 32 | low;
#endif
}

#endif

#if defined(__linux__)

// The processors the scheduler may run this process on; empty if that cannot be asked.
std::set<int> allowed_processors() {
    constexpr int kMaxProcessors = 8192;  // the largest NR_CPUS of a distribution kernel; cpu_set_t alone holds 1024
    std::set<int> processors;
    cpu_set_t* mask = CPU_ALLOC(kMaxProcessors);
    if (mask == nullptr) return processors;
    const size_t bytes = CPU_ALLOC_SIZE(kMaxProcessors);
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) == 0)
        for (int cpu = 0; cpu < kMaxProcessors; ++cpu)
            if (CPU_ISSET_S(size_t(cpu), bytes, mask)) processors.insert(cpu);
    CPU_FREE(mask);
    return processors;
}

// Distinct (package, core) pairs. A processor whose topology is hidden, as in some containers, counts as a core.
int distinct_cores(const std::set<int>& processors) {
    std::set<std::pair<int, int>> cores;
    int hidden = 0;
    for (const int cpu : processors) {
        const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        std::ifstream package_file(topology + "physical_package_id"), core_file(topology + "core_id");
        int package = 0, core = 0;
        if (package_file >> package && core_file >> core && core >= 0)
            cores.insert({package, core});
        else
            ++hidden;
    }
    return int(cores.size()) + hidden;
}

constexpr int kNoLimit = 1 << 30;

// Whole cores that quota / period allows, at least 1. Rounded down: the threads of a step wait for each other, so one
// more thread than the quota feeds makes all of them pause.

int cores_of_quota(double quota, double period) {
    if (!(quota > 0) || !(period > 0)) return kNoLimit;
    return int(std::clamp(quota / period, 1.0, double(kNoLimit)));
}

// cgroup v2: "cpu.max" holds "max 100000" or "200000 100000" (microseconds per period).
int quota_v2(const std::string& folder) {
    std::ifstream file(folder + "/cpu.max");
    std::string quota;
    double period = 0;
    if (!(file >> quota >> period) || quota.empty() || quota[0] < '0' || quota[0] > '9') return kNoLimit;
    return cores_of_quota(std::strtod(quota.c_str(), nullptr), period);
}

// cgroup v1: quota and period in two files; -1 means no limit.
int quota_v1(const std::string& folder) {
    std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
    double quota = 0, period = 0;
    if (!(quota_file >> quota) || !(period_file >> period)) return kNoLimit;
    return cores_of_quota(quota, period);
}

// The tightest limit from `path` up to the root of a mounted hierarchy. Inside a container the path may name a folder
// of the host that is not visible here; its parents up to the mount point, the container's own group, still are.
int tightest_quota(const std::string& mount, std::string path, int (*quota)(const std::string&)) {
    int limit = quota(mount);
    while (path.size() > 1) {
        limit = std::min(limit, quota(mount + path));
        path.resize(path.find_last_of('/'));
    }
    return limit;
}

int cgroup_cores() {
    int limit = kNoLimit;
    std::ifstream groups("/proc/self/cgroup");  // lines "hierarchy:controllers:path"; version 2 is "0::path"
    for (std::string line; std::getline(groups, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos || line.compare(second + 1, 1, "/") != 0)
            continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string path = line.substr(second + 1);
        if (controllers.empty())
            limit = std::min(limit, tightest_quota("/sys/fs/cgroup", path, quota_v2));
        else if (controllers == "cpu" || controllers == "cpu,cpuacct" || controllers == "cpuacct,cpu")
            limit = std::min(limit, tightest_quota("/sys/fs/cgroup/cpu", path, quota_v1));
    }
    return limit;
}

#endif

}  // namespace

CpuFeatures cpu_features() {
    CpuFeatures features;
#if defined(__x86_64__) || defined(_M_X64)
    const uint32_t max_leaf = cpuid(0).eax;
    if (max_leaf < 7) return features;
    const CpuidRegisters basic = cpuid(1), extended = cpuid(7);
    const bool os_xsave = basic.ecx >> 27 & 1;
    constexpr uint64_t kXmmAndYmm = 0x6, kMasksAndZmm = 0xe0;
    const uint64_t saved = os_xsave ? saved_register_sets() : 0;
    if ((saved & kXmmAndYmm) != kXmmAndYmm) return features;
    features.fma = basic.ecx >> 12 & 1;
    features.f16c = basic.ecx >> 29 & 1;
    features.avx2 = extended.ebx >> 5 & 1;
    constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    features.avx512_vnni =
        (saved & kMasksAndZmm) == kMasksAndZmm && (extended.ebx & kAvx512) == kAvx512 && (extended.ecx >> 11 & 1);
#endif
    return features;
}

int physical_cores() {
    int cores = 0;
#if defined(__linux__)
    cores = std::min(distinct_cores(allowed_processors()), cgroup_cores());
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    if (sysctlbyname("hw.perflevel0.physicalcpu", &value, &size, nullptr, 0) == 0 && value > 0) {
        cores = value;
    } else {
        size = sizeof value;
        if (sysctlbyname("hw.physicalcpu", &value, &size, nullptr, 0) == 0) cores = value;
    }
#endif
    if (cores < 1) cores = int(std::thread::hardware_concurrency());
    return std::max(cores, 1);
}

}  // namespace bitnet
