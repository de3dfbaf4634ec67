// Maps a whole file read-only: mmap on POSIX, CreateFileMapping on Windows. Every failure names the file and the
// system's own reason. The descriptor is closed at once; the mapping keeps the file alive.
#include "platform/mapped_file.h"

#include <cerrno>
#include <system_error>

#include "platform/errors.h"

#if defined(_WIN32)
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace bitnet {

static_assert(sizeof(size_t) == 8, "model files are larger than a 32-bit address space");

namespace {

[[noreturn]] void fail(const std::string& path, const std::string& message) {
    throw ModelFileError(path + ": " + message);
}

}  // namespace

#if defined(_WIN32)

namespace {

std::string last_error() {
    return std::system_category().message(static_cast<int>(GetLastError()));
}

std::wstring widen(const std::string& utf8) {
    const int length = static_cast<int>(utf8.size());
    std::wstring wide(static_cast<size_t>(MultiByteToWideChar(CP_UTF8, 0, utf8.data(), length, nullptr, 0)), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, utf8.data(), length, wide.data(), static_cast<int>(wide.size()));
    return wide;
}

struct Handle {
    HANDLE value;
    ~Handle() {
        if (value != nullptr && value != INVALID_HANDLE_VALUE) CloseHandle(value);
    }
};

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
    const Handle file{CreateFileW(widen(path).c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                                  OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)};
    if (file.value == INVALID_HANDLE_VALUE) fail(path, "cannot open the file: " + last_error());
    if (GetFileType(file.value) != FILE_TYPE_DISK) fail(path, "expected a regular file, found a device or a pipe");
    LARGE_INTEGER size;
    if (!GetFileSizeEx(file.value, &size)) fail(path, "cannot read the file's size: " + last_error());
    if (size.QuadPart == 0) fail(path, "the file is empty");
    const Handle mapping{CreateFileMappingW(file.value, nullptr, PAGE_READONLY, 0, 0, nullptr)};
    if (mapping.value == nullptr) fail(path, "cannot map the file into memory: " + last_error());
    const void* data = MapViewOfFile(mapping.value, FILE_MAP_READ, 0, 0, 0);
    if (data == nullptr) fail(path, "cannot map the file into memory: " + last_error());

    std::shared_ptr<MappedFile> mapped(new MappedFile);
    mapped->path_ = path;
    mapped->data_ = static_cast<const uint8_t*>(data);
    mapped->size_ = static_cast<size_t>(size.QuadPart);
    return mapped;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) UnmapViewOfFile(data_);
}

void MappedFile::forget(size_t offset, size_t bytes) const {
    // Unlocking pages that were never locked takes them out of the working set: the documented side effect wanted here.
    if (offset >= size_) return;
    VirtualUnlock(const_cast<uint8_t*>(data_) + offset, bytes < size_ - offset ? bytes : size_ - offset);
}

bool MappedFile::lock(std::string* reason) const {
    if (VirtualLock(const_cast<uint8_t*>(data_), size_)) return true;
    *reason = last_error();
    return false;
}

#else

namespace {

std::string last_error() {
    return std::generic_category().message(errno);
}

struct Descriptor {
    int value;
    ~Descriptor() {
        if (value >= 0) close(value);
    }
};

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
    // O_NONBLOCK: opening a named pipe must be refused below, not wait for a writer. It changes nothing for files.
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.value < 0) fail(path, "cannot open the file: " + last_error());
    struct stat status;
    if (fstat(file.value, &status) != 0) fail(path, "cannot read the file's size: " + last_error());
    if (S_ISDIR(status.st_mode)) fail(path, "expected a model file, found a directory");
    if (!S_ISREG(status.st_mode)) fail(path, "expected a regular file, found a device, a pipe or a socket");
    if (status.st_size <= 0) fail(path, "the file is empty");
    const size_t size = static_cast<size_t>(status.st_size);
    void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.value, 0);
    if (data == MAP_FAILED) fail(path, "cannot map the file into memory: " + last_error());

    std::shared_ptr<MappedFile> mapped(new MappedFile);
    mapped->path_ = path;
    mapped->data_ = static_cast<const uint8_t*>(data);
    mapped->size_ = size;
    return mapped;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::forget(size_t offset, size_t bytes) const {
    if (offset >= size_) return;
    // Only whole pages: the first and last page of a range may hold a neighbour that is still needed.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t end = bytes < size_ - offset ? offset + bytes : size_;
    const size_t first_page = (offset + page - 1) / page * page;
    const size_t end_page = end == size_ ? end : end / page * page;
    if (first_page < end_page) madvise(const_cast<uint8_t*>(data_) + first_page, end_page - first_page, MADV_DONTNEED);
}

bool MappedFile::lock(std::string* reason) const {
    if (mlock(data_, size_) == 0) return true;
    *reason = last_error();
    return false;
}

#endif

}  // namespace bitnet
