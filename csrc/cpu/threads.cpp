// Threads: those of the OpenMP runtime that the process has already.
//
// The library links with no runtime, for it would bring a second one, with a pool of threads of its own beside that of
// torch, whose wheels come with a copy. It calls what compilers turn `omp parallel` into: GNU's interface, which the
// runtimes of LLVM and Intel offer too.
#include "dispatch.h"

namespace {

using Parallel = void(void (*work)(void*), void* data, unsigned threads, unsigned flags);

struct OpenMP {
    Parallel* parallel;
    int (*thread_num)();
    int (*num_threads)();
} openmp{};

struct Parts {
    int count;
    void (*run)(const void* data, int part);
    const void* data;
};

// What every thread of a team does. A team may be smaller than was asked for, as within another team.
void share(void* data) {
    const Parts& parts = *static_cast<const Parts*>(data);
    const int team = openmp.num_threads();
    for (int part = openmp.thread_num(); part < parts.count; part += team) parts.run(parts.data, part);
}

}  // namespace

void cdn_use_openmp(void* parallel, void* thread_num, void* num_threads) {
    openmp = {reinterpret_cast<Parallel*>(parallel), reinterpret_cast<int (*)()>(thread_num),
              reinterpret_cast<int (*)()>(num_threads)};
}

void cdn::run_parts(int count, void (*run)(const void* data, int part), const void* data) {
    Parts parts{count, run, data};
    // Always the full team: OpenMP ends threads that a smaller one leaves idle, and torch wants them back.
    if (openmp.parallel) return openmp.parallel(share, &parts, static_cast<unsigned>(count), 0);
    for (int part = 0; part < count; ++part) run(data, part);
}
