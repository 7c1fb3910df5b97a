/* Waking: a job that is queued while a worker is free is run, whatever the others
 * are at, and a source is looked at while any worker is free. */
#include "hosted.h"

static struct rt_mailbox *home;

static void silent_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    (void)worker;
    if (what & RT_CLOSING)
        (void)rt_source_retire(src);
}

static void silent_destroy(struct rt_source *src)
{
    (void)src;
}

static void silent_init(struct rt_source *src)
{
    memset(src, 0, sizeof *src);
    src->handle = silent_handle;
    src->destroy = silent_destroy;
}

/* ---- two jobs that need each other ----------------------------------------- */

static struct rt_pool *pool;
static atomic_uint met[2], failed;
static unsigned rounds;
static bool hosted; /* and their workers look for the next before they sleep */

struct half {
    unsigned me, round;
};

/* Run until the other half runs as well. */
static void meet(struct call *call, struct rt_worker *worker)
{
    struct half *half = call->arg;
    uint64_t limit = rt_now() + MT_HANG_MS * RT_MS;
    unsigned spins = 0;

    (void)worker;
    atomic_store(&met[half->me], half->round);
    while (atomic_load(&met[!half->me]) < half->round && !atomic_load(&failed)) {
        mt_relax(&spins);
        if (spins % 4096 == 0 && rt_now() > limit) {
            MT_CHECK(!"a job waits in the queue while a worker sleeps");
            atomic_store(&failed, 1);
        }
    }
}

static void *submit_halves(void *arg)
{
    struct half half = { .me = arg != NULL };
    uint64_t rnd = half.me;
    struct rt_mailbox *mb;
    struct call call;
    unsigned i;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    for (half.round = 1; half.round <= rounds && !atomic_load(&failed); half.round++) {
        unsigned pauses = (unsigned)(mt_rand(&rnd) % 200);

        for (i = 0; i < pauses; i++)
            MT_PAUSE();
        (hosted ? hosted_init : call_init)(&call, mb, meet, &half);
        MT_REQUIRE(rt_pool_submit(pool, &call.job) == RT_OK);
        call_home(mb, &call);
    }
    rt_mailbox_release(mb);
    return NULL;
}

static void partners(bool with_source, bool watching)
{
    struct rt_source src;
    pthread_t threads[2];

    rounds = (unsigned)MT_SCALE(25000);
    atomic_store(&met[0], 0);
    atomic_store(&met[1], 0);
    hosted = watching;
    if (watching) /* for so short that it is often over when the next comes */
        pool = watching_pool(3, 3 * RT_US);
    else
        MT_REQUIRE(rt_pool_new(3, 64, &pool) == RT_OK);
    if (with_source) { /* one worker leads and takes no jobs */
        silent_init(&src);
        MT_EQ(rt_pool_add_source(pool, &src), RT_OK);
    }
    threads[0] = mt_spawn(submit_halves, NULL);
    threads[1] = mt_spawn(submit_halves, &src);
    mt_join(threads[0]);
    mt_join(threads[1]);
    MT_EQ(atomic_load(&met[0]), rounds);
    MT_EQ(atomic_load(&met[1]), rounds);
    end_pool(pool, home);
}

/* ---- the lead passed on while a job comes ------------------------------------- */

struct holder {
    struct rt_source source;
    struct gate gate;
    atomic_uint out;
};

static void hold(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct holder *h = RT_CONTAINER_OF(src, struct holder, source);
    unsigned spins = 0;

    if (what & RT_CLOSING) {
        (void)rt_source_retire(src);
        return;
    }
    rt_worker_pass_lead(worker);
    atomic_store(&h->gate.waiting, 1);
    while (!atomic_load(&h->gate.open))
        mt_relax(&spins);
    atomic_store(&h->out, 1);
}

/* A worker that was called for a job and takes the lead instead must call
 * another one. */
static void called_and_leads(uint64_t *rnd)
{
    unsigned round, total = (unsigned)MT_SCALE(20000), i;
    struct holder h;

    MT_REQUIRE(rt_pool_new(3, 64, &pool) == RT_OK);
    memset(&h, 0, sizeof h);
    silent_init(&h.source);
    h.source.handle = hold;
    MT_EQ(rt_pool_add_source(pool, &h.source), RT_OK);
    for (round = 0; round < total; round++) {
        unsigned pauses = (unsigned)(mt_rand(rnd) % 2000);
        unsigned spins = 0;
        struct call call;

        atomic_store(&h.gate.waiting, 0);
        atomic_store(&h.gate.open, 0);
        atomic_store(&h.out, 0);
        call_init(&call, home, NULL, NULL);
        rt_source_attend(&h.source, 0);
        for (i = 0; i < pauses; i++)
            MT_PAUSE();
        MT_REQUIRE(rt_pool_submit(pool, &call.job) == RT_OK);
        if (!call_home(home, &call)) /* one is held up, two are free */
            break;
        while (atomic_load(&h.gate.waiting) == 0)
            mt_relax(&spins);
        atomic_store(&h.gate.open, 1);
        while (atomic_load(&h.out) == 0)
            mt_relax(&spins);
    }
    MT_EQ(round, total);
    atomic_store(&h.gate.open, 1);
    end_pool(pool, home);
}

/* ---- a source that comes when nobody leads --------------------------------------- */

/* Regression: a leader left for a job while its pool had no source, another worker
 * slept, and the first source that came was looked at by nobody. */
static void late_source(void)
{
    struct gate gate = { 0, 0 };
    struct call call;
    struct holder h;

    MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    MT_REQUIRE(rt_pool_start(pool) == RT_OK);
    MT_EVENTUALLY(atomic_load(&pool->idle[0]) != 0 && atomic_load(&pool->poller.sleep) != 0);
    /* As if a worker had been called and were on its way: nobody is woken, and
     * the leader comes upon the job by itself. */
    atomic_store(&pool->coming, 1);
    call_init(&call, home, wait_at_gate, &gate);
    MT_REQUIRE(rt_pool_submit(pool, &call.job) == RT_OK);
    rt_poller_bell(&pool->poller);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    MT_EQ(atomic_load(&pool->lead), 0);

    memset(&h, 0, sizeof h);
    silent_init(&h.source);
    h.source.handle = hold;
    atomic_store(&h.gate.open, 1);
    MT_EQ(rt_pool_add_source(pool, &h.source), RT_OK);
    rt_source_attend(&h.source, 0);
    MT_EVENTUALLY(atomic_load(&h.out) == 1); /* while the call waits */
    atomic_store(&gate.open, 1);
    call_home(home, &call);
    end_pool(pool, home);
}

int main(void)
{
    uint64_t rnd = mt_seed();

    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    partners(false, false);
    partners(true, false);
    partners(false, true);
    partners(true, true);
    called_and_leads(&rnd);
    late_source();
    rt_mailbox_release(home);
    return mt_report("wake");
}
