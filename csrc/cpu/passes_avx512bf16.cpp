#define CDN_VARIANT avx512bf16
#include "passes.h"
