/* What the C programs here measure with: microseconds, and their order for qsort(). */
#ifndef OFFLOOP_BENCH_TIMING_H
#define OFFLOOP_BENCH_TIMING_H

#include <time.h>

static inline double now_us(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e6 + (double)at.tv_nsec / 1e3;
}

static inline int by_value(const void *left, const void *right)
{
    const double a = *(const double *)left;
    const double b = *(const double *)right;

    return (a > b) - (a < b);
}

#endif
