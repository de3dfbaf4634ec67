// The whole native test framework: TEST(name) { CHECK(...); } in any .cpp of the test binary.
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <vector>

struct NativeTest {
    const char* name;
    void (*run)();
};

inline std::vector<NativeTest>& native_tests() {
    static std::vector<NativeTest> tests;
    return tests;
}

struct RegisterNativeTest {
    RegisterNativeTest(const char* name, void (*run)()) { native_tests().push_back({name, run}); }
};

inline int& native_failures() {
    static int failures = 0;
    return failures;
}

#define TEST(name)                                                       \
    static void test_##name();                                           \
    static RegisterNativeTest register_##name(#name, test_##name);       \
    static void test_##name()

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            if (native_failures()++ < 50)                                                 \
                std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
        }                                                                                 \
    } while (0)

// CHECK that `statement` throws `exception` with `text` in its message.
#define CHECK_THROWS(statement, exception, text)                                                              \
    do {                                                                                                      \
        std::string what_ = "nothing thrown";                                                                 \
        bool ok_ = false;                                                                                     \
        try {                                                                                                 \
            statement;                                                                                        \
        } catch (const exception& e) {                                                                        \
            what_ = e.what();                                                                                 \
            ok_ = what_.find(text) != std::string::npos;                                                      \
        }                                                                                                     \
        if (!ok_ && native_failures()++ < 50)                                                                 \
            std::printf("%s:%d: %s: expected '%s', got '%s'\n", __FILE__, __LINE__, #statement, text, what_.c_str()); \
    } while (0)
