#define CDN_VARIANT avx512
#include "convolution_float32.h"
