// The C interface of a library: its functions hold no state, and read sizes and strides from Problem.
#pragma once

#include "backward.h"
#include "backward_few.h"
#include "forward_direct.h"
#include "forward_images.h"
#include "forward_winograd.h"
#include "patch_moments.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int64_t convpool_problem_size() { return sizeof(Problem); }  // so that a stale library is noticed

EXPORT int64_t convpool_lanes() { return L; }

// The kernel's name, or nothing where there is no such kernel.
EXPORT const char* convpool_kernel_name(int64_t kernel) {
#define QUOTED(name) #name,
    constexpr const char* NAMES[] = {EACH_KERNEL(QUOTED)};
#undef QUOTED
    return kernel < (int64_t)Kernel::count ? NAMES[kernel] : nullptr;
}

// These return which kernel ran.

EXPORT int64_t convpool_forward(const Problem* p, const float* x, const float* w, const float* bias, float* y, uint8_t* code) {
    const auto forward = p->chosen == Kernel::forward_winograd ? forward_winograd
                         : p->chosen == Kernel::forward_images ? forward_images
                                                               : forward_direct;
    return (int64_t)forward(*p, x, w, bias, y, code);
}

// y and code from torch's conv output z, bias included, channels innermost.
EXPORT int64_t convpool_pool(const Problem* p, const float* z, float* y, uint8_t* code) { return (int64_t)pool(*p, z, y, code); }

// Or -1, and nothing to be used, where a code is neither DEAD nor names a conv output.
EXPORT int64_t convpool_backward(const Problem* p, const float* x, const float* w, const float* dy, const uint8_t* code, float* dx,
                                 float* dw, float* db) {
    const auto ran = p->chosen == Kernel::backward_few ? backward_few(*p, x, dy, code, dw, db)
                                                       : backward(*p, x, w, dy, code, dx, dw, db);
    return ran ? (int64_t)*ran : -1;
}

// Of the patches of x, whether a pool window looks at their position or not.
EXPORT int64_t convpool_patch_moments(const Problem* p, const float* x, double* mean, double* scatter) {
    return (int64_t)patch_moments(*p, x, mean, scatter);
}
