#include "platform/dynamic_library.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace bitnet {

#if defined(_WIN32)

void* library_symbol(const std::string& path, const char* name, std::string* reason) {
    const int n = MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0);
    std::wstring wide(static_cast<size_t>(n > 0 ? n : 1), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, wide.data(), n);
    HMODULE library = LoadLibraryW(wide.c_str());
    void* symbol = library ? reinterpret_cast<void*>(GetProcAddress(library, name)) : nullptr;
    if (!symbol) *reason = "error " + std::to_string(GetLastError());
    return symbol;
}

long process_id() { return static_cast<long>(GetCurrentProcessId()); }

#else

void* library_symbol(const std::string& path, const char* name, std::string* reason) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* symbol = library ? dlsym(library, name) : nullptr;
    if (!symbol) {
        const char* error = dlerror();
        *reason = error ? error : "it lacks " + std::string(name);
    }
    return symbol;
}

long process_id() { return static_cast<long>(getpid()); }

#endif

}  // namespace bitnet
