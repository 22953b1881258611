// Sums that several blocks of threads share.
#pragma once

#include <cstdint>

namespace cdn {

// values[count], double or float, = the sums of partial[count, parts] over parts, in their order, over a divisor.
int add_parts(const double* partial, void* values, bool is_double, std::int64_t count, int parts, double divisor,
              void* stream);

}  // namespace cdn
