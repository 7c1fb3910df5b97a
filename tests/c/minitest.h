/* minitest: the few things a C test program needs.
 *
 * A test is one program with a plain main():
 *
 *     #include "minitest.h"
 *     int main(void)
 *     {
 *         uint64_t rnd = mt_seed();
 *         MT_CHECK(mt_rand(&rnd) != 0);
 *         MT_EQ(1 + 1, 2);
 *         return mt_report("arithmetic");
 *     }
 *
 * A failed check prints its place and goes on, so that one run shows every
 * failure; mt_report() turns the count into the exit status. A program that
 * checked nothing fails too. MT_REQUIRE ends the program at once, for what the
 * rest of the test stands on. Checks may be made from any thread.
 *
 * mt_seed() prints the seed, takes it from OFFLOOP_SEED where that is set, and
 * arms the time limit (OFFLOOP_TIME_LIMIT seconds, 120 by default): a hang is
 * reported by the program itself before the runner has to kill it.
 * MT_SCALE(n) shrinks a stress test's size where OFFLOOP_SCALE says so (per
 * cent), for slow builds. */
#ifndef MINITEST_H
#define MINITEST_H

#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_uint mt_checks;
static atomic_uint mt_failures;

/* Record one check; returns ok, so that a caller can leave early.
 * Thread: any.  Blocks: no. */
static inline int mt_check(int ok, const char *file, int line, const char *what)
{
    atomic_fetch_add_explicit(&mt_checks, 1, memory_order_relaxed);
    if (!ok) {
        unsigned n = atomic_fetch_add_explicit(&mt_failures, 1, memory_order_relaxed);
        /* A loop that fails a million times is told twenty times. */
        if (n < 20) fprintf(stderr, "%s:%d: FAILED: %s\n", file, line, what);
    }
    return ok;
}

/* Compare two integers and show both when they differ.
 * Thread: any.  Blocks: no. */
static inline int mt_eq(long long a, long long b, const char *file, int line, const char *what)
{
    char text[512];
    if (a == b) return mt_check(1, file, line, what);
    snprintf(text, sizeof text, "%s (%lld != %lld)", what, a, b);
    return mt_check(0, file, line, text);
}

/* Compare two strings, NULL allowed, and show both when they differ.
 * Thread: any.  Blocks: no. */
static inline int mt_str_eq(const char *a, const char *b, const char *file, int line,
                            const char *what)
{
    char text[512];
    if (a == b || (a != NULL && b != NULL && strcmp(a, b) == 0))
        return mt_check(1, file, line, what);
    snprintf(text, sizeof text, "%s (\"%.150s\" != \"%.150s\")", what, a ? a : "(null)",
             b ? b : "(null)");
    return mt_check(0, file, line, text);
}

#define MT_CHECK(expr) mt_check(!!(expr), __FILE__, __LINE__, #expr)
#define MT_EQ(a, b) mt_eq((long long)(a), (long long)(b), __FILE__, __LINE__, #a " == " #b)
#define MT_STR_EQ(a, b) mt_str_eq((a), (b), __FILE__, __LINE__, #a " equals " #b)
#define MT_REQUIRE(expr)                       \
    do {                                       \
        if (!MT_CHECK(expr)) {                 \
            fputs("cannot go on\n", stderr);   \
            _exit(1);                          \
        }                                      \
    } while (0)

/* An environment variable as a number, or fallback where it is unset. */
static inline uint64_t mt_env(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    return text != NULL && *text != '\0' ? strtoull(text, NULL, 0) : fallback;
}

/* Says what happened with nothing but async-signal-safe calls, then dies. */
static void mt_on_alarm(int sig)
{
    static const char text[] = "FAILED: time limit reached, the test hangs\n";
    ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
    (void)n;
    signal(sig, SIG_DFL);
    signal(SIGABRT, SIG_DFL);
    abort();
}

/* The next number of a splitmix64 sequence; *state is all there is to it.
 * Thread: any, one state per thread.  Blocks: no. */
static inline uint64_t mt_rand(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Print and return the seed of this run, and arm the time limit.
 * Thread: main, first thing.  Blocks: no. */
static inline uint64_t mt_seed(void)
{
    struct timespec now;
    uint64_t seed;
    clock_gettime(CLOCK_REALTIME, &now);
    seed = (uint64_t)now.tv_sec * 1000003u ^ (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 32;
    seed = mt_env("OFFLOOP_SEED", mt_rand(&seed));
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    signal(SIGALRM, mt_on_alarm);
    alarm((unsigned)mt_env("OFFLOOP_TIME_LIMIT", 120));
    return seed;
}

/* n, or the share of it that OFFLOOP_SCALE (per cent) asks for; never 0. */
static inline uint64_t mt_scale(uint64_t n)
{
    uint64_t scaled = n * mt_env("OFFLOOP_SCALE", 100) / 100;
    return scaled > 0 ? scaled : 1;
}
#define MT_SCALE(n) mt_scale(n)

/* Print the closing line and give main's exit status.
 * Thread: main, last thing.  Blocks: no. */
static inline int mt_report(const char *name)
{
    unsigned checks = atomic_load(&mt_checks);
    unsigned failures = atomic_load(&mt_failures);
    alarm(0);
    if (checks == 0) {
        fprintf(stderr, "%s: FAILED: it checked nothing\n", name);
        return 1;
    }
    printf("%s: %u checks, %u failures\n", name, checks, failures);
    fflush(stdout);
    return failures == 0 ? 0 : 1;
}

#endif
