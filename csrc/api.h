// The C interface of the library: plain pointers and integers, no Python and no torch.
//
// Shapes are [batch, size], one image a row. Functions that can fail return 0 on success and 1 if an argument
// is out of range (an unknown type, law or capability, or one that this processor lacks).
#pragma once

#include <cstdint>

// Raised with every change of the functions below, so that Python refuses a library built from older sources.
#define CDN_INTERFACE 16

#define CDN_API extern "C" __attribute__((visibility("default")))

enum cdn_type { CDN_FLOAT32, CDN_FLOAT64, CDN_BFLOAT16, CDN_FLOAT16 };
enum cdn_law { CDN_LOG_UNIFORM, CDN_UNIFORM, CDN_FIXED };
enum cdn_clean_law { CDN_INDEPENDENT, CDN_STRATIFIED };
enum cdn_sweep { CDN_FORWARD, CDN_BACKWARD, CDN_TANGENT };
enum cdn_pooling { CDN_DOT, CDN_SCALE, CDN_MEAN, CDN_SPREAD };
enum cdn_convolution { CDN_CONV_FORWARD, CDN_CONV_INPUT, CDN_CONV_WEIGHT };
// What runs convolutions. Direct engines multiply bfloat16: plain C++ and imitated AMX tiles are for tests,
// CDN_NO_ENGINE is none that is fast. Those of minimal filtering, one for each capability, take filters of 3x3 with
// stride 1 or 2, of all types.
enum cdn_engine {
    CDN_NO_ENGINE = -1,
    CDN_PORTABLE,
    CDN_AMX_EMULATED,
    CDN_AVX512_BF16,
    CDN_AMX,
    CDN_FLOAT32_SCALAR,
    CDN_FLOAT32_AVX2,
    CDN_FLOAT32_AVX512,
    CDN_WINOGRAD_SCALAR,
    CDN_WINOGRAD_AVX2,
    CDN_WINOGRAD_AVX512,
    CDN_WINOGRAD_AVX512_BF16
};
// Scalar is what every processor of a platform runs: four lanes of SSE2 on x86-64, of NEON on 64-bit ARM.
enum cdn_capability { CDN_SCALAR, CDN_AVX2, CDN_AVX512, CDN_AVX512_BFLOAT16 };

// The value of CDN_INTERFACE that the library was built with.
CDN_API int cdn_interface();

// The best capability of this processor, or the lower one that the environment's CDN_CPU_CAPABILITY names.
CDN_API int cdn_capability();

// The fastest direct engine for convolutions of this processor, or what the environment's CDN_CPU_CAPABILITY leaves of
// it.
CDN_API int cdn_conv_engine();

// Lend the library the threads of an OpenMP runtime: its functions GOMP_parallel, omp_get_thread_num and
// omp_get_num_threads. Before that, and after a call with nulls, everything runs on the calling thread.
CDN_API void cdn_use_openmp(void* parallel, void* thread_num, void* num_threads);

// What the library was built with, and what of interest this processor has: words for people to read.
CDN_API const char* cdn_build();
CDN_API const char* cdn_features();

// y = x + sigma eps. x is null for zero, sigma null for one. sigma is double for CDN_FLOAT64 and float
// otherwise; half precision is computed in float and rounded once. channels = 0: C order; channels = C: each
// image is stored [size / C, C] (channels last), while eps is still numbered in the order [C, size / C]. Noise is drawn
// for places of images in a batch, modulo 2^32: places[batch], or first and those after it if places is null.
CDN_API int cdn_add_noise(const void* x, const void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                          std::int64_t channels, std::uint64_t seed, std::uint64_t offset, std::int64_t first,
                          const std::int64_t* places, int threads, int capability);

// sigma[i], float or double, drawn from a law on [low, high], or 0 with probability clean_share: by a clean law for
// each image for itself, or for all places so that consecutive ones meet the share to within one image.
CDN_API int cdn_sample_sigma(void* sigma, int type, std::int64_t batch, int law, double low, double high,
                             double clean_share, int clean, std::uint64_t seed, std::uint64_t offset,
                             std::int64_t first, const std::int64_t* places);

// Both in one call: sigma[batch] is drawn and written, then y = x + sigma eps. x must not be null.
CDN_API int cdn_sample_noise(const void* x, void* sigma, void* y, int type, std::int64_t batch, std::int64_t size,
                             std::int64_t channels, int law, double low, double high, double clean_share, int clean,
                             std::uint64_t seed, std::uint64_t offset, std::int64_t first, const std::int64_t* places,
                             int threads, int capability);

// The denoising residual sigma s + eps of a score, with the eps that cdn_add_noise adds; images with sigma = 0 have
// none. Either errors[batch] = mean over the image of its square (gradient null), or gradient = factors[batch] times
// the gradient of that by the score (errors null). sigma, factors and errors are double for CDN_FLOAT64 and float
// otherwise. channels as for cdn_add_noise, size >= 1.
CDN_API int cdn_denoising(const void* score, const void* sigma, const void* factors, void* errors, void* gradient,
                          int type, std::int64_t batch, std::int64_t size, std::int64_t channels, std::uint64_t seed,
                          std::uint64_t offset, std::int64_t first, const std::int64_t* places, int threads,
                          int capability);

// words[batch, blocks, 4]: the integers behind the noise, for tests.
CDN_API int cdn_random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, int stream,
                             std::uint64_t seed, std::uint64_t offset, int capability);

// A pass of GELU over size elements. With u the pre-activation:
//   forward:  out = phi(u)
//   backward: out = phi'(u) grad + other (other may be null)
//   tangent:  tangent_out = phi'(u) other, out = phi''(u) grad other (other is the tangent of u)
CDN_API int cdn_gelu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out,
                     int type, std::int64_t size, int threads, int capability);

// The same of SiLU.
CDN_API int cdn_silu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out,
                     int type, std::int64_t size, int threads, int capability);

// The same of ELU.
CDN_API int cdn_elu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out,
                    int type, std::int64_t size, int threads, int capability);

// The second order of a softmax p over each of some rows [rows, length], g the gradient by p and t a tangent of what
// the softmax was taken of. Of <p (g - <p, g>), t>, tangent_out is the derivative by g, and out that by p.
CDN_API int cdn_softmax_tangent(const void* p, const void* grad, const void* tangent, void* out, void* tangent_out,
                                int type, std::int64_t rows, std::int64_t length, int threads, int capability);

// A pass of z = normalize(phi(v)), v = x + residual, over [batch, channels, pixels] or [batch, pixels, channels].
// gain[channels], statistics[batch, 4 groups + 1] and gain_grad[batch, channels] (may be null) are float, or double
// for CDN_FLOAT64; everything else has the given type. eps > 0.
//   forward:  x and residual give sum = v, statistics and out = z; if residual is null, v = x and sum is unused
//   backward: x = v, statistics, grad = g_z and source (may be null) give out = g_v + source, and gain_grad; only the
//             first `sourced` samples have a source
//   tangent:  x = v, statistics, grad = g_z and tangent = vdot give tangent_out = zdot, out = the derivative of
//             <g_v, vdot> by v, and gain_grad = its derivative by the gain
CDN_API int cdn_gelu_norm(int sweep, const void* x, const void* residual, const void* gain, const void* grad,
                          const void* source, const void* tangent, void* statistics, void* sum, void* out,
                          void* tangent_out, void* gain_grad, int type, std::int64_t sourced, std::int64_t batch,
                          std::int64_t channels, std::int64_t pixels, std::int64_t groups, double eps,
                          int scale_preserving, int channels_last, int threads, int capability);

// A pass of the plain z = normalize(x) + bias, likewise, with bias[channels] (may be null) of the type of gain.
// gain_grad[shares, channels] and bias_grad[shares, channels] (may be null) are sums over runs of samples, share i over
// those from batch i / shares on. Tangent: out is the derivative of <g_x, tangent> by x. With groups = 0
// every channel of all samples is one, batch normalization: statistics[1, 4 channels + 1] and shares = 1, batch >= 1.
CDN_API int cdn_group_norm(int sweep, const void* x, const void* gain, const void* bias, const void* grad,
                           const void* tangent, void* statistics, void* out, void* tangent_out, void* gain_grad,
                           void* bias_grad, int type, std::int64_t batch, std::int64_t shares, std::int64_t channels,
                           std::int64_t pixels, std::int64_t groups, double eps, int channels_last, int threads,
                           int capability);

// A reduction of images [batch, channels, pixels] or [batch, pixels, channels], or the adjoint of one; values are
// float, or double for CDN_FLOAT64.
//   dot:    values[batch] = sum of a b, over channels and pixels, divided by pixels
//   scale:  out = a values[batch] / pixels, the adjoint of dot by b
//   mean:   values[batch, channels] = mean of a over pixels
//   spread: out = values[batch, channels] / pixels, the adjoint of mean
CDN_API int cdn_pool(int kind, const void* a, const void* b, void* values, void* out, int type, std::int64_t batch,
                     std::int64_t channels, std::int64_t pixels, int channels_last, int threads, int capability);

// A convolution without bias, with zero padding of size / 2, of images stored channels last, [batch, height, width,
// inputs], with filters [outputs, size, size, inputs], size odd and at most 7, to images [batch, ceil(height / stride),
// ceil(width / stride), outputs]. Products are summed in float, or double for CDN_FLOAT64, and rounded once.
//   forward: first = x, second = w give out = y and, unless null, activation = phi(y); out may be null beside it
//   input:   first = the gradient of y, second = w give out = p, the gradient of x; of what is not null, product = p
//            and out = phi'(u) p + added, of which only the first `sourced` images have something added
//   weight:  first = x, second = the gradient of y give out = the gradient of w
// Subnormal numbers of all types but CDN_FLOAT64 may count as zeros.
// Direct engines take CDN_BFLOAT16 or CDN_FLOAT32, as their names say, without u, added and product.
// Returns 2 if there is no memory for the workspace, which the calling thread keeps until it ends.
CDN_API int cdn_conv2d(int kind, const void* first, const void* second, void* out, void* activation, const void* u,
                       const void* added, void* product, int type, std::int64_t sourced, std::int64_t batch,
                       std::int64_t height, std::int64_t width, std::int64_t inputs, std::int64_t outputs,
                       std::int64_t size, std::int64_t stride, int threads, int engine);
