/* Everything at once: threads submit, take back and drain, attend to sources and
 * set deadlines, with 1, 2 and 4 workers. Every job comes home exactly once. */
#include "calls.h"

#define SUBMITTERS 3
#define WINDOW 256
#define SOURCES 8

static struct rt_pool *pool;
static _Atomic uint64_t operations;
static uint64_t jobs_each;

/* ---- sources that look for what was published -------------------------------- */

struct board {
    struct rt_source source;
    _Atomic uint64_t made, seen, looks;
    atomic_uint destroyed;
};

static struct board boards[SOURCES];

static void board_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct board *b = RT_CONTAINER_OF(src, struct board, source);
    uint64_t looks = atomic_fetch_add(&b->looks, 1);
    uint64_t made;

    if (looks % 64 == 0) /* as a handler does that is about to take long */
        rt_worker_pass_lead(worker);
    made = atomic_load(&b->made);
    if (atomic_load(&b->seen) < made)
        rt_atomic_max(&b->seen, made);
    if (what & RT_CLOSING)
        (void)rt_source_retire(src);
}

static void board_destroy(struct rt_source *src)
{
    atomic_fetch_add(&RT_CONTAINER_OF(src, struct board, source)->destroyed, 1);
}

/* ---- jobs --------------------------------------------------------------------- */

static void work(struct call *call, struct rt_worker *worker)
{
    uintptr_t n = (uintptr_t)call->arg;

    (void)worker;
    while (n-- > 0)
        MT_PAUSE();
}

struct tally {
    uint64_t ok, cancelled, timed_out, full, ops;
};

static bool put_in(struct call *call, struct rt_mailbox *mb, uint64_t rnd, struct tally *t)
{
    bool cancel = rnd % 5 == 0;
    int err;

    call_init(call, mb, work, (void *)(uintptr_t)(rnd >> 8 & 31));
    if ((rnd >> 16) % 50 == 0)
        call->job.deadline = rt_now() + (rnd >> 24) % (2 * RT_MS);
    err = rt_pool_submit(pool, &call->job);
    if (err == RT_EFULL) {
        t->full++;
        return false;
    }
    MT_REQUIRE(err == RT_OK);
    t->ops++;
    if (cancel) {
        rt_job_cancel(&call->job);
        t->ops++;
    }
    return true;
}

static void count_home(struct call *call, struct tally *t)
{
    unsigned runs = atomic_load(&call->runs);

    t->ops++;
    if (atomic_fetch_add(&call->homes, 1) != 0)
        MT_CHECK(!"a job came home twice");
    switch (call->job.err) {
    case RT_OK: t->ok++; break;
    case RT_ECANCELLED: t->cancelled++; break;
    case RT_ETIMEOUT: t->timed_out++; break;
    default: MT_CHECK(!"a job failed"); break;
    }
    if (runs != (call->job.err == RT_OK))
        MT_CHECK(!"a job was run and failed, or not run and done");
}

static void poke_a_board(uint64_t rnd, struct tally *t)
{
    struct board *b = &boards[rnd % SOURCES];

    atomic_fetch_add(&b->made, 1);
    if (rnd >> 8 & 1)
        rt_source_attend(&b->source, 0);
    else
        rt_source_due(&b->source, rt_now() + (rnd >> 16) % RT_MS);
    t->ops++;
}

static void *submitter(void *arg)
{
    uint64_t rnd = (uintptr_t)arg, sent = 0, home = 0;
    struct call *calls = calloc(WINDOW, sizeof *calls);
    struct call *spare[WINDOW];
    unsigned spares = WINDOW, i;
    struct tally t = { 0, 0, 0, 0, 0 };
    struct rt_mailbox *mb;

    MT_REQUIRE(calls != NULL && rt_mailbox_new(&mb) == RT_OK);
    for (i = 0; i < WINDOW; i++)
        spare[i] = &calls[i];
    while (home < jobs_each) {
        unsigned burst = 1 + (unsigned)(mt_rand(&rnd) % 64), budget;
        struct rt_job *job;

        for (; burst > 0 && spares > 0 && sent < jobs_each; burst--) {
            if (!put_in(spare[spares - 1], mb, mt_rand(&rnd), &t))
                break;
            spares--;
            sent++;
            if (sent % 4 == 0)
                poke_a_board(mt_rand(&rnd), &t);
        }
        if ((spares == 0 || sent == jobs_each) && !mt_readable(mb->fd, MT_HANG_MS)) {
            MT_CHECK(!"jobs did not come home");
            break;
        }
        rt_mailbox_begin(mb);
        for (budget = 100; budget > 0 && (job = rt_mailbox_next(mb)) != NULL; budget--) {
            struct call *call = call_of(job);

            count_home(call, &t);
            spare[spares++] = call;
            home++;
        }
        if (budget == 0)
            rt_mailbox_again(mb);
    }
    MT_EQ(home, jobs_each);
    MT_EQ(t.ok + t.cancelled + t.timed_out, jobs_each);
    atomic_fetch_add(&operations, t.ops);
    rt_mailbox_release(mb);
    free(calls);
    return NULL;
}

static void round_with(unsigned workers, struct rt_mailbox *home, uint64_t *rnd)
{
    pthread_t threads[SUBMITTERS];
    uint64_t start = rt_now();
    unsigned i;

    /* Room for half of what the submitters may have out: it is full at times. */
    MT_REQUIRE(rt_pool_new(workers, SUBMITTERS * WINDOW / 2, &pool) == RT_OK);
    for (i = 0; i < SOURCES; i++) {
        memset(&boards[i], 0, sizeof boards[i]);
        boards[i].source.handle = board_handle;
        boards[i].source.destroy = board_destroy;
        MT_EQ(rt_pool_add_source(pool, &boards[i].source), RT_OK);
    }
    for (i = 0; i < SUBMITTERS; i++)
        threads[i] = mt_spawn(submitter, (void *)(uintptr_t)mt_rand(rnd));
    for (i = 0; i < SUBMITTERS; i++)
        mt_join(threads[i]);
    for (i = 0; i < SOURCES; i++) {
        atomic_fetch_add(&operations, rt_read(&boards[i].looks));
        MT_EVENTUALLY(atomic_load(&boards[i].seen) == atomic_load(&boards[i].made));
    }
    MT_EQ(atomic_load(&pool->depth), 0);
    MT_EQ(rt_read(&pool->submits), SUBMITTERS * jobs_each);
    end_pool(pool, home);
    for (i = 0; i < SOURCES; i++)
        MT_EQ(atomic_load(&boards[i].destroyed), 1);
    printf("%u workers: %llu operations so far, %llu ms\n", workers,
           (unsigned long long)atomic_load(&operations),
           (unsigned long long)((rt_now() - start) / RT_MS));
}

int main(void)
{
    static const unsigned workers[] = { 1, 2, 4 };
    uint64_t rnd = mt_seed(), wanted = MT_SCALE(10 * 1000 * 1000);
    unsigned fds, i;
    struct rt_mailbox *home;

    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    fds = mt_fds();
    jobs_each = wanted / (2 * 3 * SUBMITTERS); /* two operations a job and more */
    for (i = 0; i < 3; i++)
        round_with(workers[i], home, &rnd);
    MT_CHECK(atomic_load(&operations) >= wanted * 99 / 100);
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(home);
    return mt_report("stress");
}
