// Asynchronous copies, which happen when the thread waits for them or at once.
#pragma once

#include <cuda_runtime.h>

// Of the size, the last zeros are not read, and 0 is written.
void __pipeline_memcpy_async(void* to, const void* from, std::size_t size, std::size_t zeros = 0);
void __pipeline_commit();
void __pipeline_wait_prior(int groups);
