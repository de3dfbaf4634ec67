// Persistent compute threads that run one function together (single program, multiple data), with a barrier and a shared
// work counter. Waiting threads spin for some tens of microseconds (a layer has ten barriers, and waking a parked thread
// takes 50 us), then park.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace bitnet {

class ThreadPool {
public:
    explicit ThreadPool(int n_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return n_threads_; }

    // Handed to the function on every thread; all threads must make the same sequence of calls on it.
    class Worker {
    public:
        int thread() const { return thread_; }
        int n_threads() const { return pool_.n_threads_; }

        // f(begin, end) over [0, n) in pieces of `grain`, dynamically shared by all threads; returns when all is done.
        template <class F>
        void parallel_for(int64_t n, int64_t grain, F&& f) {
            if (pool_.n_threads_ == 1) {
                if (n > 0) f(int64_t{0}, n);
                return;
            }
            // Three counters in rotation: the next phase's is reset during this one, when nobody uses it any more.
            std::atomic<int64_t>& counter = pool_.counters_[phase_ % 3].value;
            if (thread_ == 0) pool_.counters_[(phase_ + 1) % 3].value.store(0, std::memory_order_relaxed);
            for (int64_t begin; (begin = counter.fetch_add(grain, std::memory_order_relaxed)) < n;)
                f(begin, std::min(begin + grain, n));
            ++phase_;
            pool_.barrier();
        }

        void barrier() { pool_.barrier(); }

    private:
        friend class ThreadPool;
        Worker(ThreadPool& pool, int thread) : pool_(pool), thread_(thread) {}
        ThreadPool& pool_;
        int thread_;
        unsigned phase_ = 0;
    };

    // Run f on every thread (the caller is thread 0) and wait for all. f must not throw. One caller at a time.
    void run(const std::function<void(Worker&)>& f);

private:
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };

    void barrier();
    void worker_loop(int thread);

    int n_threads_;
    std::vector<std::thread> threads_;
    const std::function<void(Worker&)>* job_ = nullptr;
    Counter counters_[3];
    alignas(64) std::atomic<uint32_t> job_number_{0};
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace bitnet
