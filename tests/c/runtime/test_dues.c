/* Deadlines of many sources: the heap against a plain list, their order through the
 * poller, and sources that retire while others set their deadlines. */
#include "calls.h"

static struct rt_mailbox *home;

/* ---- the heap alone ------------------------------------------------------------------ */

static void heap_against_list(uint64_t *rnd)
{
    enum { MANY = 200 };
    static struct rt_source sources[MANY];
    struct rt_dues dues = { 0 };
    bool in[MANY] = { false };
    unsigned step, i;

    MT_REQUIRE(rt_dues_reserve(&dues, 1));
    MT_REQUIRE(rt_dues_reserve(&dues, MANY));
    for (step = 0; step < MT_SCALE(200000); step++) {
        uint64_t luck = mt_rand(rnd), when = 0, least = RT_NEVER;
        struct rt_source *src = &sources[luck % MANY], *next;

        if (luck >> 32 & 1) {
            rt_dues_put(&dues, src, luck >> 33 & 0xff); /* few values: many are equal */
            in[luck % MANY] = true;
        } else {
            rt_dues_remove(&dues, src);
            in[luck % MANY] = false;
        }
        for (i = 0; i < MANY; i++) {
            if (in[i] && sources[i].key < least)
                least = sources[i].key;
        }
        next = rt_dues_next(&dues, &when);
        if ((next == NULL) != (least == RT_NEVER) || (next != NULL && when != least)) {
            MT_CHECK(!"the heap's top is not the least");
            break;
        }
    }
    for (i = 0; i < MANY; i++)
        rt_dues_remove(&dues, &sources[i]);
    MT_EQ(dues.count, 0);
    rt_dues_fini(&dues);
}

/* ---- through the poller --------------------------------------------------------------- */

struct timer {
    struct rt_source source;
    uint64_t due;
    atomic_uint told, early, destroyed;
    atomic_uint going; /* 1: retire at the next look */
};

static _Atomic uint64_t last_told;
static atomic_uint out_of_order;

static void timer_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct timer *t = RT_CONTAINER_OF(src, struct timer, source);

    (void)worker;
    if ((what & RT_DUE) && !(what & RT_CLOSING)) {
        if (rt_now() < t->due)
            atomic_fetch_add(&t->early, 1);
        if (t->due < atomic_exchange(&last_told, t->due))
            atomic_fetch_add(&out_of_order, 1);
        atomic_fetch_add(&t->told, 1);
    }
    if ((what & RT_CLOSING) || atomic_load(&t->going))
        (void)rt_source_retire(src);
}

static void timer_destroy(struct rt_source *src)
{
    atomic_fetch_add(&RT_CONTAINER_OF(src, struct timer, source)->destroyed, 1);
}

static void timer_add(struct rt_pool *pool, struct timer *t)
{
    memset(t, 0, sizeof *t);
    t->source.handle = timer_handle;
    t->source.destroy = timer_destroy;
    MT_REQUIRE(rt_pool_add_source(pool, &t->source) == RT_OK);
}

/* The one worker stays here until all deadlines are set, however long that takes: told
 * in between, the first would be no measure for the last. */
struct keeper {
    struct rt_source source;
    struct gate gate;
};

static void keeper_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct keeper *keeper = RT_CONTAINER_OF(src, struct keeper, source);

    (void)worker;
    if (what & RT_CLOSING) {
        (void)rt_source_retire(src);
        return;
    }
    atomic_store(&keeper->gate.waiting, 1);
    while (!atomic_load(&keeper->gate.open))
        mt_sleep_ms(1);
}

static void keeper_destroy(struct rt_source *src)
{
    (void)src;
}

static void in_order(uint64_t *rnd)
{
    unsigned many = (unsigned)MT_SCALE(5000), i;
    struct timer *timers = calloc(many, sizeof *timers);
    struct keeper keeper = { .source = { .handle = keeper_handle, .destroy = keeper_destroy } };
    struct rt_pool *pool;
    uint64_t start;

    MT_REQUIRE(timers != NULL && rt_pool_new(1, 64, &pool) == RT_OK);
    MT_REQUIRE(rt_pool_add_source(pool, &keeper.source) == RT_OK);
    for (i = 0; i < many; i++)
        timer_add(pool, &timers[i]);
    rt_source_attend(&keeper.source, 0);
    MT_EVENTUALLY(atomic_load(&keeper.gate.waiting) == 1);
    start = rt_now() + 50 * RT_MS;
    for (i = 0; i < many; i++) {
        timers[i].due = start + mt_rand(rnd) % (200 * RT_MS);
        if (i % 3 == 0)
            rt_source_due(&timers[i].source, start + 60 * RT_SEC); /* first far away */
        rt_source_due(&timers[i].source, timers[i].due);
    }
    atomic_store(&keeper.gate.open, 1);
    for (i = 0; i < many; i++)
        MT_EVENTUALLY(atomic_load(&timers[i].told) == 1);
    MT_EQ(atomic_load(&out_of_order), 0);
    for (i = 0; i < many; i++)
        MT_EQ(atomic_load(&timers[i].early), 0);
    end_pool(pool, home);
    for (i = 0; i < many; i++) {
        MT_EQ(atomic_load(&timers[i].told), 1);
        MT_EQ(atomic_load(&timers[i].destroyed), 1);
    }
    free(timers);
}

/* ---- retiring ---------------------------------------------------------------------------- */

static struct timer *goers;
static atomic_uint goer_count, stop;

static void *hurrier(void *arg)
{
    uint64_t rnd = (uintptr_t)arg;
    unsigned spins = 0;

    while (!atomic_load(&stop)) {
        unsigned count = atomic_load(&goer_count);

        if (count > 0)
            rt_source_due(&goers[mt_rand(&rnd) % count].source,
                          rt_now() + mt_rand(&rnd) % RT_MS);
        mt_relax(&spins);
    }
    return NULL;
}

static void retire_while_lowered(void)
{
    unsigned many = (unsigned)MT_SCALE(3000), i;
    struct rt_pool *pool;
    pthread_t threads[2];

    goers = calloc(many, sizeof *goers);
    MT_REQUIRE(goers != NULL && rt_pool_new(2, 64, &pool) == RT_OK);
    for (i = 0; i < 2; i++)
        threads[i] = mt_spawn(hurrier, (void *)(uintptr_t)(i + 1));
    for (i = 0; i < many; i++) {
        timer_add(pool, &goers[i]);
        atomic_store(&goer_count, i + 1); /* its memory stays until the threads are done */
        if (i >= 20) {
            atomic_store(&goers[i - 20].going, 1);
            rt_source_attend(&goers[i - 20].source, 0);
        }
    }
    for (i = 0; i + 20 < many; i++)
        MT_EVENTUALLY(atomic_load(&goers[i].destroyed) == 1);
    atomic_store(&stop, 1);
    for (i = 0; i < 2; i++)
        mt_join(threads[i]);
    end_pool(pool, home);
    for (i = 0; i < many; i++)
        MT_EQ(atomic_load(&goers[i].destroyed), 1);
    free(goers);
}

int main(void)
{
    uint64_t rnd = mt_seed();

    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    heap_against_list(&rnd);
    in_order(&rnd);
    retire_while_lowered();
    MT_EVENTUALLY(mt_threads() == 0);
    rt_mailbox_release(home);
    return mt_report("dues");
}
