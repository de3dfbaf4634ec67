// What the tests of kernels share: the kernel sets of this machine, comparisons of floats bit by bit, random numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/kernels.h"

namespace bitnet {

// Every instruction set of this machine, the scalar one first.
inline const std::vector<Kernels>& all_kernels() {
    static const std::vector<Kernels> kernels = [] {
        std::vector<Kernels> all;
        for (const Kernels* const* table = supported_kernels(); *table; ++table) all.insert(all.begin(), **table);
        return all;
    }();
    return kernels;
}

inline bool same_bits(float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) { return same_bits(x, y); });
}

inline std::mt19937& random_engine() {
    static std::mt19937 engine(1);
    return engine;
}

inline std::vector<float> normal(size_t n, float sigma = 1) {
    std::normal_distribution<float> distribution(0, sigma);
    std::vector<float> x(n);
    for (float& v : x) v = distribution(random_engine());
    return x;
}

inline int uniform(int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random_engine());
}

}  // namespace bitnet
