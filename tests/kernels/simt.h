// Blocks of CUDA threads on the CPU, to test kernels where there is no GPU.
//
// Every CUDA thread is a fiber. The blocks of a grid run one after another; the threads of a block
// take turns, each running to its next barrier or shuffle, in an order drawn anew every round.
// What a test can see with it:
// - results that depend on the order of threads or of blocks: with several seeds;
// - races in shared and global memory, whatever the order: with ThreadSanitizer, since only
//   __syncthreads orders memory here, and nothing orders the blocks of a grid;
// - overruns: with AddressSanitizer, since shared memory is allocated at its exact size;
// - shared memory that is read before it is written: it is filled with NaN;
// - barriers and shuffles that not all threads reach: reported, where a GPU would hang.
// It knows nothing of weak memory, of the rounding of intrinsics and of speed. Grids and blocks are
// one-dimensional, and all lanes of a warp take part in its shuffles.
#ifndef RIB_TESTS_SIMT_H
#define RIB_TESTS_SIMT_H

#include <stdint.h>
#include <string.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"

namespace simt {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;

struct Index {
    unsigned x;
};

// What the kernel reads as threadIdx and so on.
inline Index thread_index, block_index, block_size, grid_size;

// Of the order in which threads and blocks run; 0: that of their numbers.
inline uint64_t order_seed = 0;

// Numbers below `end`, the same on every machine: std::shuffle is free to differ.
class Random {
   public:
    explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

    unsigned below(unsigned end) {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<unsigned>((state_ >> 11) % end);
    }

    void shuffle(std::vector<unsigned>& items) {
        for (unsigned i = static_cast<unsigned>(items.size()); i > 1; --i)
            std::swap(items[i - 1], items[below(i)]);
    }

   private:
    uint64_t state_;
};

inline std::vector<unsigned> numbers(unsigned count) {
    std::vector<unsigned> result(count);
    for (unsigned i = 0; i < count; ++i) result[i] = i;
    return result;
}

class Block;
inline Block* running_block = nullptr;

// One block: its threads, its shared memory and where each thread waits.
class Block {
   public:
    Block(unsigned number, unsigned threads, size_t shared_bytes, const std::function<void()>& body)
        : number_(number), body_(body), threads_(threads), warps_((threads + kWarp - 1) / kWarp) {
        shared_.reset(static_cast<unsigned char*>(malloc(shared_bytes)));
        memset(shared_.get(), 0xff, shared_bytes);
    }

    void* shared() const { return shared_.get(); }

    SIMT_UNWATCHED void run(Random& random) {
        running_block = this;
        block_index.x = number_;
        for (Thread& thread : threads_) thread.fiber = std::make_unique<Fiber>(&Block::thread_main);
        std::vector<unsigned> turns = numbers(static_cast<unsigned>(threads_.size()));
        release(&started_);
        for (size_t finished = 0; finished < threads_.size();) {
            bool progress = false;
            if (order_seed) random.shuffle(turns);
            for (unsigned turn : turns) {
                if (!ready(turn)) continue;
                progress = true;
                current_ = turn;
                thread_index.x = turn;
                threads_[turn].waits = Thread::kNowhere;
                threads_[turn].fiber->resume();
                finished += threads_[turn].fiber->finished();
            }
            if (!progress) die("deadlock: a barrier or shuffle that not all its threads reach");
        }
    }

    // Orders what the block did before what the caller does next. Until then the block stays whole,
    // since ThreadSanitizer takes fibers and memory that are used again as ordered or as the same.
    void finish() { acquire(&finished_); }

    SIMT_UNWATCHED void barrier() {
        // Two tokens in turn: a thread that arrives at the next barrier must not be taken as
        // ordered before those that have not yet left this one.
        char* const token = &barrier_tokens_[barriers_ % 2];
        release(token);
        Thread& thread = threads_[current_];
        thread.waits = Thread::kBarrier;
        thread.generation = barriers_;
        if (++at_barrier_ == threads_.size()) {
            at_barrier_ = 0;
            ++barriers_;
        }
        Fiber::pause();
        acquire(token);
    }

    // All lanes of a warp bring a value and read that of the lane whose number differs by `bits`.
    SIMT_UNWATCHED uint64_t exchange(uint64_t value, unsigned bits) {
        const unsigned lane = current_ % kWarp;
        Warp& warp = warps_[current_ / kWarp];
        if (bits >= kWarp) die("a shuffle reads a lane that a warp does not have");
        if (warp.arrived && warp.bits != bits) die("lanes of a warp meet in different shuffles");
        warp.bits = bits;
        // Two buffers in turn: a lane may bring its next value before others have read this one.
        uint64_t* const values = warp.values[warp.shuffles % 2];
        values[lane] = value;
        Thread& thread = threads_[current_];
        thread.waits = Thread::kShuffle;
        thread.generation = warp.shuffles;
        if (++warp.arrived == kWarp) {
            warp.arrived = 0;
            ++warp.shuffles;
        }
        Fiber::pause();
        return values[lane ^ bits];
    }

    // Ends the program with a message that says where the threads of the block are.
    [[noreturn]] SIMT_UNWATCHED void die(const char* what) const {
        unsigned at[3] = {0, 0, 0}, finished = 0;
        for (const Thread& thread : threads_) {
            if (thread.fiber->finished())
                ++finished;
            else
                ++at[thread.waits];
        }
        fprintf(stderr,
                "simt: %s (block %u, thread %u: %u threads at __syncthreads, %u at a shuffle, "
                "%u returned, %u running)\n",
                what, number_, current_, at[Thread::kBarrier], at[Thread::kShuffle], finished,
                at[Thread::kNowhere]);
        abort();
    }

   private:
    struct Thread {
        enum Place { kNowhere, kBarrier, kShuffle };
        std::unique_ptr<Fiber> fiber;
        Place waits = kNowhere;
        unsigned generation = 0;  // of the barrier or shuffle that it waits for
    };
    struct Warp {
        uint64_t values[2][kWarp];
        unsigned arrived = 0, shuffles = 0, bits = 0;
    };
    struct Free {
        void operator()(unsigned char* memory) const { free(memory); }
    };

    SIMT_UNWATCHED static void thread_main() {
        Block& block = *running_block;
        acquire(&block.started_);
        block.body_();
        release(&block.finished_);
    }

    SIMT_UNWATCHED bool ready(unsigned number) const {
        const Thread& thread = threads_[number];
        if (thread.fiber->finished()) return false;
        if (thread.waits == Thread::kBarrier) return thread.generation != barriers_;
        if (thread.waits == Thread::kShuffle)
            return thread.generation != warps_[number / kWarp].shuffles;
        return true;
    }

    const unsigned number_;
    const std::function<void()>& body_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    std::unique_ptr<unsigned char, Free> shared_;
    unsigned current_ = 0, at_barrier_ = 0, barriers_ = 0;
    char started_ = 0, finished_ = 0, barrier_tokens_[2] = {0, 0};
};

// Runs a grid to its end.
inline void run_grid(unsigned blocks, unsigned threads, size_t shared_bytes,
                     const std::function<void()>& body) {
    Random random(order_seed);
    grid_size.x = blocks;
    block_size.x = threads;
    std::vector<unsigned> turns = numbers(blocks);
    if (order_seed) random.shuffle(turns);
    std::vector<std::unique_ptr<Block>> grid;  // all are kept: see Block::finish
    for (unsigned turn : turns) {
        grid.push_back(std::make_unique<Block>(turn, threads, shared_bytes, body));
        grid.back()->run(random);
    }
    for (auto& block : grid) block->finish();
}

}  // namespace simt
#endif
