#define CDN_VARIANT avx2
#include "noise.h"
