#define CDN_VARIANT avx512
#include "noise.h"
