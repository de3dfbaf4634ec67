// check_model FILE...: opens and loads each model file and says whether it was accepted or refused. Meant for damaged
// files under sanitizers: the exit status is 1 only if anything other than acceptance or a ModelFileError happened.
#include <cstdio>
#include <exception>

#include "gguf/gguf_file.h"
#include "model/model.h"
#include "platform/errors.h"

int main(int argc, char** argv) {
    int status = 0;
    for (int i = 1; i < argc; i++) {
        try {
            bitnet::Model::load(bitnet::GgufFile::open(argv[i]), bitnet::ModelOptions{});
            std::printf("%s: ok\n", argv[i]);
        } catch (const bitnet::ModelFileError& e) {
            std::printf("%s: ModelFileError: %s\n", argv[i], e.what());
        } catch (const std::exception& e) {
            std::printf("%s: UNEXPECTED: %s\n", argv[i], e.what());
            status = 1;
        }
    }
    return status;
}
