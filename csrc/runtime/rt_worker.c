#include "rt_worker.h"

#include <limits.h>
#include <stdio.h>

#include "rt_pool.h"

#if RT_TSAN || RT_ASAN
#define STACK_SIZE ((size_t)2 << 20)
#else
#define STACK_SIZE ((size_t)256 << 10)
#endif

/* Whether a worker that leads may run a job itself.  In a pool that carries
 * connections the last free worker keeps to them, unless it is the only one:
 * calls that take long must not hold up replies. */
static bool leader_takes_jobs(const struct rt_pool *pool)
{
    return atomic_load(&pool->started) <= 1 || atomic_load(&pool->poller.count) == 0 ||
           atomic_load(&pool->stop_at) <= rt_now(); /* too late to run: to be failed */
}

static bool has_other_work(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    if (rt_pool_state(pool) >= RT_POOL_DRAINING &&
        (rt_pool_state(pool) == RT_POOL_STOPPED || rt_pool_check_stopped(pool)))
        return true;
    return rt_pool_has_jobs(pool) && leader_takes_jobs(pool);
}

static bool take_lead(struct rt_worker *worker)
{
    uint32_t nobody = 0;

    if (!atomic_compare_exchange_strong(&worker->pool->lead, &nobody, 1))
        return false;
    worker->leading = true;
    return true;
}

static void drop_lead(struct rt_worker *worker)
{
    if (!worker->leading)
        return;
    worker->leading = false;
    /* Partner: the look at `lead` in park(). */
    atomic_store(&worker->pool->lead, 0);
}

void rt_worker_pass_lead(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    if (!worker->leading || atomic_load(&pool->started) <= 1)
        return;
    rt_poller_put_back(&pool->poller, worker);
    drop_lead(worker);
    rt_pool_wake_one(pool);
}

/* Take turns in the poller until there is a job to run or the pool stops. */
static void lead(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    while (worker->leading && !has_other_work(worker))
        rt_poller_turn(&pool->poller, worker, has_other_work);
    if (!worker->leading)
        return;
    rt_poller_put_back(&pool->poller, worker);
    drop_lead(worker);
    if (atomic_load(&pool->poller.count) != 0)
        rt_pool_wake_one(pool);
}

/* One look at the connections between two jobs, so that a queue that never
 * runs dry does not starve them. */
static void look_between_jobs(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    if (atomic_load(&pool->poller.count) == 0 || !take_lead(worker))
        return;
    rt_poller_turn(&pool->poller, worker, has_other_work);
    if (!worker->leading)
        return;
    rt_poller_put_back(&pool->poller, worker);
    drop_lead(worker);
    rt_pool_wake_one(pool);
}

static void park(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;
    _Atomic uint64_t *idle = &pool->idle[worker->index / 64];
    const uint64_t bit = UINT64_C(1) << (worker->index % 64);
    const uint32_t snapshot = rt_event_value(&worker->event);

    /* Announce before the last look.  Partners: call_worker() and
     * rt_worker_pass_lead(), which publish before they look for idle ones. */
    atomic_fetch_or(idle, bit);
    if (!rt_pool_has_jobs(pool) && atomic_load(&pool->lead) != 0 &&
        rt_pool_state(pool) != RT_POOL_STOPPED) {
        rt_event_wait(&worker->event, snapshot);
        rt_count_own(&worker->stats.wakeups, 1);
    }
    atomic_fetch_and(idle, ~bit);
}

static void *worker_main(void *arg)
{
    struct rt_worker *worker = arg;
    struct rt_pool *pool = worker->pool;
    char name[16];

    /* By the thread itself: nobody else may touch one that may have ended. */
    snprintf(name, sizeof name, "offloop-w%u", worker->index % 10000);
    (void)pthread_setname_np(pthread_self(), name);
    while (rt_pool_state(pool) != RT_POOL_STOPPED) {
        struct rt_job *job = NULL;

        /* Connections before calls: the last free worker must not take a job. */
        if (leader_takes_jobs(pool) || !take_lead(worker))
            job = rt_pool_take(pool, worker);
        if (worker->leading) {
            lead(worker);
        } else if (job != NULL) {
            job->run(job, worker);
            rt_pool_job_ended(pool);
            look_between_jobs(worker);
        } else if (take_lead(worker)) {
            lead(worker);
        } else {
            park(worker);
        }
    }
    rt_pool_worker_ended(pool);
    return NULL;
}

int rt_worker_start(struct rt_worker *worker)
{
    pthread_attr_t attr;
    pthread_t thread;
    int failed;

    if (pthread_attr_init(&attr) != 0)
        return RT_ESYS;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    failed = pthread_create(&thread, &attr, worker_main, worker);
    pthread_attr_destroy(&attr);
    return failed ? RT_ESYS : RT_OK;
}
