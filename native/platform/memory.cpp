#include "platform/memory.h"

#include <new>

#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace bitnet {

#if defined(_WIN32)

PageBuffer::PageBuffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    data_ = static_cast<uint8_t*>(VirtualAlloc(nullptr, bytes, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE));
    if (!data_) throw std::bad_alloc();
}

PageBuffer::~PageBuffer() {
    if (data_) VirtualFree(data_, 0, MEM_RELEASE);
}

bool PageBuffer::lock() const { return data_ == nullptr || VirtualLock(data_, bytes_); }

#else

PageBuffer::PageBuffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(p);
#if defined(MADV_HUGEPAGE)
    // Huge pages spare TLB misses when hundreds of megabytes of weights are streamed; below 2 MiB they only waste memory.
    if (bytes >= (size_t{4} << 20)) madvise(p, bytes, MADV_HUGEPAGE);
#endif
}

PageBuffer::~PageBuffer() {
    if (data_) munmap(data_, bytes_);
}

bool PageBuffer::lock() const { return data_ == nullptr || mlock(data_, bytes_) == 0; }

#endif

}  // namespace bitnet
