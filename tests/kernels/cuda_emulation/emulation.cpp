// Threads of a block as fibers that take turns, and the rest of what cuda_runtime.h declares.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include <ucontext.h>

#include <cuda_pipeline.h>

#include "norm_plan.h"

namespace {

constexpr std::size_t kMostShared = 1 << 18, kGuard = 4096, kStack = 64 << 10;
constexpr unsigned char kPoison = 0xff, kGuardByte = 0xa5;

int shared_of_block = 227 << 10, multiprocessors = 132;
// Threads take turns from the last on, warps go ahead of others as far as they can, and copies and products happen at
// once and not as late as they may: nothing may depend on it.
bool otherwise = false;

}  // namespace

alignas(16) unsigned char cdn_shared[kMostShared + kGuard];

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

namespace {

enum State { kReady, kAtBarrier, kInTeam, kInWarp, kDone };

struct Copy {
    void* to;
    const void* from;
    std::size_t size, zeros;

    void happen() const {
        std::memcpy(to, from, size - zeros);
        std::memset(static_cast<char*>(to) + size - zeros, 0, zeros);
    }
};

struct Fiber {
    std::unique_ptr<char[]> stack{new char[kStack]};
    std::jmp_buf place;
    bool started = false;
    State state;
    std::deque<std::vector<Copy>> copies;  // a group each, the last one open
    std::deque<std::vector<std::function<void()>>> products;  // the same
    bool begun, shown;
    alignas(16) unsigned char deposits[2][160];
    int count;              // of deposits
    int barrier, teammates;  // that it waits at and for
};

std::vector<Fiber> fibers;
Fiber* running;
std::size_t shared_of_launch;
std::jmp_buf scheduler;
ucontext_t scheduler_context;
const std::function<void()>* kernel;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "CUDA emulation: %s (block %u, %u, %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x);
    std::abort();
}

void wait(State state) {
    running->state = state;
    if (!_setjmp(running->place)) _longjmp(scheduler, 1);
}

// What a fiber does for ever: the kernel, once for every block.
void work() {
    for (;;) {
        (*kernel)();
        wait(kDone);
    }
}

void resume(Fiber& fiber) {
    running = &fiber;
    threadIdx = dim3(&fiber - fibers.data(), 0, 0);
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, work, 0);
    swapcontext(&scheduler_context, &context);
}

// Let those go on who wait in a warp that is complete; tell whether it is.
bool release_warp(unsigned first, unsigned last) {
    for (unsigned i = first; i < last; ++i)
        if (fibers[i].state != kInWarp) return false;
    for (unsigned i = first; i < last; ++i) fibers[i].state = kReady;
    return true;
}

// Let those go on who wait at a barrier for a team that is complete.
void release_team(const Fiber& last) {
    const auto waits = [&](const Fiber& fiber) { return fiber.state == kInTeam && fiber.barrier == last.barrier; };
    const auto begin = fibers.begin(), end = begin + blockDim.x;
    if (std::count_if(begin, end, waits) < last.teammates) return;
    std::for_each(begin, end, [&](Fiber& fiber) {
        if (waits(fiber)) fiber.state = kReady;
    });
}

// Give every thread of a warp a turn; tell whether one took it.
bool run_warp(unsigned first, unsigned last) {
    bool moved = false;
    for (unsigned turn = first; turn < last; ++turn) {
        Fiber& fiber = fibers[otherwise ? first + last - 1 - turn : turn];
        if (fiber.state != kReady) continue;
        resume(fiber);
        moved = true;
        if (fiber.state == kInTeam) release_team(fiber);
    }
    return moved;
}

void run_block() {
    for (unsigned i = 0; i < blockDim.x; ++i) {
        fibers[i].state = kReady;
        fibers[i].copies.assign(1, {});
        fibers[i].products.assign(1, {});
        fibers[i].begun = fibers[i].shown = false;
        fibers[i].count = 0;
    }
    const auto all = [](State state) {
        return std::all_of(fibers.begin(), fibers.begin() + blockDim.x,
                           [&](const Fiber& fiber) { return fiber.state == state; });
    };
    const unsigned warps = (blockDim.x + 31) / 32;
    while (!all(kDone)) {
        bool moved = false;
        for (unsigned turn = 0; turn < warps; ++turn) {
            const unsigned first = (otherwise ? warps - 1 - turn : turn) * 32, last = std::min(first + 32, blockDim.x);
            do moved |= run_warp(first, last);
            while (release_warp(first, last) && otherwise);
        }
        if (all(kAtBarrier))
            for (unsigned i = 0; i < blockDim.x; ++i) fibers[i].state = kReady;
        else if (!moved) fail("threads wait for others that do not come");
    }
}

}  // namespace

void run(dim3 blocks, dim3 threads, std::size_t shared, const std::function<void()>& what) {
    gridDim = blocks, blockDim = threads, kernel = &what, shared_of_launch = shared;
    if (fibers.size() < blockDim.x) fibers = std::vector<Fiber>(1024);
    if (shared > kMostShared) fail("too much shared memory");
    for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
                std::memset(cdn_shared, kPoison, shared);
                std::memset(cdn_shared + shared, kGuardByte, kGuard);
                run_block();
                for (std::size_t i = 0; i < kGuard; ++i)
                    if (cdn_shared[shared + i] != kGuardByte) fail("a write beyond the shared memory of the block");
            }
}

void wait_for_block() { wait(kAtBarrier); }

void wait_for_team(int barrier, int count) {
    if (barrier < 1 || barrier > 15 || count % 32) fail("a barrier that no GPU has");
    running->barrier = barrier, running->teammates = count;
    wait(kInTeam);
}

// A lane may be one deposit ahead of another, which has yet to read from the last.
Deposits::Deposits(const void* mine, std::size_t size) : slot(running->count++ % 2) {
    if (size > sizeof(running->deposits[slot])) fail("a deposit that is too large");
    std::memcpy(running->deposits[slot], mine, size);
    wait(kInWarp);
}

const void* Deposits::place(int lane) const { return fibers[threadIdx.x / 32 * 32 + lane].deposits[slot]; }

const unsigned char* row_in_shared_memory(std::uint32_t address) {
    if (address % 16 || address + 16 > shared_of_launch) fail("a row of a matrix that is not in shared memory");
    return cdn_shared + address;
}

const unsigned char* row_of_matrix(std::uint64_t matrix, int row, int vector) {
    constexpr std::uint64_t kAddress = 0x3fff, kLeadingBytes = kAddress << 16;  // which nothing depends on
    if ((matrix & ~(kAddress | kLeadingBytes)) != (std::uint64_t{1} << 62 | std::uint64_t{64} << 32))
        fail("a matrix that is not described as one of rows of 128 bytes");
    const auto address = static_cast<std::uint32_t>((matrix & kAddress) * 16) + row * 128 + vector * 16;
    return row_in_shared_memory(address ^ address / 128 % 8 * 16);
}

bool has_groups() { return shared_of_block >= 227 << 10; }

void start_product(std::function<void()> product) {
    if (!running->begun || !running->shown) fail("a product before what has to come first");
    if (otherwise) product();
    else running->products.back().push_back(std::move(product));
}

void begin_products() { running->begun = true; }
void end_products() {
    running->begun = false;
    running->products.emplace_back();
}
void wait_for_products(int sets) {
    auto& products = running->products;
    for (; products.size() > static_cast<std::size_t>(sets) + 1; products.pop_front())
        for (const auto& product : products.front()) product();
}
void show_to_products() { running->shown = true; }

}  // namespace emulation

void __pipeline_memcpy_async(void* to, const void* from, std::size_t size, std::size_t zeros) {
    const auto both = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
    if ((size != 4 && size != 8 && size != 16) || both % size || zeros > size)
        emulation::fail("a copy of a wrong size or alignment");
    const emulation::Copy copy{to, from, size, zeros};
    if (otherwise) copy.happen();
    else emulation::running->copies.back().push_back(copy);
}

void __pipeline_commit() { emulation::running->copies.emplace_back(); }

void __pipeline_wait_prior(int groups) {
    auto& copies = emulation::running->copies;
    for (; copies.size() > static_cast<std::size_t>(groups) + 1; copies.pop_front())
        for (const auto& copy : copies.front()) copy.happen();
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount ? multiprocessors : shared_of_block;
    return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid value" : "no error"; }

// The GPU that is imitated, and which of the two orders of events, for tests.
extern "C" __attribute__((visibility("default"))) void emulate(int shared, int count, int other_order) {
    shared_of_block = shared;
    multiprocessors = count;
    otherwise = other_order;
}

// How norm_plan.h cuts a pass on that GPU: 0 if it does not fit, 1 whole and kept, 2 whole and kept in part, 3 split.
// The numbers of the type are bytes of an element, elements of a vector and bytes of a computed number.
extern "C" __attribute__((visibility("default"))) int plan(int sweep, int element, int vector, int real,
                                                           std::int64_t batch, int channels, int pixels, int groups,
                                                           int coupled) {
    const cdn::NormPlace place{shared_of_block, multiprocessors, element, vector, real};
    const auto plan = cdn::plan_norm(cdn::kNormNeeds[sweep], place, batch, channels, pixels, groups, coupled);
    const auto& cut = plan.cut;
    if (!plan.threads) return 0;
    if (plan.shared > shared_of_block || cut.rows * cut.columns > plan.threads || cut.steps * cut.rows < cut.chunk
        || std::int64_t{cut.chunks} * cut.chunk < pixels || (cut.chunks - 1) * cut.chunk >= pixels
        || cut.tiles * cut.columns * vector < cut.bundle * cut.width || plan.bundles * cut.bundle < groups)
        emulation::fail("a plan that does not cover its sample");
    return !plan.whole() ? 3 : cut.kept < cut.steps ? 2 : 1;
}
