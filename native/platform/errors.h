// The exceptions native code throws. The bindings turn each into the Python exception of the same name
// (src/bitnet/errors.py); nothing else crosses the boundary.
#pragma once

#include <stdexcept>
#include <string>

namespace bitnet {

// A model file that is damaged, hostile, or of a kind this engine does not compute. The message names the file,
// what was expected and what was found.
class ModelFileError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// A request that cannot be computed as asked (token id out of range, more positions than the KV store has room for).
class InvalidRequestError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// A GPU that is not there, has too little memory, or was lost.
class DeviceError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The forward pass was stopped by Runner::cancel.
class CancelledError : public std::runtime_error {
public:
    CancelledError() : std::runtime_error("the computation was cancelled") {}
};

}  // namespace bitnet
