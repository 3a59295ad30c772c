// The explicit-negative margin loss on a CPU: row.h with one lane, rows dealt to threads.
#include "row.h"

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace margin {

struct OneLane {
    static constexpr int count = 1, each = 64;
    static constexpr int lane() { return 0; }
    template <typename Wide> static Wide sum(Wide value) { return value; }
    static void meet() {}
};

// Call work(number) for every number below ``count``. Which thread takes which does not show in the results.
template <typename Work> void deal(int64_t count, int64_t threads, Work work) {
    constexpr int64_t TAKEN = 16;
    std::atomic<int64_t> next{0};
    const auto take = [&] {
        for (int64_t from; (from = next.fetch_add(TAKEN)) < count;)
            for (int64_t number = from; number < count && number < from + TAKEN; ++number) work(number);
    };
    std::vector<std::thread> others;
    try {
        for (int64_t thread = 1; thread < threads && thread * TAKEN < count; ++thread) others.emplace_back(take);
    } catch (const std::system_error &) {  // no more threads to be had: those that run take all
    }
    take();
    for (auto &other : others) other.join();
}

template <typename Element> void run(const Rows &problem) {
    deal(problem.rows, problem.threads, [&](int64_t row) { fill_row<OneLane, Element>(problem, row); });
}

// A gradient of many vectors is new memory that is written once: most of its time went into faults of small pages.
void prefer_large_pages(void *memory, int64_t bytes) {
#ifdef __linux__
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t from = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t to = (reinterpret_cast<uintptr_t>(memory) + bytes) / PAGE * PAGE;
    if (from < to) madvise(reinterpret_cast<void *>(from), to - from, MADV_HUGEPAGE);  // advice: may fail
#endif
}

template <typename Element> void run(const Vectors &problem) {
    prefer_large_pages(problem.of_vectors, problem.count * problem.width * sizeof(Element));
    deal(problem.count, problem.threads, [&](int64_t vector) { fill_vector<OneLane, Element>(problem, vector); });
}

// Returns 0, or 1 where the compiler knows no 16-bit IEEE floats.
template <typename Problem> int run(const Problem &problem, int64_t dtype) {
    if (dtype == FLOAT32) return run<float>(problem), 0;
    if (dtype == BFLOAT16) return run<Bfloat16>(problem), 0;
    if (dtype == FLOAT64) return run<double>(problem), 0;
#ifdef __FLT16_MAX__
    if (dtype == FLOAT16) return run<Half>(problem), 0;
#endif
    return 1;
}

}  // namespace margin

extern "C" int calque_margin_rows(const margin::Rows *problem, int64_t dtype, int, void *) {
    return margin::run(*problem, dtype);
}

extern "C" int calque_margin_vectors(const margin::Vectors *problem, int64_t dtype, int, void *) {
    return margin::run(*problem, dtype);
}

// Fill places and starts (row.h) from the negatives by a counting sort.
extern "C" void calque_margin_places(
    const int64_t *negatives, int64_t negatives_count, int64_t count, int64_t *places, int64_t *starts) {
    for (int64_t vector = 0; vector <= count; ++vector) starts[vector] = 0;
    for (int64_t place = 0; place < negatives_count; ++place)
        if (negatives[place] >= 0) ++starts[negatives[place] + 1];
    for (int64_t vector = 0; vector < count; ++vector) starts[vector + 1] += starts[vector];
    // starts[v] walks to the start of v + 1 while v's places are written, and is set back afterwards.
    for (int64_t place = 0; place < negatives_count; ++place)
        if (negatives[place] >= 0) places[starts[negatives[place]]++] = place;
    for (int64_t vector = count; vector > 0; --vector) starts[vector] = starts[vector - 1];
    starts[0] = 0;
}
