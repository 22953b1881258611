#define CDN_VARIANT avx2
#include "winograd_weight.h"
