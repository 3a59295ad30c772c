// Runs margin.cu on a CPU: every thread of a block is a fiber, and a fiber runs until a barrier of its warp.
//
// Between two barriers the order of the threads is free on a GPU. Here it is drawn from a seed, so that a thread may
// read what another has not written yet unless a barrier stands between them. No two fibers run at once: a race of
// two writers within one stretch shows only in who comes last.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define LAUNCH(kernel, blocks, threads, stream) emulation::Launch{static_cast<unsigned>(blocks), threads}.of(kernel)

using cudaStream_t = void *;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;

namespace emulation {

struct Index { unsigned x; };
enum State { READY, WAITING, DONE };
struct Fiber {
    ucontext_t context;
    State state;
    std::unique_ptr<char[]> stack{new char[STACK]};
    static constexpr size_t STACK = 1 << 16;
};

inline Index thread, block;  // of the fiber that runs
inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline uint64_t slots[1024];
inline uint64_t seed = 1;
inline bool barriers = true;
inline cudaError_t error = cudaSuccess;
inline void (*body)(const void *);
inline const void *argument;

inline void enter() {
    body(argument);
    fibers[thread.x].state = DONE;
    swapcontext(&fibers[thread.x].context, &scheduler);
}

inline void wait() {
    fibers[thread.x].state = WAITING;
    swapcontext(&fibers[thread.x].context, &scheduler);
}

// Let the warp of ``last`` go on if each of its threads has come to the barrier or has ended.
inline void release(unsigned last) {
    const unsigned from = last / 32 * 32, to = from + 32 < fibers.size() ? from + 32 : fibers.size();
    for (unsigned at = from; at < to; ++at)
        if (fibers[at].state == READY) return;
    for (unsigned at = from; at < to; ++at)
        if (fibers[at].state == WAITING) fibers[at].state = READY;
}

inline void run_block(unsigned threads) {
    fibers.resize(threads);
    for (unsigned at = 0; at < threads; ++at) {
        getcontext(&fibers[at].context);
        fibers[at].context.uc_stack.ss_sp = fibers[at].stack.get();
        fibers[at].context.uc_stack.ss_size = Fiber::STACK;
        makecontext(&fibers[at].context, enter, 0);
        fibers[at].state = READY;
    }
    for (std::vector<unsigned> ready;;) {
        ready.clear();
        for (unsigned at = 0; at < threads; ++at)
            if (fibers[at].state == READY) ready.push_back(at);
        if (ready.empty()) break;
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const unsigned chosen = ready[(seed >> 33) % ready.size()];
        thread.x = chosen;
        swapcontext(&scheduler, &fibers[chosen].context);
        release(chosen);
    }
}

struct Launch {
    unsigned blocks, threads;
    template <typename Problem> auto of(void (*kernel)(const Problem)) {
        return [*this, kernel](const Problem &problem) {
            struct Call { void (*kernel)(const Problem); const Problem &problem; } call{kernel, problem};
            body = [](const void *given) {
                const Call &call = *static_cast<const Call *>(given);
                call.kernel(call.problem);
            };
            argument = &call;
            if (!blocks) error = 9;  // as CUDA: an empty grid is a mistake
            for (block.x = 0; block.x < blocks; ++block.x) run_block(threads);
        };
    }
};

}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return emulation::error; }

inline void __syncwarp() {
    if (emulation::barriers) emulation::wait();
}

template <typename Value> Value __shfl_xor_sync(unsigned, Value value, int distance) {
    std::memcpy(&emulation::slots[threadIdx.x], &value, sizeof value);
    emulation::wait();
    std::memcpy(&value, &emulation::slots[threadIdx.x ^ distance], sizeof value);
    emulation::wait();
    return value;
}

// The order of the threads, and whether __syncwarp is one: without, a test must notice.
extern "C" void emulate(uint64_t seed, int barriers) {
    emulation::seed = seed;
    emulation::barriers = barriers;
}
