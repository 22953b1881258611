#define CDN_VARIANT avx512bf16
#include "winograd_weight.h"
