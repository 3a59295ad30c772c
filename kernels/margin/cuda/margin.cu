// The explicit-negative margin loss on a GPU: a warp for every row, then a warp for every vector (see row.h).
// Free of torch: raw pointers and a stream come in, an error number of the CUDA runtime goes out.
#include "row.h"

#ifndef LAUNCH  // a test replaces it, to run this file on a CPU
#define LAUNCH(kernel, blocks, threads, stream) kernel<<<blocks, threads, 0, stream>>>
#endif

namespace margin {

constexpr int WARP = 32, WARPS = 4;  // rows or vectors of a block

struct WarpLanes {
    static constexpr int count = WARP, each = 8;
    static __device__ int lane() { return threadIdx.x % WARP; }
    template <typename Wide> static __device__ Wide sum(Wide value) {
        for (int half = WARP / 2; half > 0; half /= 2) value += __shfl_xor_sync(0xffffffffu, value, half);
        return value;
    }
    static __device__ void meet() { __syncwarp(); }
};

template <typename Element> __global__ void __launch_bounds__(WARP * WARPS) rows_kernel(const Rows problem) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (row < problem.rows) fill_row<WarpLanes, Element>(problem, row);
}

template <typename Element> __global__ void __launch_bounds__(WARP * WARPS) vectors_kernel(const Vectors problem) {
    const int64_t vector = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (vector < problem.count) fill_vector<WarpLanes, Element>(problem, vector);
}

template <typename Element> void launch(const Rows &problem, cudaStream_t stream) {
    LAUNCH(rows_kernel<Element>, (problem.rows + WARPS - 1) / WARPS, WARP * WARPS, stream)(problem);
}

template <typename Element> void launch(const Vectors &problem, cudaStream_t stream) {
    LAUNCH(vectors_kernel<Element>, (problem.count + WARPS - 1) / WARPS, WARP * WARPS, stream)(problem);
}

// At least one row or vector; ``device`` is the one that the pointers belong to.
template <typename Problem> int launch(const Problem &problem, int64_t dtype, int device, void *stream) {
    const cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess) return static_cast<int>(error);
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    if (dtype == FLOAT32) launch<float>(problem, on);
    if (dtype == BFLOAT16) launch<Bfloat16>(problem, on);
    if (dtype == FLOAT16) launch<Half>(problem, on);
    if (dtype == FLOAT64) launch<double>(problem, on);
    return static_cast<int>(cudaGetLastError());
}

}  // namespace margin

extern "C" int calque_margin_rows(const margin::Rows *problem, int64_t dtype, int device, void *stream) {
    return margin::launch(*problem, dtype, device, stream);
}

extern "C" int calque_margin_vectors(const margin::Vectors *problem, int64_t dtype, int device, void *stream) {
    return margin::launch(*problem, dtype, device, stream);
}
