// A read-only memory mapping of a whole file. POSIX mmap; the Windows implementation lives beside it in the same .cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace bitnet {

class MappedFile {
public:
    // Throws ModelFileError (naming the file and the system's reason) if the path is missing, not a regular file, empty
    // or unreadable. A file that shrinks while mapped is undefined (SIGBUS), as with every mmap reader.
    static std::shared_ptr<MappedFile> open(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }
    const std::string& path() const { return path_; }

    // Ask the kernel to drop the resident pages of [offset, offset+bytes): they were read once and are not needed again.
    void forget(size_t offset, size_t bytes) const;
    // Keep every page in memory (mlock). Returns false, with the system's reason, if the limit does not allow it.
    bool lock(std::string* reason) const;

private:
    MappedFile() = default;
    std::string path_;
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace bitnet
