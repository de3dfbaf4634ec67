// Runs every registered native test, or those whose name contains the first argument.
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
    int failed = 0, passed = 0;
    for (const NativeTest& test : native_tests()) {
        if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
        const int before = native_failures();
        try {
            test.run();
        } catch (const std::exception& e) {
            std::printf("%s: uncaught exception: %s\n", test.name, e.what());
            native_failures()++;
        }
        const bool ok = native_failures() == before;
        std::printf("%-60s %s\n", test.name, ok ? "ok" : "FAILED");
        (ok ? passed : failed)++;
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}
