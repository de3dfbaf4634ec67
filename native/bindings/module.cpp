// bitnet._native: translation between Python objects and the engine, nothing else. What it has is in the other files of this
// folder; the Python view of it is src/bitnet/_native.pyi.
#include "bindings/bindings.h"
#include "cpu/kernels.h"
#include "platform/errors.h"

namespace bitnet {
namespace {

// Native exceptions become the Python exceptions of bitnet.errors, looked up when raised.
void raise(const char* name, const char* message) {
    nb::object type = nb::module_::import_("bitnet.errors").attr(name);
    PyErr_SetObject(type.ptr(), text(message).ptr());  // the message may quote a path that is not UTF-8
}

void translate(const std::exception_ptr& error, void*) {
    try {
        std::rethrow_exception(error);
    } catch (const ModelFileError& e) {
        raise("ModelFileError", e.what());
    } catch (const InvalidRequestError& e) {
        raise("ValidationError", e.what());
    } catch (const LayoutError& e) {
        raise("ValidationError", e.what());
    } catch (const DeviceError& e) {
        raise("DeviceError", e.what());
    } catch (const CancelledError& e) {
        raise("CancelledError", e.what());
    }
}

}  // namespace
}  // namespace bitnet

NB_MODULE(_native, m) {
    using namespace bitnet;
    nb::set_leak_warnings(false);  // interpreter exit with live generations is normal; the pools join in their destructors
    nb::register_exception_translator(translate);

    bind_files(m);
    bind_sampling(m);  // before the models, whose methods take samplers
    bind_models(m);
    bind_devices(m);

    m.def("build_info", [] {
        nb::dict info;
#if defined(__clang__)
        info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
        info["compiler"] = "gcc " __VERSION__;
#else
        info["compiler"] = "unknown";
#endif
        info["version"] = BITNET_VERSION;
        info["kernels"] = select_kernels()->name;
        return info;
    });
}
