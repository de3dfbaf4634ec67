// A file that appears under its name complete, or not at all: written beside it, synced, then renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

namespace bitnet {

class AtomicFile {
public:
    explicit AtomicFile(std::string path);
    ~AtomicFile();  // removes what was not committed
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    bool ok() const { return error_.empty(); }
    const std::string& error() const { return error_; }  // the system's reason
    void write(const uint8_t* data, size_t bytes);
    bool commit();

private:
    void fail();

    std::string path_;
    std::string temporary_;
    std::FILE* file_ = nullptr;
    std::string error_;
};

}  // namespace bitnet
