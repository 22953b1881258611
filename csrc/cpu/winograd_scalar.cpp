#define CDN_VARIANT scalar
#include "winograd_weight.h"
