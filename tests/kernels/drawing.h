// Random inputs for the kernels, and memory that shows where a kernel wrote.
#ifndef RIB_TESTS_DRAWING_H
#define RIB_TESTS_DRAWING_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

// The same numbers on every machine, which the standard distributions do not promise.
class Draw {
   public:
    explicit Draw(uint64_t seed) : engine_(seed) {}

    int64_t below(int64_t end) {
        return static_cast<int64_t>(engine_() % static_cast<uint64_t>(end));
    }
    bool once_in(int64_t count) { return below(count) == 0; }
    float between(float low, float high) {
        return low + (high - low) * static_cast<float>(below(1 << 24)) / (1 << 24);
    }
    template <typename T>
    T one_of(std::initializer_list<T> items) {
        return items.begin()[below(static_cast<int64_t>(items.size()))];
    }

   private:
    std::mt19937_64 engine_;
};

// A matrix with a pitch. It ends with its last element, not with a last row's padding, and may
// begin `shift` elements after an aligned address.
template <typename T>
class Matrix {
   public:
    Matrix(int64_t rows, int64_t columns, int64_t pitch, int64_t shift = 0)
        : rows_(rows), columns_(columns), pitch_(pitch), shift_(shift), memory_(new_memory()) {
        memset(memory_.get(), kUntouched, bytes());
    }
    Matrix(const Matrix& other) : Matrix(other.rows_, other.columns_, other.pitch_, other.shift_) {
        memcpy(memory_.get(), other.memory_.get(), bytes());
    }

    T* data() { return memory_.get() + shift_; }
    T& operator()(int64_t row, int64_t column) { return data()[row * pitch_ + column]; }
    int64_t rows() const { return rows_; }
    int64_t columns() const { return columns_; }
    int64_t pitch() const { return pitch_; }

    bool same_bytes(const Matrix& other) const {
        return bytes() == other.bytes() && !memcmp(memory_.get(), other.memory_.get(), bytes());
    }

    // Nobody has written before the first row or between the rows.
    bool padding_is_untouched() {
        Matrix copy(*this);
        for (int64_t row = 0; row < rows_; ++row)
            memset(&copy(row, 0), kUntouched, static_cast<size_t>(columns_) * sizeof(T));
        return copy.same_bytes(Matrix(rows_, columns_, pitch_, shift_));
    }

   private:
    static constexpr int kUntouched = 0xff;  // NaN
    struct Free {
        void operator()(T* memory) const { free(memory); }
    };

    size_t bytes() const {
        return static_cast<size_t>(shift_ + (rows_ - 1) * pitch_ + columns_) * sizeof(T);
    }
    // malloc: AddressSanitizer finds the first byte past the end, and it begins aligned to 16.
    T* new_memory() const { return static_cast<T*>(malloc(bytes())); }

    int64_t rows_, columns_, pitch_, shift_;
    std::unique_ptr<T, Free> memory_;
};

#endif
