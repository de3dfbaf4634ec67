// The thread pool, whose barrier and work sharing every result depends on, and files that appear whole or not at all.
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <vector>

#include "check.h"
#include "platform/atomic_file.h"
#include "platform/cpu_features.h"
#include "platform/memory.h"
#include "platform/thread_pool.h"

using namespace bitnet;

TEST(thread_pool_covers_every_item_once) {
    for (int n_threads : {1, 2, 3, 7}) {
        ThreadPool pool(n_threads);
        CHECK(pool.size() == n_threads);
        for (int round = 0; round < 50; round++) {
            const int64_t n = round * 13 % 101;
            std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
            pool.run([&](ThreadPool::Worker& worker) {
                for (int phase = 0; phase < 5; phase++)
                    worker.parallel_for(n, 1 + phase * 3, [&](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; i++) seen[static_cast<size_t>(i)]++;
                    });
            });
            for (const std::atomic<int>& count : seen) CHECK(count == 5);
        }
    }
}

TEST(thread_pool_phases_are_separated) {
    // Each phase reads what all threads wrote in the phase before.
    ThreadPool pool(4);
    std::vector<int64_t> values(257, 1), next(257);
    pool.run([&](ThreadPool::Worker& worker) {
        for (int phase = 0; phase < 20; phase++) {
            worker.parallel_for(257, 3, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; i++) next[static_cast<size_t>(i)] = values[static_cast<size_t>(256 - i)] + 1;
            });
            if (worker.thread() == 0) values.swap(next);
            worker.barrier();
        }
    });
    CHECK(std::accumulate(values.begin(), values.end(), int64_t{0}) == 257 * 21);
}

TEST(thread_pool_survives_parking) {
    ThreadPool pool(2);
    std::atomic<int> runs{0};
    for (int i = 0; i < 5; i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // long enough for the other thread to park
        pool.run([&](ThreadPool::Worker&) { runs++; });
    }
    CHECK(runs == 10);
}

TEST(atomic_file_appears_whole_or_not_at_all) {
    const std::string path = (std::filesystem::temp_directory_path() / "bitnet_atomic_file_test").string();
    std::filesystem::remove(path);
    const uint8_t data[3] = {1, 2, 3};
    {
        AtomicFile file(path);
        file.write(data, 3);
    }
    CHECK(!std::filesystem::exists(path));
    {
        AtomicFile file(path);
        file.write(data, 3);
        CHECK(file.commit());
    }
    CHECK(std::filesystem::file_size(path) == 3);
    std::filesystem::remove(path);
    AtomicFile nowhere(path + "/no/such/folder");
    CHECK(!nowhere.ok());
    CHECK(!nowhere.commit());
    CHECK(!nowhere.error().empty());
}

TEST(page_buffer_is_zero_and_movable) {
    PageBuffer empty(0);
    CHECK(empty.size() == 0);
    PageBuffer a(10000);
    for (size_t i = 0; i < a.size(); i++) CHECK(a.data()[i] == 0);
    a.data()[9999] = 7;
    PageBuffer b(std::move(a));
    CHECK(b.data()[9999] == 7);
    a = PageBuffer(5);
    CHECK(a.size() == 5);
}

TEST(physical_cores_is_at_least_one) { CHECK(physical_cores() >= 1); }
