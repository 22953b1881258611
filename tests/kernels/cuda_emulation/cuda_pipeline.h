// Asynchronous copies, which happen when the thread waits for them or at once.
#pragma once

#include <cuda_runtime.h>

void __pipeline_memcpy_async(void* to, const void* from, std::size_t size);
void __pipeline_commit();
void __pipeline_wait_prior(int groups);
