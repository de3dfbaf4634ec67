// Samplers, which choose a sequence's next token, and what is measured of logits.
#include "bindings/bindings.h"

#include <cstring>

#include "model/statistics.h"
#include "platform/cpu_features.h"
#include "platform/errors.h"
#include "platform/thread_pool.h"
#include "sampling/sampler.h"

using namespace nb::literals;

namespace bitnet {
namespace {

using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Sampler new_sampler(float temperature, int32_t top_k, float top_p, float min_p, float repetition_penalty, float presence_penalty,
                    float frequency_penalty, uint64_t seed, const std::optional<nb::dict>& logit_bias, const std::vector<int32_t>& prompt_ids) {
    std::vector<std::pair<int32_t, float>> bias;
    if (logit_bias)
        for (const auto& [token, value] : *logit_bias) bias.emplace_back(nb::cast<int32_t>(token), nb::cast<float>(value));
    if (!(repetition_penalty > 0)) throw InvalidRequestError("repetition_penalty must be positive");
    return Sampler({temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed}, std::move(bias), prompt_ids);
}

nb::object compare_logits(FloatRows a, FloatRows b, TokenArray target_ids, int n_threads) {
    const size_t rows = a.shape(0), vocab = a.shape(1);
    if (b.shape(0) != rows || b.shape(1) != vocab || target_ids.size() != rows || vocab == 0 || vocab > INT32_MAX)
        throw InvalidRequestError("a and b must have the same shape [n, vocab], and target_ids a token for each row");
    for (size_t i = 0; i < rows; i++)
        if (target_ids.data()[i] < -1 || target_ids.data()[i] >= static_cast<int64_t>(vocab))
            throw InvalidRequestError("token id " + std::to_string(target_ids.data()[i]) + " is outside the vocabulary of " + std::to_string(vocab));
    constexpr size_t kColumns = sizeof(PositionComparison) / sizeof(double);
    double* data;
    auto array = own_array<double, 2>({rows, kColumns}, &data);
    {
        nb::gil_scoped_release release;
        ThreadPool pool(n_threads > 0 ? n_threads : physical_cores());
        pool.run([&](ThreadPool::Worker& worker) {
            worker.parallel_for(static_cast<int64_t>(rows), 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; i++) {
                    const size_t row = static_cast<size_t>(i);
                    const PositionComparison c = compare_position(a.data() + row * vocab, b.data() + row * vocab,
                                                                  static_cast<int32_t>(vocab), target_ids.data()[row]);
                    std::memcpy(data + row * kColumns, &c, sizeof c);
                }
            });
        });
    }
    return nb::cast(array);
}

}  // namespace

void bind_sampling(nb::module_& m) {
    nb::class_<Sampled>(m, "Sampled")
        .def_ro("token_id", &Sampled::token)
        .def_ro("logprob", &Sampled::logprob)
        .def_ro("top", &Sampled::top);

    nb::class_<Sampler>(m, "Sampler")
        .def(nb::new_(&new_sampler), nb::kw_only(), "temperature"_a = 0.7f, "top_k"_a = 40, "top_p"_a = 0.9f, "min_p"_a = 0.0f,
             "repetition_penalty"_a = 1.0f, "presence_penalty"_a = 0.0f, "frequency_penalty"_a = 0.0f, "seed"_a = 0,
             "logit_bias"_a = nb::none(), "prompt_ids"_a = std::vector<int32_t>{})
        .def("accept", &Sampler::accept, "token_id"_a)
        .def("sample", [](Sampler& sampler, Logits logits, int n_logprobs) {
                 return sampler.sample(LogitRow::of_logits(logits.data(), static_cast<int32_t>(logits.size())), n_logprobs);
             }, "logits"_a, "logprobs"_a = -1, nb::call_guard<nb::gil_scoped_release>())
        .def("set_mask", [](Sampler& sampler, std::optional<TokenArray> mask) {
                 std::vector<uint32_t> words;
                 if (mask) {
                     words.resize(mask->size());
                     std::memcpy(words.data(), mask->data(), words.size() * sizeof(uint32_t));
                 }
                 sampler.set_mask(std::move(words));
             }, "mask"_a.none());

    m.def("compare_logits", compare_logits, "a"_a, "b"_a, "target_ids"_a, "n_threads"_a = 0);
}

}  // namespace bitnet
