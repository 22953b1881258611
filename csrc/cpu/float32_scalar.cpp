#define CDN_VARIANT scalar
#include "convolution_float32.h"
