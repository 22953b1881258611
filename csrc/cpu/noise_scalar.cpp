#define CDN_VARIANT scalar
#include "noise.h"
