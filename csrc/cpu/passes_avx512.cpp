#define CDN_VARIANT avx512
#include "passes.h"
