#include "baton.h"

#include "core.h"

#include "../runtime/rt_base.h"

#include <errno.h>

#define PATIENCE (5 * RT_MS) /* what Python's own wait for the GIL lasts */
#define SURE 2               /* so many stretches in a row make it a kind */

int core_baton_init(struct core_baton *baton)
{
    pthread_condattr_t attr;
    int failed;

    memset(baton, 0, sizeof *baton);
    if (pthread_condattr_init(&attr) != 0)
        return -1;
    failed = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) != 0 ||
             pthread_cond_init(&baton->passed, &attr) != 0 ||
             pthread_mutex_init(&baton->lock, NULL) != 0 ||
             pthread_mutex_init(&baton->door, NULL) != 0;
    pthread_condattr_destroy(&attr);
    return failed ? -1 : 0;
}

void core_baton_fini(struct core_baton *baton)
{
    pthread_cond_destroy(&baton->passed);
    pthread_mutex_destroy(&baton->lock);
    pthread_mutex_destroy(&baton->door);
}

void core_baton_take(struct core_baton *baton, const struct rt_worker *worker, PyThreadState *ts)
{
    uint64_t until = rt_now() + PATIENCE;
    const struct timespec at = { .tv_sec = (time_t)(until / RT_SEC),
                                 .tv_nsec = (long)(until % RT_SEC) };

    pthread_mutex_lock(&baton->lock);
    while (baton->bearer != NULL && baton->computing >= SURE) {
        if (pthread_cond_timedwait(&baton->passed, &baton->lock, &at) != ETIMEDOUT)
            continue;
        baton->computing = 0;
        pthread_cond_broadcast(&baton->passed);
    }
    baton->bearer = worker;
    pthread_mutex_unlock(&baton->lock);
    pthread_mutex_lock(&baton->door);
    PyEval_RestoreThread(ts);
    pthread_mutex_unlock(&baton->door);
}

void core_baton_pass(struct core_baton *baton, const struct rt_worker *worker)
{
    pthread_mutex_lock(&baton->lock);
    if (baton->bearer == worker) {
        baton->bearer = NULL;
        pthread_cond_signal(&baton->passed);
    }
    pthread_mutex_unlock(&baton->lock);
}

void core_baton_learn(struct core_baton *baton, uint64_t passed, uint64_t computed)
{
    pthread_mutex_lock(&baton->lock);
    if (computed >= passed / 2) {
        if (baton->computing < SURE)
            baton->computing++;
    } else if (computed < passed / 4 && baton->computing > 0) {
        baton->computing = 0;
        pthread_cond_broadcast(&baton->passed);
    }
    pthread_mutex_unlock(&baton->lock);
}
