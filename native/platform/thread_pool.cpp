#include "platform/thread_pool.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace bitnet {

namespace {

void pause_cpu() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// About 30 us on current processors, where one pause is 10 to 50 ns.
constexpr int kSpins = 2000;

// Wait until `value` is no longer `old`.
void wait_while(std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < kSpins; i++) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause_cpu();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(std::max(1, n_threads)) {
    threads_.reserve(static_cast<size_t>(n_threads_ - 1));
    for (int thread = 1; thread < n_threads_; thread++) threads_.emplace_back([this, thread] { worker_loop(thread); });
}

ThreadPool::~ThreadPool() {
    stop_.store(true);
    job_number_.fetch_add(1, std::memory_order_release);
    job_number_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(Worker&)>& f) {
    if (n_threads_ > 1) {
        counters_[0].value.store(0, std::memory_order_relaxed);
        job_ = &f;
        job_number_.fetch_add(1, std::memory_order_release);
        job_number_.notify_all();
    }
    Worker worker(*this, 0);
    f(worker);
    barrier();
}

void ThreadPool::worker_loop(int thread) {
    uint32_t seen = 0;
    for (;;) {
        wait_while(job_number_, seen);
        seen++;
        if (stop_.load()) return;
        Worker worker(*this, thread);
        (*job_)(worker);
        barrier();
    }
}

void ThreadPool::barrier() {
    if (n_threads_ == 1) return;
    const uint32_t generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(n_threads_)) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.fetch_add(1, std::memory_order_release);
        generation_.notify_all();
    } else {
        wait_while(generation_, generation);
    }
}

}  // namespace bitnet
