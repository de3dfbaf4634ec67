#include "platform/atomic_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>

#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif

namespace bitnet {

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
    // Random, so that processes which make the same file at the same time do not write into each other's.
    temporary_ = path_ + ".tmp" + std::to_string(std::random_device{}());
    file_ = std::fopen(temporary_.c_str(), "wb");
    if (!file_) fail();
}

AtomicFile::~AtomicFile() {
    if (file_) {
        std::fclose(file_);
        std::remove(temporary_.c_str());
    }
}

void AtomicFile::fail() {
    if (error_.empty()) error_ = std::strerror(errno);
}

void AtomicFile::write(const uint8_t* data, size_t bytes) {
    if (ok() && std::fwrite(data, 1, bytes, file_) != bytes) fail();
}

bool AtomicFile::commit() {
    if (!ok()) return false;
    if (std::fflush(file_) != 0) fail();
#if defined(_WIN32)
    if (ok() && _commit(_fileno(file_)) != 0) fail();
#else
    if (ok() && fsync(fileno(file_)) != 0) fail();
#endif
    if (!ok()) return false;
    std::fclose(file_);
    file_ = nullptr;
    std::error_code error;
    std::filesystem::rename(temporary_, path_, error);
    if (error) {
        error_ = error.message();
        std::remove(temporary_.c_str());
    }
    return ok();
}

}  // namespace bitnet
