// Working memory that outlives a call: one growing buffer per thread and use, freed with the thread.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace {

class Scratch {
   public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory_); }

    // Uninitialised room for `count` values, aligned to a cache line. Invalidates what this buffer held before.
    template <typename T>
    T* get(size_t count) {
        const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
        if (bytes > capacity_) {
            free(memory_);
            memory_ = aligned_alloc(64, bytes);
            capacity_ = memory_ ? bytes : 0;
            if (!memory_) {  // inside a parallel region nothing can be thrown
                fprintf(stderr, "convpool: out of memory (%zu bytes of working memory)\n", bytes);
                abort();
            }
        }
        return static_cast<T*>(memory_);
    }

   private:
    void* memory_ = nullptr;
    size_t capacity_ = 0;
};

}  // namespace
