/* What every file of the runtime starts from: clock, atomics, assertions.
 *
 * The runtime is a pool of threads, a poller and mailboxes.  It knows neither
 * Python nor Redis, so that it can be tested and sanitized alone.
 *
 * Times are absolute, in nanoseconds of CLOCK_MONOTONIC; RT_NEVER means that
 * nothing is due.  A wall clock that steps changes nothing here. */
#ifndef RT_BASE_H
#define RT_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RT_NEVER UINT64_MAX
#define RT_US UINT64_C(1000)
#define RT_MS UINT64_C(1000000)
#define RT_SEC UINT64_C(1000000000)
#define RT_CACHELINE 64

#define RT_CONTAINER_OF(ptr, type, member)                                    \
    ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

/* An invariant of ours is broken: going on could hand a reply to the wrong
 * caller, so the process stops instead. */
static inline void rt_bug(const char *what, const char *file, int line)
{
    fprintf(stderr, "offloop: broken invariant: %s (%s:%d)\n", what, file, line);
    abort();
}

#define RT_CHECK(expr) ((expr) ? (void)0 : rt_bug(#expr, __FILE__, __LINE__))
#if RT_DEBUG
#define RT_ASSERT(expr) RT_CHECK(expr)
#else
#define RT_ASSERT(expr) ((void)sizeof(!(expr)))
#endif

static inline uint64_t rt_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * RT_SEC + (uint64_t)ts.tv_nsec;
}

/* `from` plus `delay`, without wrapping; RT_NEVER stays RT_NEVER. */
static inline uint64_t rt_after(uint64_t from, uint64_t delay)
{
    return delay >= RT_NEVER - from ? RT_NEVER : from + delay;
}

/* Order everything before against everything after, in the one order that all
 * threads agree on.  ThreadSanitizer knows no fences, and a read-modify-write is one
 * to it. */
static inline void rt_fence(void)
{
#if RT_TSAN
    static _Atomic uint32_t word;

    atomic_fetch_add(&word, 1);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Lower *slot to value.  Returns true when it was lowered.
 * Order: seq_cst; the reader is rt_poller's recomputation of what is due. */
static inline bool rt_atomic_min(_Atomic uint64_t *slot, uint64_t value)
{
    uint64_t seen = atomic_load_explicit(slot, memory_order_relaxed);

    while (value < seen) {
        if (atomic_compare_exchange_weak(slot, &seen, value))
            return true;
    }
    return false;
}

/* Raise *slot to value.  A statistic: relaxed. */
static inline void rt_atomic_max(_Atomic uint64_t *slot, uint64_t value)
{
    uint64_t seen = atomic_load_explicit(slot, memory_order_relaxed);

    while (value > seen &&
           !atomic_compare_exchange_weak_explicit(slot, &seen, value,
                                                  memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

/* Count on a slot that several threads may count on.  A statistic: relaxed. */
static inline void rt_count(_Atomic uint64_t *slot, uint64_t n)
{
    atomic_fetch_add_explicit(slot, n, memory_order_relaxed);
}

/* Count on a slot that only this thread writes: no locked instruction. */
static inline void rt_count_own(_Atomic uint64_t *slot, uint64_t n)
{
    uint64_t seen = atomic_load_explicit(slot, memory_order_relaxed);

    atomic_store_explicit(slot, seen + n, memory_order_relaxed);
}

static inline uint64_t rt_read(const _Atomic uint64_t *slot)
{
    return atomic_load_explicit(slot, memory_order_relaxed);
}

#endif
