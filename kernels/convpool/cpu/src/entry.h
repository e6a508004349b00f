// The C interface of a library: its functions hold no state, and read sizes and strides from Problem.
#pragma once

#include "backward.h"
#include "backward_few.h"
#include "forward_direct.h"
#include "forward_images.h"
#include "forward_winograd.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int64_t convpool_problem_size() { return sizeof(Problem); }  // so that a stale library is noticed

EXPORT void convpool_forward(const Problem* given, const float* x, const float* w, const float* bias, float* y, uint8_t* code) {
    const Problem p = with_busy_threads(*given, WINOGRAD_WINDOWS);
    const auto direct = lanes_are_images(p) ? forward_images : forward_direct;
    (p.winograd ? forward_winograd : direct)(p, x, w, bias, y, code);
}

// y and code from torch's conv output z, bias included, channels innermost.
EXPORT void convpool_pool(const Problem* p, const float* z, float* y, uint8_t* code) { pool(*p, z, y, code); }

// Returns 1; or 0, and nothing to be used, where a code is neither DEAD nor names a conv output.
EXPORT int convpool_backward(const Problem* p, const float* x, const float* w, const float* dy, const uint8_t* code, float* dx,
                             float* dw, float* db) {
    if (dw && !dx && few_products(*p)) return backward_few(*p, x, dy, code, dw, db);
    return backward(*p, x, w, dy, code, dx, dw, db);
}
