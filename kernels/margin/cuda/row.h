// The explicit-negative margin loss of one row, and the gradient of one vector: one body for every machine.
//
// Row i, its K negatives n_k = vectors[negatives[i, k]] (absent where the number is below 0), f the form:
//
//     Ds_k = <a, p> - <a, n_k>      D'_k = clip(scale Dt_k + offset)      row = mean over present k of f(D'_k - Ds_k)
//     s_k  = w f'(Ds_k) / present   da = (sum_k s_k) p - sum_k s_k n_k    dp = (sum_k s_k) a
//     dv   = - sum over the places (i, k) where v is the negative of s_ik a_i
//
// The lanes that work on a row together are a policy: 32 threads of a warp on a GPU (margin.cu), one thread of the
// CPU (margin.cpp). A block of columns is Lanes::count * Lanes::each wide and lane l holds columns l, l + count, ...
// in an array of its own, so that a sum has a fixed order on every machine and a compiler may keep the array in
// vector registers without being allowed to reassociate: strict IEEE arithmetic, a NaN stays a NaN. Places (i, k)
// of a vector are visited in ascending order by the lanes of that vector alone: no atomics, the same bits each time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define BOTH __host__ __device__
#else
#define BOTH
#endif

namespace margin {

enum Kind : int64_t { HINGE, SQUARED_HINGE, SOFTPLUS, FIXED, MSE };
enum Dtype : int64_t { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 };

// Both are mirrored field by field in library.py. "Wide" is double for double vectors, float for all others.
struct Rows {
    const void *anchors, *positives, *vectors;              // (rows, width) twice, (any, width)
    int64_t anchor_stride, positive_stride, vector_stride;  // elements from one row to the next
    int64_t rows, most, width;                              // Q, K, E
    const int64_t *negatives;                               // (rows, most)
    const void *teacher_gaps, *weights;                     // Wide (rows, most), (rows,)
    int64_t kind;
    double scale, offset, minimum, maximum, tau;            // of the form; -inf and inf where it has no limit
    void *losses;                                           // Wide (rows,)
    uint8_t *correct;                                       // (rows,)
    double *sums;                                           // (rows, 6), the columns of GapSums
    void *slopes;                                           // Wide (rows, most): s, 0 where absent
    void *of_anchors, *of_positives;                        // gradients (rows, width), as the vectors are
    int64_t wanted;                                         // whether slopes and gradients are
    int64_t threads;                                        // of the CPU
};

struct Vectors {
    const void *anchors;
    int64_t anchor_stride;
    int64_t most, width, count;    // K, E, N
    const void *slopes;            // Wide (rows, most)
    void *of_vectors;              // (count, width), as the anchors are
    const int64_t *places;         // i * K + k of every vector in ascending order, end to end
    const int64_t *starts;         // (count + 1,) where those of each vector begin
    int64_t threads;
};

struct Bfloat16 { uint16_t bits; };
#ifdef __CUDACC__
struct Half { __half value; };
#elif defined(__FLT16_MAX__)
struct Half { _Float16 value; };
#endif

template <typename Element> struct WideOf { using type = float; };
template <> struct WideOf<double> { using type = double; };

BOTH inline float widen(float value) { return value; }
BOTH inline double widen(double value) { return value; }
BOTH inline float widen(Bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}
BOTH inline void narrow(float value, float &to) { to = value; }
BOTH inline void narrow(double value, double &to) { to = value; }
BOTH inline void narrow(float value, Bfloat16 &to) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = static_cast<uint16_t>(value == value ? nearest_even : 0x7fc0);
}
#ifdef __CUDACC__
BOTH inline float widen(Half value) { return __half2float(value.value); }
BOTH inline void narrow(float value, Half &to) { to.value = __float2half_rn(value); }
#elif defined(__FLT16_MAX__)
inline float widen(Half value) { return static_cast<float>(value.value); }
inline void narrow(float value, Half &to) { to.value = static_cast<_Float16>(value); }
#endif

// Comparisons are written so that a NaN falls through them.
template <typename Wide> BOTH inline Wide target_of(const Rows &problem, Wide teacher_gap) {
    if (problem.kind == FIXED) return static_cast<Wide>(problem.offset);
    Wide target = static_cast<Wide>(problem.scale) * teacher_gap + static_cast<Wide>(problem.offset);
    target = target < static_cast<Wide>(problem.minimum) ? static_cast<Wide>(problem.minimum) : target;
    return target > static_cast<Wide>(problem.maximum) ? static_cast<Wide>(problem.maximum) : target;
}

// f and df / dDs of what is missing, D' - Ds.
template <typename Wide>
BOTH inline void evaluate(const Rows &problem, Wide missing, Wide &loss, Wide &slope) {
    const Wide short_of = missing < 0 ? 0 : missing;
    if (problem.kind == MSE) {
        loss = missing * missing;
        slope = -2 * missing;
    } else if (problem.kind == SOFTPLUS) {
        const Wide tau = static_cast<Wide>(problem.tau), x = missing / tau;
        const Wide below = exp(x < 0 ? x : -x);  // exp(-|x|)
        loss = tau * ((x < 0 ? 0 : x) + log1p(below));
        slope = -(x < 0 ? below : 1) / (1 + below);
    } else if (problem.kind == SQUARED_HINGE) {
        loss = short_of * short_of;
        slope = -2 * short_of;
    } else {
        loss = short_of;
        slope = missing > 0 ? -1 : 0;
    }
}

// held[j] += factor * row[j] for a block of columns of which ``left`` exist.
template <typename Lanes, typename Element, typename Wide>
BOTH inline void add_scaled(Wide *held, Wide factor, const Element *row, int64_t left) {
    if (left >= Lanes::count * Lanes::each) {
        for (int j = 0; j < Lanes::each; ++j) held[j] += factor * widen(row[j * Lanes::count + Lanes::lane()]);
    } else {
        for (int j = 0; j < Lanes::each; ++j) {
            const int64_t column = j * Lanes::count + Lanes::lane();
            if (column < left) held[j] += factor * widen(row[column]);
        }
    }
}

// <first, second>, the same on every lane.
template <typename Lanes, typename Element>
BOTH inline typename WideOf<Element>::type dot(const Element *first, const Element *second, int64_t width) {
    using Wide = typename WideOf<Element>::type;
    Wide held[Lanes::each] = {};
    int64_t from = 0;
    for (; from + Lanes::count * Lanes::each <= width; from += Lanes::count * Lanes::each) {
        for (int j = 0; j < Lanes::each; ++j) {
            const int64_t column = from + j * Lanes::count + Lanes::lane();
            held[j] += widen(first[column]) * widen(second[column]);
        }
    }
    for (int j = 0; j < Lanes::each; ++j) {
        const int64_t column = from + j * Lanes::count + Lanes::lane();
        if (column < width) held[j] += widen(first[column]) * widen(second[column]);
    }
    for (int half = Lanes::each / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j) held[j] += held[j + half];
    return Lanes::sum(held[0]);
}

template <typename Lanes, typename Element> BOTH inline void fill_row(const Rows &problem, int64_t row) {
    using Wide = typename WideOf<Element>::type;
    const Element *anchor = static_cast<const Element *>(problem.anchors) + row * problem.anchor_stride;
    const Element *positive = static_cast<const Element *>(problem.positives) + row * problem.positive_stride;
    const Element *vectors = static_cast<const Element *>(problem.vectors);
    const int64_t *negatives = problem.negatives + row * problem.most;
    const Wide *teacher_gaps = static_cast<const Wide *>(problem.teacher_gaps) + row * problem.most;
    Wide *slopes = static_cast<Wide *>(problem.slopes) + row * problem.most;

    int64_t present = 0;
    for (int64_t k = 0; k < problem.most; ++k) present += negatives[k] >= 0;
    const Wide share = static_cast<const Wide *>(problem.weights)[row] / (present ? present : 1);
    const Wide of_positive = dot<Lanes>(anchor, positive, problem.width);
    Wide losses = 0, pull = 0, active = 0, student = 0, student_squares = 0, teacher = 0, teacher_squares = 0;
    bool correct = true;
    for (int64_t k = 0; k < problem.most; ++k) {
        Wide slope = 0;
        if (negatives[k] >= 0) {
            const Element *negative = vectors + negatives[k] * problem.vector_stride;
            const Wide gap = of_positive - dot<Lanes>(anchor, negative, problem.width);
            const Wide missing = target_of(problem, teacher_gaps[k]) - gap;
            Wide loss;
            evaluate(problem, missing, loss, slope);
            slope *= share;
            losses += loss;
            pull += slope;
            correct = correct && !(gap < 0);
            active += missing > 0 ? 1 : 0;
            student += gap;
            student_squares += gap * gap;
            teacher += teacher_gaps[k];
            teacher_squares += teacher_gaps[k] * teacher_gaps[k];
        }
        if (problem.wanted && Lanes::lane() == 0) slopes[k] = slope;
    }
    if (Lanes::lane() == 0) {
        static_cast<Wide *>(problem.losses)[row] = losses / (present ? present : 1);
        problem.correct[row] = correct;
        double *sums = problem.sums + row * 6;
        sums[0] = static_cast<double>(present);
        sums[1] = active;
        sums[2] = student;
        sums[3] = student_squares;
        sums[4] = teacher;
        sums[5] = teacher_squares;
    }
    if (!problem.wanted) return;
    Lanes::meet();  // lane 0 wrote the slopes that all now read
    Element *of_anchor = static_cast<Element *>(problem.of_anchors) + row * problem.width;
    Element *of_positive_vector = static_cast<Element *>(problem.of_positives) + row * problem.width;
    for (int64_t from = 0; from < problem.width; from += Lanes::count * Lanes::each) {
        Wide held[Lanes::each] = {};
        for (int64_t k = 0; k < problem.most; ++k) {
            if (negatives[k] < 0) continue;
            const Element *negative = vectors + negatives[k] * problem.vector_stride;
            add_scaled<Lanes>(held, slopes[k], negative + from, problem.width - from);
        }
        for (int j = 0; j < Lanes::each; ++j) {
            const int64_t column = from + j * Lanes::count + Lanes::lane();
            if (column >= problem.width) continue;
            narrow(pull * widen(positive[column]) - held[j], of_anchor[column]);
            narrow(pull * widen(anchor[column]), of_positive_vector[column]);
        }
    }
}

// Row ``vector`` of the gradient of the vectors.
template <typename Lanes, typename Element>
BOTH inline void fill_vector(const Vectors &problem, int64_t vector) {
    using Wide = typename WideOf<Element>::type;
    const Element *anchors = static_cast<const Element *>(problem.anchors);
    const Wide *slopes = static_cast<const Wide *>(problem.slopes);
    Element *result = static_cast<Element *>(problem.of_vectors) + vector * problem.width;
    for (int64_t from = 0; from < problem.width; from += Lanes::count * Lanes::each) {
        Wide held[Lanes::each] = {};
        for (int64_t at = problem.starts[vector]; at < problem.starts[vector + 1]; ++at) {
            const int64_t place = problem.places[at];
            const Element *anchor = anchors + place / problem.most * problem.anchor_stride;
            add_scaled<Lanes>(held, -slopes[place], anchor + from, problem.width - from);
        }
        for (int j = 0; j < Lanes::each; ++j) {
            const int64_t column = from + j * Lanes::count + Lanes::lane();
            if (column < problem.width) narrow(held[j], result[column]);
        }
    }
}

}  // namespace margin
