// Zeroed, page-aligned memory straight from the system: pages take up room only once they are touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace bitnet {

class PageBuffer {
public:
    PageBuffer() = default;
    // Throws std::bad_alloc. `bytes` may be 0.
    explicit PageBuffer(size_t bytes);
    ~PageBuffer();
    PageBuffer(PageBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    PageBuffer& operator=(PageBuffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }

    uint8_t* data() const { return data_; }
    size_t size() const { return bytes_; }
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }
    bool lock() const;  // mlock; false if the system's limit does not allow it

private:
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace bitnet
