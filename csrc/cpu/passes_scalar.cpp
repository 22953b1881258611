#define CDN_VARIANT scalar
#include "passes.h"
