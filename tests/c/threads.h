/* Threads, descriptors and waiting for tests: what minitest.h leaves out.
 *
 * Every wait has a limit that is far beyond what a slow machine needs, so that
 * it tells a hang and never measures time. */
#ifndef THREADS_H
#define THREADS_H

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "minitest.h"

#define MT_HANG_MS 60000 /* longer than anything takes, with eight others on two CPUs too */

#if defined(__x86_64__)
#define MT_PAUSE() __builtin_ia32_pause()
#else
#define MT_PAUSE() ((void)0)
#endif

static inline pthread_t mt_spawn(void *(*body)(void *), void *arg)
{
    pthread_t thread;

    MT_REQUIRE(pthread_create(&thread, NULL, body, arg) == 0);
    return thread;
}

static inline void mt_join(pthread_t thread)
{
    MT_REQUIRE(pthread_join(thread, NULL) == 0);
}

/* Spin a little, then let others run: what waits in a closed loop does this. */
static inline void mt_relax(unsigned *spins)
{
    if (++*spins % 64 == 0)
        sched_yield();
    else
        MT_PAUSE();
}

static inline void mt_sleep_ms(unsigned ms)
{
    const struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

    nanosleep(&ts, NULL);
}

/* Wait until the expression is true; false after MT_HANG_MS. */
#define MT_EVENTUALLY(expr)                                                    \
    ({                                                                         \
        bool seen_ = (expr); /* once each time: it may be true for a moment */  \
        unsigned waited_;                                                      \
        for (waited_ = 0; waited_ < MT_HANG_MS && !seen_; waited_++) {         \
            mt_sleep_ms(1);                                                    \
            seen_ = (expr);                                                    \
        }                                                                      \
        MT_CHECK(seen_ && #expr);                                              \
    })

/* Wait until fd can be read; false when it cannot within ms. */
static inline bool mt_readable(int fd, int ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };

    return poll(&p, 1, ms) == 1;
}

static inline unsigned mt_entries(const char *folder)
{
    DIR *dir = opendir(folder);
    unsigned n = 0;

    MT_REQUIRE(dir != NULL);
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

/* Open descriptors of this process. */
static inline unsigned mt_fds(void) { return mt_entries("/proc/self/fd"); }

/* Wait until no more are open than before: a pool's last worker may still be on its way
 * out when the pool's end is known. */
#define MT_FDS_CLOSED(before) MT_EVENTUALLY(mt_fds() <= (before))

/* Threads of this process that are ours by name: a sanitizer has its own. */
static inline unsigned mt_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    unsigned n = 0;

    MT_REQUIRE(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        char path[300], name[32] = "";
        FILE *file;

        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        file = fopen(path, "r");
        if (file == NULL)
            continue; /* "." and "..", or ended meanwhile */
        if (fgets(name, sizeof name, file) != NULL)
            n += strncmp(name, "offloop-", 8) == 0;
        fclose(file);
    }
    closedir(dir);
    return n;
}

/* A sanitizer's allocator has locks that a fork copies as they are: a child that
 * goes on with threads can only be forked while the other threads are at rest. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MT_FORK_AT_REST 1
#else
#define MT_FORK_AT_REST 0
#endif

/* Run body in a forked child; its wait status. */
static inline int mt_in_child(void (*body)(void *), void *arg)
{
    int status = -1;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    MT_REQUIRE(pid >= 0);
    if (pid == 0) {
        body(arg);
        _exit(0);
    }
    MT_REQUIRE(waitpid(pid, &status, 0) == pid);
    return status;
}

#endif
