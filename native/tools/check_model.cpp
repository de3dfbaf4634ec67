// check_model FILE...: opens and loads each model file and runs a few tokens through it on every kernel set, with keys and
// values of each type. Meant for damaged files under sanitizers: the exit status is 1 only if something other than
// acceptance or a ModelFileError happened, or if the kernel sets disagree.
#include <cstdio>
#include <exception>
#include <vector>

#include "gguf/gguf_file.h"
#include "model/model.h"
#include "model/runner.h"
#include "platform/errors.h"

using namespace bitnet;

namespace {

// Logits of 45 tokens (one table-lookup tile, a multiply-add rest, two KV blocks), then the greedy token.
std::vector<float> run(const std::shared_ptr<Model>& model, const Kernels& kernels, KvType kv_type, int n_threads, int32_t* greedy) {
    Runner runner(model, 4, 64, n_threads, kernels, kv_type);
    std::vector<int32_t> tokens(45), outputs(45);
    for (int32_t i = 0; i < 45; i++) {
        tokens[static_cast<size_t>(i)] = i * 7 % model->sizes().vocab_size;
        outputs[static_cast<size_t>(i)] = i;
    }
    runner.forward(tokens, {{{2, 0}, 0, 45}}, outputs);
    std::vector<float> logits(45 * static_cast<size_t>(model->sizes().vocab_size));
    runner.logits(logits.data());
    SamplingOptions options;
    options.temperature = 0;
    Sampler sampler(options, {}, tokens);
    *greedy = runner.sample(44, sampler, 3).token;
    options.temperature = 0.8f;
    options.top_k = 0;
    options.repetition_penalty = 1.2f;
    Sampler random(options, {{0, -1.0f}}, tokens);
    random.accept(runner.sample(44, random, -1).token);
    return logits;
}

}  // namespace

int main(int argc, char** argv) {
    int status = 0;
    for (int i = 1; i < argc; i++) {
        try {
            const std::shared_ptr<Model> model = Model::load(GgufFile::open(argv[i]), ModelOptions{});
            bool equal = true;
            for (KvType kv_type : {KvType::F16, KvType::Q8_0}) {
                int32_t greedy = -1, other = -2;
                const std::vector<float> logits = run(model, kScalarKernels, kv_type, 1, &greedy);
                for (const Kernels* const* table = supported_kernels(); *table; ++table)
                    equal = equal && run(model, **table, kv_type, 2, &other) == logits && other == greedy;
            }
            std::printf("%s: %s\n", argv[i], equal ? "ok" : "UNEXPECTED: the kernel sets disagree");
            if (!equal) status = 1;
        } catch (const ModelFileError& e) {
            std::printf("%s: ModelFileError: %s\n", argv[i], e.what());
        } catch (const std::exception& e) {
            std::printf("%s: UNEXPECTED: %s\n", argv[i], e.what());
            status = 1;
        }
    }
    return status;
}
