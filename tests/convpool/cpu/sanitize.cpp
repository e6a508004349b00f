// Runs the kernels, compiled with sanitizers, on problems read from standard input: each line the integers of one Problem and,
// as the last one, the kernel for the gradients of a network's first layer.
// Every tensor is exactly as large as its sizes and strides ask for, so an access beyond any of them is reported.
#include "entry.h"

#include <cstdio>
#include <vector>

static size_t extent(const int64_t (&sizes)[4], const int64_t (&strides)[4]) {
    int64_t last = 0;
    for (int i = 0; i < 4; i++) last += (sizes[i] - 1) * strides[i];
    return (size_t)last + 1;
}

static std::vector<float> values(size_t count, unsigned seed) {
    std::vector<float> result(count);
    for (float& value : result) {
        seed = seed * 1664525u + 1013904223u;
        value = (int)(seed >> 24) % 5 - 2.f;  // small integers: every sum is exact, so thread counts can be compared
    }
    result.shrink_to_fit();
    return result;
}

static void require(bool same, const char* what) {
    if (same) return;
    fprintf(stderr, "%s depends on the thread count\n", what);
    exit(1);
}

int main() {
    Problem p;
    int64_t* fields = (int64_t*)&p;
    int problems = 0;
    while (scanf("%ld", fields) == 1) {
        for (size_t i = 1; i < sizeof(Problem) / sizeof(int64_t); i++)
            if (scanf("%ld", fields + i) != 1) return 2;
        int64_t first_layer;
        if (scanf("%ld", &first_layer) != 1) return 2;
        const int64_t channels = p.groups * p.out_channels;
        const int64_t x_size[4] = {p.batch, p.groups * p.in_channels, p.size[0], p.size[1]};
        const int64_t w_size[4] = {channels, p.in_channels, p.kernel[0], p.kernel[1]};
        const int64_t y_size[4] = {p.batch, channels, p.pooled_size[0], p.pooled_size[1]};
        const auto x = values(extent(x_size, p.x_stride), 1), w = values(extent(w_size, p.w_stride), 2);
        const auto bias = values((size_t)channels, 3), dy = values(extent(y_size, p.y_stride), 4);
        const auto z = values((size_t)(p.batch * p.conv_size[0] * p.conv_size[1] * channels), 5);
        const size_t patch = (size_t)p.reduction();
        std::vector<float> first;
        std::vector<double> first_moments;
        for (p.threads = 1; p.threads <= 2; p.threads++) {
            std::vector<float> y(dy.size()), dx(extent(x_size, p.dx_stride)), dw(extent(w_size, p.dw_stride)), db(bias.size());
            std::vector<uint8_t> code(dy.size());
            convpool_pool(&p, z.data(), y.data(), nullptr);
            convpool_pool(&p, z.data(), y.data(), code.data());
            convpool_forward(&p, x.data(), w.data(), nullptr, y.data(), nullptr);
            convpool_forward(&p, x.data(), w.data(), bias.data(), y.data(), code.data());
            Problem few = p, others = p;
            few.chosen = (Kernel)first_layer, others.chosen = Kernel::backward;
            convpool_backward(&few, x.data(), w.data(), dy.data(), code.data(), nullptr, dw.data(), db.data());
            convpool_backward(&few, x.data(), w.data(), dy.data(), code.data(), nullptr, dw.data(), nullptr);
            convpool_backward(&others, x.data(), w.data(), dy.data(), code.data(), nullptr, nullptr, db.data());
            convpool_backward(&others, nullptr, w.data(), dy.data(), code.data(), dx.data(), nullptr, nullptr);
            convpool_backward(&others, x.data(), w.data(), dy.data(), code.data(), dx.data(), dw.data(), db.data());
            std::vector<double> moments(p.groups * patch * (patch + 1));
            const bool few_values = patch <= 300;  // sanitized, more would take minutes
            if (few_values) convpool_patch_moments(&p, x.data(), moments.data(), moments.data() + p.groups * patch);
            if (first_moments.empty()) first_moments = moments;
            require(first_moments == moments, "a moment");
            std::vector<float> all(y);
            for (const auto* part : {&dx, &dw, &db}) all.insert(all.end(), part->begin(), part->end());
            if (first.empty()) first = all;
            require(first == all, "a result");
        }
        problems++;
    }
    printf("%d problems\n", problems);
}
