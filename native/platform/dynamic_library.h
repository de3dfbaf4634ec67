// Shared libraries that are loaded while the program runs, and the number of the process.
#pragma once

#include <string>

namespace bitnet {

// A symbol of the library at `path`, which stays loaded; nullptr, with the reason, if there is none.
void* library_symbol(const std::string& path, const char* name, std::string* reason);

long process_id();

}  // namespace bitnet
