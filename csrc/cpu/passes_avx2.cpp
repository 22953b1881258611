#define CDN_VARIANT avx2
#include "passes.h"
