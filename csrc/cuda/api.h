// The C interface of the CUDA library: plain pointers and integers, no Python and no torch.
//
// Pointers are to memory of the GPU. Functions that launch kernels return 0 once these are on their way in the caller's
// stream, for which they never wait, and otherwise a status that cdn_cuda_error explains. The current device of the
// thread must be that of the pointers and of the stream.
#pragma once

#include "../api.h"

// Raised with every change of the functions below, so that Python refuses a library built from older sources.
#define CDN_CUDA_INTERFACE 3

// The value of CDN_CUDA_INTERFACE that the library was built with.
CDN_API int cdn_cuda_interface();

// The compiler and the architectures of the library, as "nvcc 13.0: sm_80 sm_90 compute_90"; the last is code that the
// driver can compile for newer ones.
CDN_API const char* cdn_cuda_build();

// The version of CUDA of the library and the latest one that the driver supports, 0 without a driver: 13000 is 13.0.
CDN_API int cdn_cuda_toolkit();
CDN_API int cdn_cuda_driver();

// What a status means: words for people to read.
CDN_API const char* cdn_cuda_error(int status);

// A pass of z = normalize(phi(v)), v = x + residual, over [batch, pixels, channels]: all as for cdn_gelu_norm, and a
// workspace of as many bytes as cdn_cuda_gelu_norm_workspace says, or a negative number if it refuses the arguments.
CDN_API int cdn_cuda_gelu_norm(int sweep, const void* x, const void* residual, const void* gain, const void* grad,
                               const void* source, const void* tangent, void* statistics, void* sum, void* out,
                               void* tangent_out, void* gain_grad, int type, std::int64_t batch, std::int64_t channels,
                               std::int64_t pixels, std::int64_t groups, double eps, int scale_preserving,
                               void* workspace, void* stream);
CDN_API std::int64_t cdn_cuda_gelu_norm_workspace(int sweep, int type, std::int64_t batch, std::int64_t channels,
                                                  std::int64_t pixels, std::int64_t groups, int scale_preserving);

// As cdn_gelu and cdn_pool; a pooling with a workspace of as many bytes as cdn_cuda_pool_workspace says, or a negative
// number if it refuses the arguments.
CDN_API int cdn_cuda_gelu(int sweep, const void* u, const void* grad, const void* other, void* out, void* tangent_out,
                          int type, std::int64_t size, void* stream);
CDN_API int cdn_cuda_pool(int kind, const void* a, const void* b, void* values, void* out, int type, std::int64_t batch,
                          std::int64_t channels, std::int64_t pixels, int channels_last, void* workspace, void* stream);
CDN_API std::int64_t cdn_cuda_pool_workspace(int kind, int type, std::int64_t batch, std::int64_t channels,
                                             std::int64_t pixels, int channels_last);

// As cdn_add_noise, cdn_sample_sigma and cdn_random_words, but for offset and places, which are read on the GPU.
CDN_API int cdn_cuda_add_noise(const void* x, const void* sigma, void* y, int type, std::int64_t batch,
                               std::int64_t size, std::int64_t channels, std::uint64_t seed, const std::int64_t* offset,
                               std::int64_t first, const std::int64_t* places, void* stream);
CDN_API int cdn_cuda_sample_sigma(void* sigma, int type, std::int64_t batch, int law, double low, double high,
                                  double clean_share, int clean, std::uint64_t seed, const std::int64_t* offset,
                                  std::int64_t first, const std::int64_t* places, void* stream);
CDN_API int cdn_cuda_random_words(std::uint32_t* words, std::int64_t batch, std::int64_t blocks, int random_stream,
                                  std::uint64_t seed, const std::int64_t* offset, void* stream);

// As cdn_denoising; if errors are asked for, with a workspace of cdn_cuda_denoising_workspace bytes.
CDN_API int cdn_cuda_denoising(const void* score, const void* sigma, const void* factors, void* errors, void* gradient,
                               int type, std::int64_t batch, std::int64_t size, std::int64_t channels,
                               std::uint64_t seed, const std::int64_t* offset, std::int64_t first,
                               const std::int64_t* places, void* workspace, void* stream);
CDN_API std::int64_t cdn_cuda_denoising_workspace(std::int64_t batch, std::int64_t size);

// A convolution as cdn_conv2d, forward or by the input, of bfloat16 or float16, 3x3 with stride 1 and 64 channels on
// both sides. Its product is what cdn_conv2d would write without an activation; phi is the GELU:
//   out = phi'(u) product + added (either may be null, for one and zero), activation = phi(out)
// of which, and of the product, some may be null. Addresses must be multiples of 16.
CDN_API int cdn_cuda_conv2d(int kind, const void* first, const void* second, const void* u, const void* added,
                            void* out, void* activation, void* product, int type, std::int64_t batch,
                            std::int64_t height, std::int64_t width, std::int64_t inputs, std::int64_t outputs,
                            std::int64_t size, std::int64_t stride, void* stream);
// The status with which cdn_cuda_conv2d would refuse a convolution on the current device, or 0.
CDN_API int cdn_cuda_conv2d_refuses(int kind, int type, std::int64_t batch, std::int64_t height, std::int64_t width,
                                    std::int64_t inputs, std::int64_t outputs, std::int64_t size, std::int64_t stride);
