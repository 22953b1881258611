// Call every kernel through the C interface with inputs that any processor makes alike, and print what they return:
// a line for each result, its name, "exact" or "close" for how the same line of another processor may differ, the type
// of its elements, and its numbers in hexadecimal. The argument is the capability to run.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../../csrc/cpu/storage.h"

namespace {

using cdn::Bfloat16, cdn::Float16, cdn::Float32, cdn::Float64;

constexpr std::int64_t kBatch = 3, kChannels = 6, kHeight = 7, kWidth = 9, kPixels = kHeight * kWidth;
constexpr std::int64_t kImage = kChannels * kPixels, kSize = kBatch * kImage;
constexpr std::uint64_t kSeed = 0x123456789abcdef0, kOffset = 77;
constexpr int kThreads = 1;
int capability = 0;

void check(int status, const std::string& name) {
    if (status == 0) return;
    std::fprintf(stderr, "%s returned %d\n", name.c_str(), status);
    std::exit(1);
}

// Multiples of 1/64 in [-4, 4): numbers that all types hold.
template <typename Storage>
std::vector<typename Storage::Element> numbers(std::int64_t count, std::uint32_t seed) {
    std::vector<typename Storage::Element> values(static_cast<std::size_t>(count));
    std::uint32_t state = seed;
    for (auto& value : values) {
        state = state * 1664525u + 1013904223u;
        value = Storage::store(static_cast<typename Storage::Real>(static_cast<int>(state >> 23) - 256) / 64);
    }
    return values;
}

template <typename Storage>
void print(const std::string& name, const char* kind, const char* type,
           const std::vector<typename Storage::Element>& values) {
    std::printf("%s %s %s", name.c_str(), kind, type);
    for (const auto value : values) std::printf(" %a", static_cast<double>(Storage::load(value)));
    std::printf("\n");
}

// All kernels for one type. Sums and coefficients are of the type Wide.
template <typename Storage, typename Wide>
struct Recorder {
    using Real = typename Storage::Real;
    using Elements = std::vector<typename Storage::Element>;
    using Reals = std::vector<typename Storage::Real>;

    int type;
    const char* name;
    const char* wide;
    // The C library's logarithm and sine, which float64 takes, are not the same everywhere.
    const char* noisy = type == CDN_FLOAT64 ? "close" : "exact";
    Reals sigma = reals(kBatch, 3);

    static Reals reals(std::int64_t count, std::uint32_t seed) {
        Reals values = numbers<Wide>(count, seed);
        for (auto& value : values) value = std::fabs(value) + Real(0.25);
        return values;
    }

    void put(const std::string& what, const char* kind, const Elements& values) const {
        print<Storage>(what + "/" + name, kind, name, values);
    }
    void put_wide(const std::string& what, const char* kind, const Reals& values) const {
        print<Wide>(what + "/" + name, kind, wide, values);
    }

    void noise(std::int64_t channels) const {
        const std::string layout = channels ? "_last" : "";
        const Elements x = numbers<Storage>(kSize, 5);
        Elements y(kSize), gradient(kSize);
        Reals level(kBatch), errors(kBatch);
        const Reals factors = reals(kBatch, 7);
        check(cdn_add_noise(x.data(), sigma.data(), y.data(), type, kBatch, kImage, channels, kSeed, kOffset, 0,
                            nullptr, kThreads, capability),
              "add_noise");
        put("add_noise" + layout, noisy, y);
        for (int law = CDN_LOG_UNIFORM; law <= CDN_FIXED; ++law) {
            check(cdn_sample_noise(x.data(), level.data(), y.data(), type, kBatch, kImage, channels, law, 0.01, 0.7,
                                   0.25, CDN_STRATIFIED, kSeed, kOffset, 0, nullptr, kThreads, capability),
                  "sample_noise");
            put("sample_noise" + layout, noisy, y);
            put_wide("levels", noisy, level);
        }
        check(cdn_denoising(x.data(), sigma.data(), nullptr, errors.data(), nullptr, type, kBatch, kImage, channels,
                            kSeed, kOffset, 0, nullptr, kThreads, capability),
              "denoising");
        put_wide("errors" + layout, noisy, errors);
        check(cdn_denoising(x.data(), sigma.data(), factors.data(), nullptr, gradient.data(), type, kBatch, kImage,
                            channels, kSeed, kOffset, 0, nullptr, kThreads, capability),
              "denoising");
        put("residual" + layout, noisy, gradient);
    }

    void gelu() const {
        const Elements u = numbers<Storage>(kSize, 11), grad = numbers<Storage>(kSize, 12);
        const Elements other = numbers<Storage>(kSize, 13);
        for (int sweep = CDN_FORWARD; sweep <= CDN_TANGENT; ++sweep) {
            Elements out(kSize), tangent(kSize);
            check(cdn_gelu(sweep, u.data(), grad.data(), other.data(), out.data(), tangent.data(), type, kSize,
                           kThreads, capability),
                  "gelu");
            put("gelu", "close", out);
            if (sweep == CDN_TANGENT) put("gelu_tangent", "close", tangent);
        }
    }

    void norm(int channels_last, int scale_preserving) const {
        constexpr std::int64_t kGroups = 2;
        const Elements x = numbers<Storage>(kSize, 21), residual = numbers<Storage>(kSize, 22);
        const Elements grad = numbers<Storage>(kSize, 23), tangent = numbers<Storage>(kSize, 24);
        const Reals gain = reals(kChannels, 25);
        Reals statistics(kBatch * (4 * kGroups + 1)), gains(kBatch * kChannels);
        Elements sum(kSize), out(kSize), tangent_out(kSize);
        const auto sweep = [&](int number, const void* values) {
            check(cdn_gelu_norm(number, values, residual.data(), gain.data(), grad.data(), residual.data(),
                                tangent.data(), statistics.data(), sum.data(), out.data(), tangent_out.data(),
                                gains.data(), type, kBatch, kBatch, kChannels, kPixels, kGroups, 1e-3, scale_preserving,
                                channels_last, kThreads, capability),
                  "gelu_norm");
            put("norm", "close", out);
        };
        sweep(CDN_FORWARD, x.data());
        put_wide("statistics", "close", statistics);
        const Elements v = sum;
        sweep(CDN_BACKWARD, v.data());
        put_wide("gains", "close", gains);
        sweep(CDN_TANGENT, v.data());
        put("norm_tangent", "close", tangent_out);
    }

    void pool(int channels_last) const {
        const Elements a = numbers<Storage>(kSize, 31), b = numbers<Storage>(kSize, 32);
        for (int kind = CDN_DOT; kind <= CDN_SPREAD; ++kind) {
            Reals values = reals(kBatch * kChannels, 33);
            Elements out(kSize);
            check(cdn_pool(kind, a.data(), b.data(), values.data(), out.data(), type, kBatch, kChannels, kPixels,
                           channels_last, kThreads, capability),
                  "pool");
            put("pool", "close", out);
            put_wide("pooled", "close", values);
        }
    }

    void all() const {
        for (const std::int64_t channels : {std::int64_t{0}, kChannels}) noise(channels);
        gelu();
        for (int last = 0; last < 2; ++last) {
            norm(last, 0), norm(last, 1);
            pool(last);
        }
    }
};

void convolutions() {
    constexpr std::int64_t kOutputs = 5, kFilter = 3;
    for (const int engine : {CDN_PORTABLE, CDN_AMX_EMULATED, CDN_WINOGRAD_SCALAR})
        for (const std::int64_t stride : {1, 2}) {
            const bool direct = engine != CDN_WINOGRAD_SCALAR;  // minimal filtering adds and multiplies in one rounding
            if (!direct && stride > 1) continue;
            const std::int64_t height = (kHeight + stride - 1) / stride, width = (kWidth + stride - 1) / stride;
            const std::int64_t weights = kOutputs * kFilter * kFilter * kChannels;
            const auto x = numbers<Bfloat16>(kSize, 41), w = numbers<Bfloat16>(weights, 42);
            const auto g = numbers<Bfloat16>(kBatch * height * width * kOutputs, 43);
            const std::vector<std::uint16_t>* operands[3][3] = {{&x, &w, &g}, {&g, &w, &x}, {&x, &g, &w}};
            for (int kind = CDN_CONV_FORWARD; kind <= CDN_CONV_WEIGHT; ++kind) {
                const auto [first, second, like] = operands[kind];
                std::vector<std::uint16_t> out(like->size()), activation(like->size());
                check(cdn_conv2d(kind, first->data(), second->data(), out.data(),
                                 kind == CDN_CONV_FORWARD ? activation.data() : nullptr, nullptr, nullptr, nullptr,
                                 CDN_BFLOAT16, 0, kBatch, kHeight, kWidth, kChannels, kOutputs, kFilter, stride,
                                 kThreads, engine),
                      "conv2d");
                print<Bfloat16>("conv2d", direct ? "exact" : "close", "bfloat16", out);
                print<Bfloat16>("conv2d_gelu", "close", "bfloat16", activation);
            }
        }
}

}  // namespace

int main(int, char** arguments) {
    capability = std::atoi(arguments[1]);
    std::fprintf(stderr, "%s: %s, capability %d of %d\n", cdn_build(), cdn_features(), capability, cdn_capability());
    std::vector<std::uint32_t> words(4 * 2 * 19);
    check(cdn_random_words(words.data(), 2, 19, 0, kSeed, kOffset, capability), "random_words");
    std::printf("words exact float64");
    for (const auto word : words) std::printf(" %a", static_cast<double>(word));
    std::printf("\n");
    Recorder<Float32, Float32>{CDN_FLOAT32, "float32", "float32"}.all();
    Recorder<Float64, Float64>{CDN_FLOAT64, "float64", "float64"}.all();
    Recorder<Bfloat16, Float32>{CDN_BFLOAT16, "bfloat16", "float32"}.all();
    Recorder<Float16, Float32>{CDN_FLOAT16, "float16", "float32"}.all();
    convolutions();
}
