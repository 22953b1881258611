#define CDN_VARIANT avx2
#include "convolution_float32.h"
