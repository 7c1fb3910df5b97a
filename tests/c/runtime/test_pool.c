/* The pool: starting, running, bounds, what its workers are. */
#include <signal.h>
#include <sys/mman.h>

#include "calls.h"

static struct rt_mailbox *home;

static void arguments(void)
{
    struct rt_pool *pool = NULL;

    MT_EQ(rt_pool_new(0, 16, &pool), RT_EINVAL);
    MT_EQ(rt_pool_new(RT_MAX_WORKERS + 1, 16, &pool), RT_EINVAL);
    MT_EQ(rt_pool_new(1, 0, &pool), RT_EINVAL);
    MT_EQ(rt_pool_new(1, (1u << 24) + 1, &pool), RT_EINVAL);
    MT_CHECK(pool == NULL);
    rt_pool_release(NULL);
}

static void never_started(void)
{
    unsigned fds = mt_fds();
    struct rt_pool *pool;
    struct call close1, close2, late;

    MT_REQUIRE(rt_pool_new(RT_MAX_WORKERS, 1 << 24, &pool) == RT_OK);
    MT_EVENTUALLY(mt_threads() == 0);
    call_init(&close1, home, NULL, NULL);
    call_init(&close2, home, NULL, NULL);
    call_init(&late, home, NULL, NULL);
    MT_EQ(rt_pool_close(pool, RT_NEVER, &close1.job), RT_OK);
    call_home(home, &close1);
    MT_EQ(rt_pool_close(pool, RT_NEVER, &close2.job), RT_OK); /* ended already */
    call_home(home, &close2);
    MT_EQ(rt_pool_submit(pool, &late.job), RT_ECLOSED);
    MT_EQ(rt_job_state(&late.job), RT_JOB_IDLE);
    MT_CHECK(rt_pool_wait(pool, 0));
    rt_pool_release(pool);
    MT_REQUIRE(rt_pool_new(3, 16, &pool) == RT_OK);
    rt_pool_release(pool);
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
}

/* ---- what a worker is ---------------------------------------------------- */

static void look_at_worker(struct call *call, struct rt_worker *worker)
{
    char name[32], wanted[32];
    pthread_attr_t attr;
    size_t stack = 0;
    sigset_t set;
    int sig;

    snprintf(wanted, sizeof wanted, "offloop-w%u", worker->index);
    MT_EQ(pthread_getname_np(pthread_self(), name, sizeof name), 0);
    MT_STR_EQ(name, wanted);
    MT_EQ(pthread_sigmask(SIG_BLOCK, NULL, &set), 0);
    for (sig = 1; sig <= SIGRTMAX; sig++) {
        bool never = sig == SIGKILL || sig == SIGSTOP || (sig > 31 && sig < SIGRTMIN);

        if (!never && !sigismember(&set, sig))
            MT_CHECK(!"a worker takes signals");
    }
    MT_EQ(pthread_getattr_np(pthread_self(), &attr), 0);
    pthread_attr_getstacksize(&attr, &stack);
    pthread_attr_destroy(&attr);
    MT_CHECK(stack <= (size_t)4 << 20);
    wait_at_gate(call, worker);
}

static void first_use(void)
{
    struct gate gate = { 0, 0 };
    struct call calls[5];
    struct rt_pool *pool;
    unsigned i;
    sigset_t before, after;

    MT_REQUIRE(rt_pool_new(5, 16, &pool) == RT_OK);
    MT_EQ(pthread_sigmask(SIG_BLOCK, NULL, &before), 0);
    for (i = 0; i < 5; i++) {
        call_init(&calls[i], home, look_at_worker, &gate);
        MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
    }
    MT_EQ(pthread_sigmask(SIG_BLOCK, NULL, &after), 0);
    MT_EQ(sigismember(&before, SIGINT), sigismember(&after, SIGINT));
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 5); /* all five at once */
    MT_EQ(mt_threads(), 5);
    atomic_store(&gate.open, 1);
    for (i = 0; i < 5; i++)
        call_home(home, &calls[i]);
    end_pool(pool, home);
    MT_EVENTUALLY(mt_threads() == 0);
}

/* ---- cancelling, deadlines, bounds --------------------------------------- */

static void bounds(void)
{
    struct gate gate = { 0, 0 };
    struct call running, queued[3], extra, late;
    struct rt_pool *pool;
    unsigned i;

    MT_REQUIRE(rt_pool_new(1, 3, &pool) == RT_OK);
    call_init(&running, home, wait_at_gate, &gate);
    MT_EQ(rt_pool_submit(pool, &running.job), RT_OK);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    for (i = 0; i < 3; i++) {
        call_init(&queued[i], home, NULL, NULL);
        if (i == 1)
            queued[i].job.deadline = rt_now() + RT_MS;
        MT_EQ(rt_pool_submit(pool, &queued[i].job), RT_OK);
    }
    call_init(&extra, home, NULL, NULL);
    MT_EQ(rt_pool_submit(pool, &extra.job), RT_EFULL);
    MT_EQ(rt_job_state(&extra.job), RT_JOB_IDLE);
    MT_EQ(atomic_load(&pool->depth), 3);
    MT_CHECK(rt_job_cancel(&queued[0].job));
    MT_CHECK(rt_job_cancel(&running.job));
    MT_CHECK(!rt_job_cancel(&running.job));
    mt_sleep_ms(5);
    atomic_store(&gate.open, 1);
    call_home(home, &running);
    for (i = 0; i < 3; i++)
        call_home(home, &queued[i]);
    MT_EQ(running.job.err, RT_OK); /* it was run; its owner had let go */
    MT_EQ(queued[0].job.err, RT_ECANCELLED);
    MT_EQ(queued[1].job.err, RT_ETIMEOUT);
    MT_EQ(queued[2].job.err, RT_OK);
    MT_EQ(atomic_load(&queued[0].runs), 0);
    MT_EQ(atomic_load(&queued[1].runs), 0);
    MT_EQ(atomic_load(&queued[2].runs), 1);
    MT_EQ(rt_pool_submit(pool, &extra.job), RT_OK); /* there is room again */
    call_home(home, &extra);
    MT_EQ(atomic_load(&pool->depth), 0);
    MT_EQ(rt_read(&pool->depth_high), 3);
    call_init(&late, home, NULL, NULL);
    end_pool(pool, home);
}

/* More jobs than the ring holds: those left over are run, in order. */
static uintptr_t last_run;

static void in_order(struct call *call, struct rt_worker *worker)
{
    (void)worker;
    if ((uintptr_t)call->arg != ++last_run)
        MT_CHECK(!"one worker ran jobs out of order");
}

static void more_than_the_ring(void)
{
    enum { MANY = 20000 };
    struct call *calls = calloc(MANY, sizeof *calls), first;
    struct gate gate = { 0, 0 };
    struct rt_pool *pool;
    uintptr_t i;

    MT_REQUIRE(calls != NULL && rt_pool_new(1, 65536, &pool) == RT_OK);
    call_init(&first, home, wait_at_gate, &gate);
    MT_EQ(rt_pool_submit(pool, &first.job), RT_OK);
    for (i = 0; i < MANY; i++) {
        call_init(&calls[i], home, in_order, (void *)(i + 1));
        if (rt_pool_submit(pool, &calls[i].job) != RT_OK)
            MT_CHECK(!"a queue with room refused a job");
    }
    atomic_store(&gate.open, 1);
    for (i = 0; i < MANY; i++)
        call_home(home, &calls[i]);
    MT_EQ(last_run, MANY);
    call_home(home, &first);
    end_pool(pool, home);
    free(calls);
}

/* ---- several submitters --------------------------------------------------- */

struct submitter {
    struct rt_pool *pool;
    unsigned total, window;
};

static void *submit_and_drain(void *arg)
{
    struct submitter *s = arg;
    struct call *calls = calloc(s->window, sizeof *calls), *call;
    unsigned sent = 0, done = 0, i;
    struct rt_mailbox *mb;

    MT_REQUIRE(calls != NULL && rt_mailbox_new(&mb) == RT_OK);
    for (i = 0; i < s->window && sent < s->total; i++, sent++) {
        call_init(&calls[i], mb, NULL, NULL);
        MT_REQUIRE(rt_pool_submit(s->pool, &calls[i].job) == RT_OK);
    }
    while (done < s->total && (call = call_next(mb, MT_HANG_MS)) != NULL) {
        done++;
        if (call->job.err != RT_OK || atomic_load(&call->runs) != 1)
            MT_CHECK(!"a job came home without having been run once");
        if (sent < s->total) {
            sent++;
            call_init(call, mb, NULL, NULL);
            MT_REQUIRE(rt_pool_submit(s->pool, &call->job) == RT_OK);
        }
    }
    MT_EQ(done, s->total);
    rt_mailbox_release(mb);
    free(calls);
    return NULL;
}

static void several_submitters(unsigned workers, unsigned window)
{
    struct submitter s = { .total = (unsigned)MT_SCALE(20000), .window = window };
    pthread_t threads[3];
    uint64_t jobs = 0;
    unsigned i;

    MT_REQUIRE(rt_pool_new(workers, 4096, &s.pool) == RT_OK);
    for (i = 0; i < 3; i++)
        threads[i] = mt_spawn(submit_and_drain, &s);
    for (i = 0; i < 3; i++)
        mt_join(threads[i]);
    for (i = 0; i < workers; i++)
        jobs += rt_read(&s.pool->workers[i].stats.jobs);
    MT_EQ(jobs, 3 * s.total);
    MT_EQ(rt_read(&s.pool->submits), 3 * s.total);
    /* One submit wakes one worker at most, be it from its sleep or from epoll;
     * as many may come on top when somebody takes over the lead. */
    MT_CHECK(rt_read(&s.pool->wakes) + rt_read(&s.pool->poller.bells) <= 3 * s.total + workers);
    printf("%u workers, window %u: %u jobs, %llu wake-ups, %llu bells\n", workers, window,
           3 * s.total, (unsigned long long)rt_read(&s.pool->wakes),
           (unsigned long long)rt_read(&s.pool->poller.bells));
    end_pool(s.pool, home);
}

/* Many submits before anybody looks: still one wake-up, not one for each. */
static void one_wake_up(void)
{
    struct gate gate = { 0, 0 };
    struct call blocked[2], calls[100];
    struct rt_pool *pool;
    uint64_t before;
    unsigned i;

    MT_REQUIRE(rt_pool_new(2, 4096, &pool) == RT_OK);
    for (i = 0; i < 2; i++) {
        call_init(&blocked[i], home, wait_at_gate, &gate);
        MT_EQ(rt_pool_submit(pool, &blocked[i].job), RT_OK);
    }
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 2);
    before = rt_read(&pool->wakes) + rt_read(&pool->poller.bells);
    for (i = 0; i < 100; i++) {
        call_init(&calls[i], home, NULL, NULL);
        MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
    }
    MT_EQ(rt_read(&pool->wakes) + rt_read(&pool->poller.bells), before);
    atomic_store(&gate.open, 1);
    for (i = 0; i < 100; i++)
        call_home(home, &calls[i]);
    for (i = 0; i < 2; i++)
        call_home(home, &blocked[i]);
    end_pool(pool, home);
}

int main(void)
{
    unsigned fds;

    mt_seed();
    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    fds = mt_fds();
    arguments();
    never_started();
    first_use();
    bounds();
    more_than_the_ring();
    several_submitters(1, 1);
    several_submitters(2, 1);
    several_submitters(4, 3);
    several_submitters(2, 500);
    one_wake_up();
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(home);
    return mt_report("pool");
}
