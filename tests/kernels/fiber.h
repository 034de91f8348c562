// Fibers: functions with a stack of their own that run in turns on one CPU thread.
//
// AddressSanitizer and ThreadSanitizer are told of every switch. To ThreadSanitizer each fiber is
// a thread, and a switch orders nothing: two fibers race unless acquire() and release() order them.
#ifndef RIB_TESTS_FIBER_H
#define RIB_TESTS_FIBER_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

// Marks what belongs to the emulation: its reads and writes are not those of the kernel.
#define SIMT_UNWATCHED __attribute__((no_sanitize("thread")))

namespace simt {

// What a fiber does before release(token) happens before what another does after acquire(token).
inline void release([[maybe_unused]] void* token) {
#ifdef __SANITIZE_THREAD__
    __tsan_release(token);
#endif
}

inline void acquire([[maybe_unused]] void* token) {
#ifdef __SANITIZE_THREAD__
    __tsan_acquire(token);
#endif
}

class Fiber {
   public:
    SIMT_UNWATCHED explicit Fiber(void (*body)()) : body_(body) {
        // Mapped, for the sake of a page below the stack that ends the program if it overflows.
        mapping_ = static_cast<char*>(mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (mapping_ == MAP_FAILED || mprotect(mapping_, kGuard, PROT_NONE) != 0) {
            perror("simt: no memory for the stack of a fiber");
            abort();
        }
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack();
        context_.uc_stack.ss_size = kStack;
        context_.uc_link = nullptr;
        makecontext(&context_, &Fiber::main, 0);
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(stack(), kStack);  // of a fiber that lay here before
#endif
#ifdef __SANITIZE_THREAD__
        thread_ = __tsan_create_fiber(0);
#endif
    }

    SIMT_UNWATCHED ~Fiber() {
#ifdef __SANITIZE_THREAD__
        __tsan_destroy_fiber(thread_);
#endif
        munmap(mapping_, kGuard + kStack);
    }

    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    bool finished() const { return finished_; }

    // Runs the fiber until it pauses or its body returns.
    SIMT_UNWATCHED void resume() {
        running_ = this;
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_start_switch_fiber(&caller_.fake_stack, stack(), kStack);
#endif
#ifdef __SANITIZE_THREAD__
        caller_.thread = __tsan_get_current_fiber();
        __tsan_switch_to_fiber(thread_, kOrdersNothing);
#endif
        swapcontext(&caller_.context, &context_);
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_finish_switch_fiber(caller_.fake_stack, nullptr, nullptr);
#endif
    }

    // Called in a fiber: returns to whoever resumed it, and returns here at the next resume().
    SIMT_UNWATCHED static void pause() { running_->leave(); }

   private:
    static constexpr size_t kStack = 128 * 1024, kGuard = 4096;
    static constexpr unsigned kOrdersNothing = 1;

    // The context that resume() was called in; there is only one at a time.
    struct Caller {
        ucontext_t context;
        const void* stack;
        size_t size;
        void *fake_stack, *thread;
    };

    char* stack() const { return mapping_ + kGuard; }

    SIMT_UNWATCHED static void main() {
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_finish_switch_fiber(nullptr, &caller_.stack, &caller_.size);
#endif
        running_->body_();
        running_->finished_ = true;
        running_->leave();
    }

    SIMT_UNWATCHED void leave() {
#ifdef __SANITIZE_ADDRESS__
        // A null pointer: the fiber does not come back, its fake stack can go.
        __sanitizer_start_switch_fiber(finished_ ? nullptr : &fake_stack_, caller_.stack,
                                       caller_.size);
#endif
#ifdef __SANITIZE_THREAD__
        __tsan_switch_to_fiber(caller_.thread, kOrdersNothing);
#endif
        swapcontext(&context_, &caller_.context);
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
    }

    inline static Caller caller_;
    inline static Fiber* running_ = nullptr;

    void (*body_)();
    char* mapping_;
    ucontext_t context_;
    bool finished_ = false;
    [[maybe_unused]] void *fake_stack_ = nullptr, *thread_ = nullptr;
};

}  // namespace simt
#endif
