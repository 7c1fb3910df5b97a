/* The end of a pool: drained, past its deadline, released, with sources, and
 * closed by one thread while others submit. */
#include <fcntl.h>

#include "calls.h"

static struct rt_mailbox *home;

static struct rt_pool *new_pool(unsigned workers)
{
    struct rt_pool *pool;

    MT_REQUIRE(rt_pool_new(workers, 4096, &pool) == RT_OK);
    return pool;
}

static void block_all(struct rt_pool *pool, struct call *calls, unsigned n, struct gate *gate)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        call_init(&calls[i], home, wait_at_gate, gate);
        MT_REQUIRE(rt_pool_submit(pool, &calls[i].job) == RT_OK);
    }
    MT_EVENTUALLY(atomic_load(&gate->waiting) == n);
}

static void drain(void)
{
    enum { QUEUED = 300 };
    struct rt_pool *pool = new_pool(2);
    struct call blocked[2], queued[QUEUED], close1, close2, late;
    struct gate gate = { 0, 0 };
    unsigned i;

    block_all(pool, blocked, 2, &gate);
    for (i = 0; i < QUEUED; i++) {
        call_init(&queued[i], home, NULL, NULL);
        MT_EQ(rt_pool_submit(pool, &queued[i].job), RT_OK);
    }
    call_init(&close1, home, NULL, NULL);
    call_init(&close2, home, NULL, NULL);
    call_init(&late, home, NULL, NULL);
    MT_EQ(rt_pool_close(pool, rt_now() + 600 * RT_SEC, &close1.job), RT_OK);
    MT_EQ(rt_pool_close(pool, RT_NEVER, &close2.job), RT_ECLOSED);
    MT_EQ(rt_job_state(&close2.job), RT_JOB_IDLE);
    MT_EQ(rt_pool_submit(pool, &late.job), RT_ECLOSED);
    MT_CHECK(!rt_pool_wait(pool, rt_now() + RT_MS));
    atomic_store(&gate.open, 1);
    while (atomic_load(&close1.homes) == 0) {
        if (!MT_CHECK(call_next(home, MT_HANG_MS) != NULL))
            break;
    }
    /* What closed the pool comes home last of all. */
    for (i = 0; i < QUEUED; i++) {
        MT_EQ(atomic_load(&queued[i].homes), 1);
        MT_EQ(queued[i].job.err, RT_OK);
    }
    MT_EQ(atomic_load(&blocked[0].homes) + atomic_load(&blocked[1].homes), 2);
    MT_EQ(rt_pool_close(pool, 0, &close2.job), RT_OK); /* has ended already */
    call_home(home, &close2);
    rt_pool_release(pool);
}

/* Its deadline passes while a worker is busy: the queued jobs fail at once, the
 * pool ends when the busy one has. */
static void past_the_deadline(unsigned workers, bool nearer)
{
    enum { QUEUED = 5 };
    struct rt_pool *pool = new_pool(workers);
    struct call blocked[4], queued[QUEUED], last;
    struct gate gate = { 0, 0 };
    unsigned i;

    block_all(pool, blocked, workers, &gate);
    for (i = 0; i < QUEUED; i++) {
        call_init(&queued[i], home, NULL, NULL);
        MT_EQ(rt_pool_submit(pool, &queued[i].job), RT_OK);
    }
    call_init(&last, home, NULL, NULL);
    MT_EQ(rt_pool_close(pool, nearer ? RT_NEVER : rt_now() + 20 * RT_MS, &last.job), RT_OK);
    if (nearer)
        MT_EQ(rt_pool_close(pool, rt_now() + RT_MS, NULL), RT_OK);
    mt_sleep_ms(40);
    MT_EQ(atomic_load(&last.homes), 0);
    atomic_store(&gate.open, 1);
    call_home(home, &last);
    for (i = 0; i < QUEUED; i++) {
        MT_EQ(queued[i].job.err, RT_ECLOSED);
        MT_EQ(atomic_load(&queued[i].runs), 0);
    }
    for (i = 0; i < workers; i++)
        MT_EQ(blocked[i].job.err, RT_OK);
    rt_pool_release(pool);
}

static void released(void)
{
    struct gate gate = { 0, 0 };
    unsigned fds = mt_fds(), i, round;

    for (round = 0; round < 100; round++) {
        struct rt_pool *pool = new_pool(1 + round % 4);
        struct call calls[20];

        for (i = 0; i < 20; i++) {
            call_init(&calls[i], home, NULL, NULL);
            MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
        }
        rt_pool_release(pool); /* nobody waits for it */
        for (i = 0; i < 20; i++)
            call_home(home, &calls[i]);
        for (i = 0; i < 20; i++)
            MT_EQ(calls[i].job.err, atomic_load(&calls[i].runs) == 1 ? RT_OK : RT_ECLOSED);
    }
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);

    /* While a call is under way: it ends as if nothing had happened. */
    {
        struct rt_pool *pool = new_pool(2);
        struct call calls[2];

        block_all(pool, calls, 2, &gate);
        rt_pool_release(pool);
        atomic_store(&gate.open, 1);
        call_home(home, &calls[0]);
        call_home(home, &calls[1]);
        MT_EQ(calls[0].job.err, RT_OK);
    }
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
}

/* Regression: a worker that sent the last job home without running it told
 * nobody, and a leader asleep waited for the deadline.  The worker is held up in
 * the middle of it: the mailbox's eventfd is full and blocks. */
static void last_job_is_not_run(void)
{
    const uint64_t full = UINT64_MAX - 1;
    struct rt_pool *pool = new_pool(3);
    struct call late, last;
    struct rt_mailbox *mb;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    MT_REQUIRE(fcntl(mb->bellfd, F_SETFL, 0) == 0);
    MT_REQUIRE(write(mb->bellfd, &full, sizeof full) == sizeof full);
    call_init(&late, mb, NULL, NULL);
    late.job.deadline = 1; /* passed long ago */
    MT_EQ(rt_pool_submit(pool, &late.job), RT_OK);
    MT_EVENTUALLY(rt_read(&mb->rings) == 1);
    mt_sleep_ms(20);
    call_init(&last, home, NULL, NULL);
    MT_EQ(rt_pool_close(pool, RT_NEVER, &last.job), RT_OK);
    mt_sleep_ms(20); /* everybody has looked and gone to sleep */
    MT_EQ(atomic_load(&pool->busy), 1);
    call_home(mb, &late);
    MT_EQ(late.job.err, RT_ETIMEOUT);
    call_home(home, &last);
    rt_pool_release(pool);
    rt_mailbox_begin(mb);
    MT_CHECK(rt_mailbox_next(mb) == NULL);
    rt_mailbox_release(mb);
}

/* ---- with a source that takes its time ------------------------------------ */

struct slow_source {
    struct rt_source source;
    atomic_uint retire, looks, closing, destroyed;
    uint64_t tick; /* how often it wants to be looked at */
};

static void slow_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct slow_source *s = RT_CONTAINER_OF(src, struct slow_source, source);

    (void)worker;
    atomic_fetch_add(&s->looks, 1);
    if (what & RT_CLOSING)
        atomic_fetch_add(&s->closing, 1);
    if (atomic_load(&s->retire) && rt_source_retire(src))
        return;
    rt_source_due(src, rt_after(rt_now(), s->tick));
}

static void slow_destroy(struct rt_source *src)
{
    atomic_fetch_add(&RT_CONTAINER_OF(src, struct slow_source, source)->destroyed, 1);
}

static void slow_init(struct slow_source *s, uint64_t tick)
{
    memset(s, 0, sizeof *s);
    s->source.handle = slow_handle;
    s->source.destroy = slow_destroy;
    s->tick = tick;
}

/* Regression: looking for what is due forgot the pool's own deadline, so that
 * the jobs behind a busy worker were never failed. */
static void deadline_with_a_source(void)
{
    struct rt_pool *pool = new_pool(2);
    struct slow_source s;
    struct gate gate = { 0, 0 };
    struct call blocked, queued, last;

    slow_init(&s, 3600 * RT_SEC);
    MT_REQUIRE(rt_pool_start(pool) == RT_OK);
    rt_source_add(&pool->poller, &s.source);
    rt_source_attend(&s.source, 0);
    MT_EVENTUALLY(atomic_load(&s.looks) == 1);
    block_all(pool, &blocked, 1, &gate);
    call_init(&queued, home, NULL, NULL);
    call_init(&last, home, NULL, NULL);
    MT_EQ(rt_pool_submit(pool, &queued.job), RT_OK);
    rt_source_due(&s.source, rt_now() + 20 * RT_MS);
    MT_EQ(rt_pool_close(pool, rt_now() + 100 * RT_MS, &last.job), RT_OK);
    call_home(home, &queued); /* though `blocked` goes on and on */
    MT_EQ(queued.job.err, RT_ECLOSED);
    /* Who comes late to the pool's end fails what is queued first. */
    MT_EVENTUALLY(atomic_load(&s.closing) >= 1);
    MT_EQ(atomic_load(&blocked.homes), 0);
    atomic_store(&gate.open, 1);
    call_home(home, &blocked);
    atomic_store(&s.retire, 1);
    rt_source_attend(&s.source, 0);
    call_home(home, &last);
    rt_pool_release(pool);
    MT_EQ(atomic_load(&s.destroyed), 1);
}

/* Regression: a source that retired as the last thing before the workers ended
 * was never destroyed, and with it went whatever it kept. */
static void last_source_is_destroyed(void)
{
    unsigned round, total = (unsigned)MT_SCALE(300);

    for (round = 0; round < total; round++) {
        struct rt_pool *pool = new_pool(1 + round % 3);
        struct slow_source s;
        struct call last;

        slow_init(&s, RT_NEVER);
        atomic_store(&s.retire, 1);
        MT_REQUIRE(rt_pool_start(pool) == RT_OK);
        rt_source_add(&pool->poller, &s.source);
        call_init(&last, home, NULL, NULL);
        MT_EQ(rt_pool_close(pool, RT_NEVER, &last.job), RT_OK);
        call_home(home, &last);
        /* Before the pool is let go of: the source may be what holds it. */
        if (!MT_EQ(atomic_load(&s.destroyed), 1))
            break;
        rt_pool_release(pool);
    }
}

/* Regression: a source that came after the last worker's last look was taken in,
 * and nobody was left to look at it. */
static void no_source_after_the_end(void)
{
    struct rt_pool *pool = new_pool(2), *fresh = new_pool(2);
    struct slow_source s, t;
    struct call last;

    slow_init(&s, RT_NEVER);
    slow_init(&t, RT_NEVER);
    MT_EQ(rt_pool_add_source(pool, &s.source), RT_OK);
    MT_CHECK(!rt_poller_close(&pool->poller)); /* there is one */
    atomic_store(&s.retire, 1);
    call_init(&last, home, NULL, NULL);
    MT_EQ(rt_pool_close(pool, RT_NEVER, &last.job), RT_OK);
    call_home(home, &last);
    MT_EQ(rt_pool_add_source(pool, &t.source), RT_ECLOSED);
    MT_EQ(rt_source_add(&pool->poller, &t.source), RT_ECLOSED);
    rt_pool_release(pool);
    MT_EQ(rt_pool_close(fresh, RT_NEVER, NULL), RT_OK); /* never started */
    MT_EQ(rt_pool_add_source(fresh, &t.source), RT_ECLOSED);
    rt_pool_release(fresh);
    MT_EQ(atomic_load(&s.destroyed), 1);
    MT_EQ(atomic_load(&t.destroyed), 0);
}

/* ---- closing while others submit ------------------------------------------ */

struct racer {
    struct rt_pool *pool;
    atomic_uint *go;
    unsigned accepted, refused;
};

static void *race_to_submit(void *arg)
{
    enum { MANY = 50 };
    struct racer *r = arg;
    struct call calls[MANY];
    struct rt_mailbox *mb;
    unsigned i, spins = 0;
    bool in[MANY];

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    while (!atomic_load(r->go))
        mt_relax(&spins);
    for (i = 0; i < MANY; i++) {
        call_init(&calls[i], mb, NULL, NULL);
        in[i] = rt_pool_submit(r->pool, &calls[i].job) == RT_OK;
        r->accepted += in[i];
        r->refused += !in[i];
    }
    for (i = 0; i < MANY; i++) {
        if (in[i])
            call_home(mb, &calls[i]);
    }
    rt_mailbox_release(mb);
    return NULL;
}

static void close_while_submitting(uint64_t *rnd)
{
    unsigned round, total = (unsigned)MT_SCALE(400), accepted = 0, refused = 0;

    for (round = 0; round < total; round++) {
        struct rt_pool *pool = new_pool(1 + round % 3);
        struct racer racers[2];
        atomic_uint go = 0;
        pthread_t threads[2];
        struct call last;
        unsigned i, pauses = (unsigned)(mt_rand(rnd) % 3000);

        if (round % 4)
            MT_REQUIRE(rt_pool_start(pool) == RT_OK);
        for (i = 0; i < 2; i++) {
            racers[i] = (struct racer){ .pool = pool, .go = &go };
            threads[i] = mt_spawn(race_to_submit, &racers[i]);
        }
        call_init(&last, home, NULL, NULL);
        atomic_store(&go, 1);
        for (i = 0; i < pauses; i++)
            MT_PAUSE();
        MT_EQ(rt_pool_close(pool, round % 2 ? RT_NEVER : 0, &last.job), RT_OK);
        call_home(home, &last);
        for (i = 0; i < 2; i++) {
            mt_join(threads[i]);
            accepted += racers[i].accepted;
            refused += racers[i].refused;
        }
        rt_pool_release(pool);
    }
    printf("closed while submitting: %u taken, %u refused\n", accepted, refused);
    MT_EQ(accepted + refused, total * 100);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned fds;

    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    fds = mt_fds();
    drain();
    past_the_deadline(1, false);
    past_the_deadline(3, false);
    past_the_deadline(2, true);
    released();
    deadline_with_a_source();
    last_source_is_destroyed();
    no_source_after_the_end();
    last_job_is_not_run();
    close_while_submitting(&rnd);
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(home);
    return mt_report("close");
}
