#include "rt_pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#if RT_TSAN || RT_ASAN
#define STACK_SIZE ((size_t)2 << 20)
#else
#define STACK_SIZE ((size_t)256 << 10)
#endif

#define PAUSE_MAX 8 /* calls in a row after which a worker does not look for the next */

/* Forks seen by this process, counted in each child.  The one number that is
 * not part of an object: a child must recognise what it inherited. */
static _Atomic uint64_t forks;
static pthread_once_t forks_once = PTHREAD_ONCE_INIT;

static void count_fork(void)
{
    atomic_fetch_add(&forks, 1);
}

static void watch_forks(void)
{
    (void)pthread_atfork(NULL, NULL, count_fork);
}

int rt_pool_new(unsigned workers, uint32_t queue_limit, struct rt_pool **out)
{
    struct rt_pool *pool = NULL;
    unsigned i;
    int err = RT_ENOMEM;

    if (workers < 1 || workers > RT_MAX_WORKERS || queue_limit < 1 || queue_limit > (1u << 24))
        return RT_EINVAL;
    pthread_once(&forks_once, watch_forks);
    pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return RT_ENOMEM;
    pool->poller.epfd = pool->poller.bellfd = -1;
    /* One more for the reserve. */
    pool->workers = aligned_alloc(RT_CACHELINE, (workers + 1) * sizeof *pool->workers);
    if (pool->workers == NULL)
        goto fail;
    memset(pool->workers, 0, (workers + 1) * sizeof *pool->workers);
    for (i = 0; i <= workers; i++) {
        rt_event_init(&pool->workers[i].event);
        rt_habit_init(&pool->workers[i].watching, PAUSE_MAX);
        rt_stack_init(&pool->workers[i].inbox);
        pool->workers[i].pool = pool;
        pool->workers[i].index = i;
    }
    pool->workers[workers].reserve = true;
    pool->worker_count = workers;
    pool->queue_limit = queue_limit;
    pool->stack_size = STACK_SIZE;
    pool->fork_count = atomic_load(&forks);
    atomic_init(&pool->refs, 1);
    atomic_init(&pool->stop_at, RT_NEVER);
    rt_stack_init(&pool->submitted);
    rt_stack_init(&pool->seekers);
    pool->ring = rt_ring_new(queue_limit < 1024 ? queue_limit : 1024);
    if (pool->ring == NULL)
        goto fail;
    err = rt_poller_init(&pool->poller);
    if (err)
        goto fail;
    *out = pool;
    return RT_OK;
fail:
    rt_ring_free(pool->ring);
    free(pool->workers);
    free(pool);
    return err;
}

void rt_pool_set_host(struct rt_pool *pool, const struct rt_host *host, size_t stack_size)
{
    pool->host = host;
    if (stack_size > pool->stack_size)
        pool->stack_size = stack_size;
}

static bool has_two_cpus(void)
{
    cpu_set_t set;

    /* With more CPUs than the set has room for the call fails. */
    return sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) > 1;
}

void rt_pool_set_busy_poll(struct rt_pool *pool, uint64_t limit)
{
    pool->busy_poll = has_two_cpus() ? limit : 0;
}

void rt_pool_ref(struct rt_pool *pool)
{
    atomic_fetch_add_explicit(&pool->refs, 1, memory_order_relaxed);
}

void rt_pool_unref(struct rt_pool *pool)
{
    /* Partner: the same line in other threads; the last one frees. */
    if (atomic_fetch_sub_explicit(&pool->refs, 1, memory_order_acq_rel) != 1)
        return;
    rt_poller_fini(&pool->poller);
    rt_ring_free(pool->ring);
    free(pool->workers);
    free(pool);
}

bool rt_pool_forked(const struct rt_pool *pool)
{
    return pool->fork_count != atomic_load_explicit(&forks, memory_order_relaxed);
}

void rt_pool_abandon(struct rt_pool *pool)
{
    /* Only close: changing the epoll set would change the parent's too. */
    close(pool->poller.epfd);
    close(pool->poller.bellfd);
    pool->poller.epfd = pool->poller.bellfd = -1;
}

/* ---- jobs --------------------------------------------------------------- */

/* Count n jobs in if there is room for all: what is refused takes none, not even for a
 * moment.  The depth with them, or 0. */
static uint32_t count_in(struct rt_pool *pool, size_t n)
{
    uint32_t depth = atomic_load(&pool->depth);

    do {
        if (n > pool->queue_limit - depth)
            return 0;
    } while (!atomic_compare_exchange_weak(&pool->depth, &depth, depth + (uint32_t)n));
    return depth + (uint32_t)n;
}

int rt_pool_admit(struct rt_pool *pool, size_t n)
{
    int err = rt_pool_start(pool);
    uint32_t depth;

    if (err)
        return err;
    /* Count before looking at the state: rt_pool_check_stopped() looks at the
     * count after it has set the state, so one of the two sees the other. */
    depth = count_in(pool, n);
    if (rt_pool_state(pool) >= RT_POOL_DRAINING) {
        if (depth != 0) {
            rt_pool_leave_queue(pool, n);
            rt_poller_bell(&pool->poller);
        }
        return RT_ECLOSED;
    }
    if (depth == 0)
        return RT_EFULL;
    rt_atomic_max(&pool->depth_high, depth);
    rt_count(&pool->submits, n);
    return RT_OK;
}

int rt_pool_submit(struct rt_pool *pool, struct rt_job *job)
{
    int err = rt_pool_admit(pool, 1);

    if (err)
        return err;
    RT_CHECK(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
    job->next = NULL;
    rt_stack_push(&pool->submitted, &job->node);
    rt_pool_call_worker(pool);
    return RT_OK;
}

int rt_pool_submit_all(struct rt_pool *pool, struct rt_joblist *jobs)
{
    struct rt_job *job;
    int err = jobs->head != NULL ? rt_pool_admit(pool, jobs->count) : RT_OK;

    if (err || jobs->head == NULL)
        return err;
    for (job = jobs->head; job != NULL; job = job->next)
        RT_CHECK(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
    job = jobs->head;
    rt_joblist_init(jobs);
    rt_stack_push(&pool->submitted, &job->node);
    rt_pool_call_worker(pool);
    return RT_OK;
}

/* If every worker is inside a job and nobody leads, make the thread that attends to
 * connections.  Where the system has none left they wait for the first job to end.
 * Looked at by who adds a source, after that, and by who takes a job, after it was
 * counted as busy: so one of the two sees the other. */
static void guard_sources(struct rt_pool *pool)
{
    struct rt_worker *reserve = &pool->workers[pool->worker_count];
    const uint32_t started = atomic_load(&pool->started);
    sigset_t all, before;

    /* 0: another thread makes the first, who leads. */
    if (atomic_load(&pool->poller.count) == 0 || atomic_load(&pool->lead) != 0 || started == 0 ||
        atomic_load(&pool->busy) < started)
        return;
    if (atomic_load(&pool->reserve) != 0 || atomic_exchange(&pool->reserve, 1) != 0) {
        rt_event_signal(&reserve->event);
        return;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* The pool has a source or a job, so it does not stop meanwhile. */
    atomic_fetch_add(&pool->live, 1);
    if (rt_worker_start(reserve) != RT_OK) {
        atomic_fetch_sub(&pool->live, 1);
        atomic_store(&pool->reserve, 0);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int rt_pool_add_source(struct rt_pool *pool, struct rt_source *src)
{
    int err = rt_pool_start(pool);

    if (err == RT_OK)
        err = rt_source_add(&pool->poller, src);
    /* A leader that left for a job while there was no source called nobody.
     * Partner: lead(), which drops the lead before it looks at the count. */
    if (err == RT_OK && atomic_load(&pool->lead) == 0 && !rt_pool_wake_one(pool))
        guard_sources(pool);
    return err;
}

/* Move what was submitted into the ring.  One worker at a time; who comes
 * second goes away, since the first one calls it back when there is more. */
static void refill(struct rt_pool *pool)
{
    struct rt_job *job;

    if (atomic_exchange(&pool->refilling, 1) != 0)
        return;
    job = pool->leftover;
    if (job == NULL) {
        struct rt_node *node = rt_stack_take(&pool->submitted);
        struct rt_job **tail = &job;

        while (node != NULL) {
            /* A chain of one or more. */
            *tail = RT_CONTAINER_OF(node, struct rt_job, node);
            node = node->next;
            while (*tail != NULL)
                tail = &(*tail)->next;
        }
    }
    while (job != NULL) {
        /* Once it is in the ring it is another worker's. */
        struct rt_job *next = job->next;

        if (!rt_ring_push(pool->ring, job))
            break;
        job = next;
    }
    pool->leftover = job;
    /* Partner: the exchange above. */
    atomic_store(&pool->refilling, 0);
}

bool rt_pool_has_turns(const struct rt_worker *worker)
{
    return worker->turns != NULL || !rt_stack_empty(&worker->inbox);
}

struct rt_job *rt_pool_take_turn(struct rt_worker *worker)
{
    struct rt_job *job = worker->turns, **tail = &job;

    if (job == NULL) {
        struct rt_node *node = rt_stack_take(&worker->inbox);

        for (; node != NULL; node = node->next) {
            *tail = RT_CONTAINER_OF(node, struct rt_job, node);
            tail = &(*tail)->next;
        }
        *tail = NULL;
    }
    if (job == NULL)
        return NULL;
    worker->turns = job->next;
    worker->shared_next = true;
    atomic_fetch_add(&worker->pool->busy, 1);
    guard_sources(worker->pool);
    return job;
}

void rt_pool_put_turn(struct rt_pool *pool, struct rt_job *turn, struct rt_worker *worker)
{
    _Atomic uint64_t *idle;
    uint64_t bit;

    turn->next = NULL;
    if (worker == NULL) {
        rt_stack_push(&pool->submitted, &turn->node);
        rt_pool_call_worker(pool);
        return;
    }
    rt_stack_push(&worker->inbox, &turn->node);
    /* Partners: park() and can_take_turns(), which announce before they look. */
    rt_fence();
    idle = &pool->idle[worker->index / 64];
    bit = UINT64_C(1) << (worker->index % 64);
    if ((atomic_load(idle) & bit) != 0 && (atomic_fetch_and(idle, ~bit) & bit) != 0) {
        rt_event_signal(&worker->event);
        rt_count(&pool->wakes, 1);
    } else if (atomic_load(&pool->lead) == worker->index + 1) {
        rt_poller_bell(&pool->poller);
    }
}

bool rt_pool_begin(struct rt_pool *pool, struct rt_job *job, struct rt_worker *worker)
{
    uint64_t stop_at = atomic_load(&pool->stop_at);
    int err = RT_OK;

    /* The caller is busy, so the pool does not seem empty. */
    rt_pool_leave_queue(pool, 1);
    if (stop_at != RT_NEVER && stop_at <= rt_now())
        err = RT_ECLOSED;
    else if (job->deadline != RT_NEVER && job->deadline <= rt_now())
        err = RT_ETIMEOUT;
    else if (!rt_job_move(job, RT_JOB_QUEUED, RT_JOB_RUNNING))
        err = RT_ECANCELLED;
    if (job->mailbox == NULL) {
        job->err = err;
    } else if (err) {
        rt_pool_complete(job, err);
        return false;
    }
    rt_count_own(&worker->stats.jobs, 1);
    return true;
}

struct rt_job *rt_pool_take(struct rt_pool *pool, struct rt_worker *worker)
{
    struct rt_job *job;

    /* I am looking: the next submit may call another.  Partner: rt_pool_call_worker(). */
    if (atomic_load(&pool->coming) != 0)
        atomic_exchange(&pool->coming, 0);
    if (rt_pool_has_turns(worker) && !(worker->shared_next && rt_pool_has_jobs(pool))) {
        if (rt_pool_has_jobs(pool))
            rt_pool_call_worker(pool);
        return rt_pool_take_turn(worker);
    }
    worker->shared_next = false;
    for (;;) {
        job = rt_ring_pop(pool->ring);
        if (job == NULL) {
            refill(pool);
            job = rt_ring_pop(pool->ring);
        }
        if (job == NULL)
            return NULL;
        atomic_fetch_add(&pool->busy, 1);
        guard_sources(pool);
        if (rt_pool_has_jobs(pool))
            rt_pool_call_worker(pool);
        if (job->turn || rt_pool_begin(pool, job, worker))
            return job;
        rt_pool_job_ended(pool);
    }
}

void rt_pool_job_ended(struct rt_pool *pool)
{
    atomic_fetch_sub(&pool->busy, 1);
    /* It may have been the last, and the leader may be asleep. */
    if (rt_pool_state(pool) == RT_POOL_DRAINING)
        rt_pool_check_stopped(pool);
}

void rt_pool_complete(struct rt_job *job, int err)
{
    struct rt_mailbox *mailbox = job->mailbox;
    struct rt_joblist list;

    rt_job_finish(job, err);
    rt_joblist_init(&list);
    rt_joblist_append(&list, job);
    rt_mailbox_post(mailbox, &list);
}

/* ---- life --------------------------------------------------------------- */

int rt_pool_start(struct rt_pool *pool)
{
    uint32_t fresh = atomic_load_explicit(&pool->state, memory_order_acquire);
    sigset_t all, before;
    unsigned i;

    if (fresh != RT_POOL_NEW ||
        !atomic_compare_exchange_strong(&pool->state, &fresh, RT_POOL_RUNNING))
        return fresh == RT_POOL_STOPPED ? RT_ECLOSED : RT_OK;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* All counted before the first runs: a pool that is closed meanwhile must
     * not seem empty between two of them. */
    rt_pool_ref(pool); /* the workers', together; the last to end drops it */
    atomic_fetch_add(&pool->live, pool->worker_count);
    for (i = 0; i < pool->worker_count; i++) {
        atomic_store(&pool->started, i + 1);
        if (rt_worker_start(&pool->workers[i]) != RT_OK)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (i == pool->worker_count)
        return RT_OK;
    /* The system has no more threads: go on with what there are, if any. */
    atomic_store(&pool->started, i);
    atomic_fetch_sub(&pool->live, pool->worker_count - i);
    if (i > 0)
        return RT_OK;
    rt_pool_unref(pool);
    atomic_store(&pool->state, RT_POOL_NEW);
    return RT_ESYS;
}

/* A job for `close_job` to point at once the last worker has ended. */
static struct rt_job *const CLOSE_JOB_TAKEN = (struct rt_job *)1;

static struct rt_job *swap_close_job(struct rt_pool *pool, struct rt_job *job)
{
    return __atomic_exchange_n(&pool->close_job, job, __ATOMIC_SEQ_CST);
}

static void tell_sources(struct rt_pool *pool)
{
    struct rt_poller *p = &pool->poller;
    struct rt_source *src;

    pthread_mutex_lock(&p->lock);
    for (src = p->sources; src != NULL; src = src->next)
        rt_source_attend(src, RT_CLOSING);
    pthread_mutex_unlock(&p->lock);
}

int rt_pool_close(struct rt_pool *pool, uint64_t stop_at, struct rt_job *job)
{
    struct rt_job *none = NULL;
    uint32_t state;

    rt_atomic_min(&pool->stop_at, stop_at);
    if (job != NULL) {
        RT_CHECK(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
        if (!__atomic_compare_exchange_n(&pool->close_job, &none, job, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST)) {
            if (none == CLOSE_JOB_TAKEN) {
                rt_pool_complete(job, RT_OK); /* everybody has ended already */
                return RT_OK;
            }
            RT_CHECK(rt_job_move(job, RT_JOB_QUEUED, RT_JOB_DONE));
            RT_CHECK(rt_job_move(job, RT_JOB_DONE, RT_JOB_IDLE));
            return RT_ECLOSED;
        }
    }
    state = RT_POOL_NEW;
    if (atomic_compare_exchange_strong(&pool->state, &state, RT_POOL_STOPPED)) {
        job = swap_close_job(pool, CLOSE_JOB_TAKEN);
        if (job != NULL && job != CLOSE_JOB_TAKEN)
            rt_pool_complete(job, RT_OK);
        return RT_OK;
    }
    state = RT_POOL_RUNNING;
    atomic_compare_exchange_strong(&pool->state, &state, RT_POOL_DRAINING);
    if (rt_pool_state(pool) == RT_POOL_DRAINING) {
        tell_sources(pool);
        rt_poller_due(&pool->poller, stop_at);
        rt_pool_wake_all(pool);
    }
    return RT_OK;
}

void rt_pool_stop_waiting(struct rt_pool *pool)
{
    struct rt_job *job = __atomic_load_n(&pool->close_job, __ATOMIC_SEQ_CST);

    if (job != NULL && job != CLOSE_JOB_TAKEN &&
        __atomic_compare_exchange_n(&pool->close_job, &job, NULL, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST))
        rt_pool_complete(job, RT_ETIMEOUT);
}

/* Called by workers between what they do, so that the last thing to end is
 * noticed by whoever ended it. */
bool rt_pool_check_stopped(struct rt_pool *pool)
{
    uint32_t state = RT_POOL_DRAINING;

    if (rt_pool_state(pool) != RT_POOL_DRAINING)
        return rt_pool_state(pool) == RT_POOL_STOPPED;
    if (atomic_load(&pool->depth) != 0 || atomic_load(&pool->busy) != 0 ||
        !rt_poller_close(&pool->poller))
        return false;
    if (atomic_compare_exchange_strong(&pool->state, &state, RT_POOL_STOPPED))
        rt_pool_wake_all(pool);
    return true;
}

void rt_pool_worker_ended(struct rt_pool *pool)
{
    struct rt_job *job;

    /* Nobody but the last may touch the pool after this.
     * Partner: the same line in the other workers. */
    if (atomic_fetch_sub(&pool->live, 1) != 1)
        return;
    /* What the sources keep, the pool itself perhaps, goes with them. */
    rt_poller_free_retired(&pool->poller);
    rt_poller_shut(&pool->poller);
    job = swap_close_job(pool, CLOSE_JOB_TAKEN);
    rt_pool_unref(pool);
    /* Last of all, so that who waited for it finds nothing left. */
    if (job != NULL && job != CLOSE_JOB_TAKEN)
        rt_pool_complete(job, RT_OK);
}

bool rt_pool_wait(struct rt_pool *pool, uint64_t until)
{
    const struct timespec tick = { .tv_nsec = 500 * 1000 };

    while (atomic_load(&pool->live) != 0) {
        if (rt_now() >= until)
            return false;
        nanosleep(&tick, NULL);
    }
    return true;
}

void rt_pool_release(struct rt_pool *pool)
{
    if (pool == NULL)
        return;
    if (!rt_pool_forked(pool))
        rt_pool_close(pool, 0, NULL);
    rt_pool_unref(pool);
}
