#include "rt_lane.h"

#include <sched.h>

static void run_turn(struct rt_job *turn, struct rt_worker *worker);

int rt_lane_new(struct rt_pool *pool, bool pinned, struct rt_lane **out)
{
    struct rt_lane *lane = calloc(1, sizeof *lane);

    if (lane == NULL)
        return RT_ENOMEM;
    rt_job_init(&lane->turn, NULL, RT_NEVER);
    lane->turn.run = run_turn;
    lane->turn.turn = true;
    lane->turn.hosted = true; /* it lets go itself, before a job that is not */
    rt_stack_init(&lane->inbox);
    atomic_init(&lane->refs, 1);
    lane->pinned = pinned;
    lane->pool = pool;
    rt_pool_ref(pool);
    *out = lane;
    return RT_OK;
}

/* The worker of a pinned lane: the one with the fewest lanes, and of several the
 * last, as jobs of no lane go to the first that is idle. */
static struct rt_worker *worker_of(struct rt_lane *lane)
{
    struct rt_pool *pool = lane->pool;
    uint32_t chosen = atomic_load(&lane->worker), none = 0;
    unsigned i, count;

    if (!lane->pinned)
        return NULL;
    if (chosen == 0) {
        /* The pool was started just before; 0 while another thread makes the first. */
        count = atomic_load(&pool->started);
        if (count == 0)
            count = 1;
        chosen = count;
        for (i = count; i > 0; i--) {
            if (atomic_load(&pool->workers[i - 1].lanes) <
                atomic_load(&pool->workers[chosen - 1].lanes))
                chosen = i;
        }
        if (atomic_compare_exchange_strong(&lane->worker, &none, chosen))
            atomic_fetch_add(&pool->workers[chosen - 1].lanes, 1);
        else
            chosen = none;
    }
    return &pool->workers[chosen - 1];
}

static void unref(struct rt_lane *lane)
{
    uint32_t worker;

    /* Partner: the same line in the other thread; the last one frees. */
    if (atomic_fetch_sub_explicit(&lane->refs, 1, memory_order_acq_rel) != 1)
        return;
    worker = atomic_load(&lane->worker);
    if (worker != 0)
        atomic_fetch_sub(&lane->pool->workers[worker - 1].lanes, 1);
    rt_pool_unref(lane->pool);
    free(lane);
}

void rt_lane_release(struct rt_lane *lane)
{
    if (lane != NULL)
        unref(lane);
}

/* The inbox has something.  See to it that the turn is queued. */
static void schedule(struct rt_lane *lane)
{
    /* Partner: the exchange in run_turn(). */
    if (atomic_exchange(&lane->scheduled, 1) != 0)
        return;
    atomic_fetch_add_explicit(&lane->refs, 1, memory_order_relaxed);
    rt_pool_put_turn(lane->pool, &lane->turn, worker_of(lane));
}

int rt_lane_submit_all(struct rt_lane *lane, struct rt_joblist *jobs)
{
    struct rt_job *job;
    int err = jobs->head != NULL ? rt_pool_admit(lane->pool, jobs->count) : RT_OK;

    if (err || jobs->head == NULL)
        return err;
    for (job = jobs->head; job != NULL; job = job->next)
        RT_CHECK(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
    job = jobs->head;
    rt_joblist_init(jobs);
    rt_stack_push(&lane->inbox, &job->node);
    schedule(lane);
    return RT_OK;
}

int rt_lane_submit(struct rt_lane *lane, struct rt_job *job)
{
    struct rt_joblist one;

    rt_joblist_init(&one);
    rt_joblist_append(&one, job);
    return rt_lane_submit_all(lane, &one);
}

/* The lane's next job, or NULL. */
static struct rt_job *next_job(struct rt_lane *lane)
{
    struct rt_job *job = lane->next;

    if (job == NULL) {
        if (lane->chains == NULL)
            lane->chains = rt_stack_take(&lane->inbox);
        if (lane->chains == NULL)
            return NULL;
        job = RT_CONTAINER_OF(lane->chains, struct rt_job, node);
        lane->chains = lane->chains->next;
    }
    lane->next = job->next;
    return job;
}

static bool has_jobs(const struct rt_lane *lane)
{
    return lane->next != NULL || lane->chains != NULL || !rt_stack_empty(&lane->inbox);
}

/* Before the turn is anybody's: the worker may have results still. */
static void note_results(struct rt_lane *lane, struct rt_worker *worker)
{
    lane->last = worker->finished.head != NULL ? worker : NULL;
    lane->last_posts = rt_read(&worker->posts);
}

/* Wait until the results of the last turn are posted.  Their worker is on its way to do
 * so, and waits for nobody. */
static void await_posts(struct rt_lane *lane, const struct rt_worker *worker)
{
    if (lane->last == NULL || lane->last == worker)
        return;
    /* Partner: rt_worker_post(). */
    while (atomic_load_explicit(&lane->last->posts, memory_order_acquire) == lane->last_posts)
        sched_yield();
}

static void run_turn(struct rt_job *turn, struct rt_worker *worker)
{
    struct rt_lane *lane = RT_CONTAINER_OF(turn, struct rt_lane, turn);
    struct rt_pool *pool = lane->pool;
    uint64_t began = rt_now();
    unsigned run = 0;

    await_posts(lane, worker);
    for (;;) {
        struct rt_job *job;

        if (run > 0 && has_jobs(lane) && (run >= RT_LANE_JOBS || rt_now() - began > RT_LANE_NS)) {
            note_results(lane, worker);
            rt_pool_put_turn(pool, turn, worker_of(lane));
            return;
        }
        job = next_job(lane);
        if (job == NULL) {
            note_results(lane, worker);
            /* Clear before the last look: a later submit must see 0.
             * Partner: the exchange in schedule(). */
            atomic_exchange(&lane->scheduled, 0);
            if (rt_stack_empty(&lane->inbox) || atomic_exchange(&lane->scheduled, 1) != 0)
                break;
            continue;
        }
        run++;
        if (!job->hosted)
            rt_worker_leave(worker);
        rt_worker_post(worker);
        if (!rt_pool_begin(pool, job, worker))
            continue;
        job->run(job, worker);
        if (rt_pool_forked(pool))
            return; /* the rest is the parent's */
    }
    unref(lane);
}
