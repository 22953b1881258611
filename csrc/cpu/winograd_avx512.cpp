#define CDN_VARIANT avx512
#include "winograd_weight.h"
