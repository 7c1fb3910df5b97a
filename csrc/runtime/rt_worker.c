#include "rt_worker.h"

#include <limits.h>
#include <stdio.h>

#include "rt_mailbox.h"
#include "rt_pool.h"

#define LOOKS 16 /* for a job, before one at the clock */

static _Thread_local struct rt_worker *current;

struct rt_worker *rt_worker_current(void)
{
    return current;
}

/* Whether a worker that leads may run a job itself.  In a pool that carries
 * connections the last free worker keeps to them, unless it is the only one or there
 * is a reserve: calls that take long must not hold up replies. */
static bool leader_takes_jobs(const struct rt_pool *pool)
{
    return atomic_load(&pool->started) <= 1 || atomic_load(&pool->poller.count) == 0 ||
           atomic_load(&pool->reserve) != 0 ||
           atomic_load(&pool->stop_at) <= rt_now(); /* too late to run: to be failed */
}

/* Whether a worker that leads has turns of its own and somebody to lead instead. */
static bool can_take_turns(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    if (!rt_pool_has_turns(worker))
        return false;
    /* Announce before the look.  Partner: the look at leader_waits in park(). */
    atomic_store(&pool->leader_waits, 1);
    rt_fence();
    return leader_takes_jobs(pool) || rt_pool_somebody_idle(pool);
}

static bool has_other_work(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    if (rt_pool_state(pool) >= RT_POOL_DRAINING &&
        (rt_pool_state(pool) == RT_POOL_STOPPED || rt_pool_check_stopped(pool)))
        return true;
    if (worker->reserve)
        return false;
    return (rt_pool_has_jobs(pool) && leader_takes_jobs(pool)) || can_take_turns(worker);
}

static bool take_lead(struct rt_worker *worker)
{
    uint32_t nobody = 0;

    if (!atomic_compare_exchange_strong(&worker->pool->lead, &nobody, worker->index + 1))
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

    if (!worker->leading ||
        (atomic_load(&pool->started) <= 1 && atomic_load(&pool->reserve) == 0))
        return;
    rt_poller_put_back(&pool->poller, worker);
    drop_lead(worker);
    rt_pool_call_leader(pool);
}

void rt_worker_leave(struct rt_worker *worker)
{
    const struct rt_host *host = worker->pool->host;

    if (worker->held)
        host->leave(worker);
    rt_worker_post(worker);
    if (host != NULL)
        host->idle(worker);
}

void rt_worker_post(struct rt_worker *worker)
{
    if (worker->finished.head == NULL)
        return;
    rt_mailbox_post(worker->finished.head->mailbox, &worker->finished);
    /* Partner: await_posts() in rt_lane.c. */
    atomic_store_explicit(&worker->posts, rt_read(&worker->posts) + 1, memory_order_release);
}

void rt_worker_finish(struct rt_worker *worker, struct rt_job *job, int err)
{
    if (worker->finished.head != NULL && worker->finished.head->mailbox != job->mailbox)
        rt_worker_post(worker);
    rt_job_finish(job, err);
    rt_joblist_append(&worker->finished, job);
}

/* Take turns in the poller until there is a job to run or the pool stops.  The job,
 * where it must be this worker that runs it. */
static struct rt_job *lead(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    for (;;) {
        while (worker->leading && !has_other_work(worker))
            rt_poller_turn(&pool->poller, worker, has_other_work);
        if (!worker->leading)
            return NULL;
        rt_poller_put_back(&pool->poller, worker);
        drop_lead(worker);
        atomic_store(&pool->leader_waits, 0);
        if (atomic_load(&pool->poller.count) == 0)
            return NULL;
        /* Somebody comes to lead.  To look for jobs like everybody would be to find
         * that nobody leads yet, and to lead again. */
        if (rt_pool_wake_one(pool))
            return rt_pool_has_turns(worker) ? rt_pool_take_turn(worker) : NULL;
        if (leader_takes_jobs(pool) || rt_pool_state(pool) == RT_POOL_STOPPED) {
            rt_pool_call_leader(pool);
            return NULL;
        }
        if (!take_lead(worker))
            return NULL;
    }
}

/* One look at the connections between two jobs, so that a queue that never
 * runs dry does not starve them. */
static void look_between_jobs(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    if (atomic_load(&pool->poller.count) == 0 || !take_lead(worker))
        return;
    rt_worker_leave(worker);
    rt_poller_turn(&pool->poller, worker, has_other_work);
    if (!worker->leading)
        return;
    rt_poller_put_back(&pool->poller, worker);
    drop_lead(worker);
    rt_pool_call_leader(pool);
}

/* Whether to look for the next job before sleeping. */
static bool may_watch(struct rt_worker *worker)
{
    const struct rt_pool *pool = worker->pool;
    bool expects = worker->expects;

    worker->expects = false;
    if (!worker->held || !expects || worker->leading || pool->busy_poll == 0 ||
        rt_pool_state(pool) != RT_POOL_RUNNING ||
        (atomic_load(&pool->poller.count) != 0 && atomic_load(&pool->lead) == 0))
        return false;
    return rt_habit_tries(&worker->watching);
}

/* Let go, and be the one that comes: no other is woken for a job until this worker has
 * looked.  False: another is on its way. */
static bool come(struct rt_worker *worker)
{
    bool first;

    /* Before, since what the host does may take long; and the results go home after it,
     * since the next job may be here soon after. */
    worker->pool->host->leave(worker);
    /* Partner: rt_pool_call_worker(). */
    first = atomic_exchange(&worker->pool->coming, 1) == 0;
    rt_worker_post(worker);
    return first;
}

/* Look for a job for a moment. */
static void watch(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;
    uint64_t began = rt_now(), now;
    bool came = false;
    int i;

    do {
        for (i = 0; i < LOOKS && !came; i++) {
            rt_pause();
            came = rt_pool_has_jobs(pool) || rt_pool_has_turns(worker);
        }
        now = rt_now();
    } while (!came && now - began < pool->busy_poll);
    /* Before the next look, which sees what nobody else was called for. */
    atomic_exchange(&pool->coming, 0);
    rt_habit_learn(&worker->watching, came, now - began <= pool->busy_poll / 2);
    rt_count_own(&worker->stats.polls, 1);
    rt_count_own(&worker->stats.poll_hits, came);
    worker->watched = came;
}

/* Connections before calls: the last free worker must not take a job. */
static struct rt_job *take(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;

    return leader_takes_jobs(pool) || !take_lead(worker) ? rt_pool_take(pool, worker) : NULL;
}

/* The next job, if there is one; before any but a hosted one, and before there is none,
 * the worker has let go of what those hold. */
static struct rt_job *next_job(struct rt_worker *worker)
{
    struct rt_job *job = take(worker);

    worker->watched = false;
    if (job == NULL && may_watch(worker) && come(worker)) {
        watch(worker);
        job = take(worker);
        /* It has to lead instead, and nobody was called while it looked. */
        if (job == NULL && rt_pool_has_jobs(worker->pool))
            rt_pool_call_worker(worker->pool);
    }
    if (job == NULL || !job->hosted)
        rt_worker_leave(worker);
    return job;
}

static void park(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;
    _Atomic uint64_t *idle = &pool->idle[worker->index / 64];
    const uint64_t bit = UINT64_C(1) << (worker->index % 64);
    const uint32_t snapshot = rt_event_value(&worker->event);

    /* Announce before the last look.  Partners: rt_pool_call_worker() and
     * rt_worker_pass_lead(), which publish before they look for idle ones. */
    atomic_fetch_or(idle, bit);
    rt_fence();
    if (atomic_load(&pool->leader_waits) != 0)
        rt_poller_bell(&pool->poller);
    if (!rt_pool_has_jobs(pool) && !rt_pool_has_turns(worker) &&
        atomic_load(&pool->lead) != 0 && rt_pool_state(pool) != RT_POOL_STOPPED) {
        rt_event_wait(&worker->event, snapshot);
        rt_count_own(&worker->stats.wakeups, 1);
    }
    atomic_fetch_and(idle, ~bit);
}

/* The reserve: lead whenever nobody does. */
static void stand_by(struct rt_worker *worker)
{
    struct rt_pool *pool = worker->pool;
    uint32_t snapshot;

    while (rt_pool_state(pool) != RT_POOL_STOPPED) {
        snapshot = rt_event_value(&worker->event);
        if (take_lead(worker))
            (void)lead(worker);
        /* Partner: rt_pool_call_leader(), after the lead was dropped. */
        else if (atomic_load(&pool->lead) != 0 && rt_pool_state(pool) != RT_POOL_STOPPED)
            rt_event_wait(&worker->event, snapshot);
    }
}

static void *worker_main(void *arg)
{
    struct rt_worker *worker = arg;
    struct rt_pool *pool = worker->pool;
    char name[16];

    current = worker;
    /* By the thread itself: nobody else may touch one that may have ended. */
    snprintf(name, sizeof name, "offloop-w%u", worker->index % 10000);
    (void)pthread_setname_np(pthread_self(), name);
    if (worker->reserve)
        stand_by(worker);
    while (rt_pool_state(pool) != RT_POOL_STOPPED) {
        struct rt_job *job = next_job(worker);

        if (job == NULL && (worker->leading || take_lead(worker))) {
            job = lead(worker);
        } else if (job == NULL) {
            park(worker);
        }
        if (job == NULL)
            continue;
        rt_worker_post(worker);
        job->run(job, worker);
        /* A forked child comes out of the job that forked: all else is the parent's. */
        if (rt_pool_forked(pool))
            return NULL;
        rt_pool_job_ended(pool);
        look_between_jobs(worker);
    }
    rt_worker_leave(worker);
    if (worker->guest != NULL)
        pool->host->ended(worker);
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
    pthread_attr_setstacksize(&attr, worker->pool->stack_size);
    failed = pthread_create(&thread, &attr, worker_main, worker);
    pthread_attr_destroy(&attr);
    return failed ? RT_ESYS : RT_OK;
}
