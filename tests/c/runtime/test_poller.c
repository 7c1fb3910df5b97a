/* The poller: sources that are attended to, due, readable, retired; the lead
 * passed on in the middle of a turn; a thousand sources. */
#include <fcntl.h>
#include <sys/socket.h>

#include "calls.h"

static struct rt_mailbox *home;

/* A source that counts what it is told and reads its descriptor dry. */
struct probe {
    struct rt_source source;
    int fd;
    atomic_uint looks, attended, due, readable, writable, hangups, destroyed;
    _Atomic uint64_t bytes;
    atomic_uint retire;   /* 1: at the next look */
    atomic_uint busy;     /* 1: somebody is looking */
    struct gate *pass_at; /* pass the lead on and wait there */
    struct gate *hold_at; /* wait there first, leading */
};

static void probe_read(struct probe *p)
{
    char buf[512];
    ssize_t n;

    while (p->fd >= 0 && (n = read(p->fd, buf, sizeof buf)) > 0)
        atomic_fetch_add(&p->bytes, (uint64_t)n);
}

static void probe_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct probe *p = RT_CONTAINER_OF(src, struct probe, source);
    struct gate *gate = p->pass_at;

    if (gate == NULL && atomic_exchange(&p->busy, 1) != 0)
        MT_CHECK(!"two workers look at one source though nobody passed the lead on");
    atomic_fetch_add(&p->attended, (what & RT_ATTEND) != 0);
    atomic_fetch_add(&p->due, (what & RT_DUE) != 0);
    atomic_fetch_add(&p->readable, (what & RT_READABLE) != 0);
    atomic_fetch_add(&p->writable, (what & RT_WRITABLE) != 0);
    atomic_fetch_add(&p->hangups, (what & RT_HANGUP) != 0);
    if (what & RT_READABLE)
        probe_read(p);
    if (p->hold_at != NULL) {
        atomic_fetch_add(&p->hold_at->waiting, 1);
        while (!atomic_load(&p->hold_at->open))
            mt_sleep_ms(1);
        p->hold_at = NULL;
    }
    if (gate != NULL) {
        p->pass_at = NULL;
        rt_worker_pass_lead(worker);
        atomic_fetch_add(&gate->waiting, 1);
        while (!atomic_load(&gate->open))
            mt_sleep_ms(1);
    }
    atomic_fetch_add(&p->looks, 1);
    if (gate == NULL)
        atomic_store(&p->busy, 0);
    if ((atomic_load(&p->retire) || (what & RT_CLOSING)))
        (void)rt_source_retire(src);
}

static void probe_destroy(struct rt_source *src)
{
    struct probe *p = RT_CONTAINER_OF(src, struct probe, source);

    atomic_fetch_add(&p->destroyed, 1);
}

static void probe_add(struct rt_pool *pool, struct probe *p)
{
    memset(p, 0, sizeof *p);
    p->fd = -1;
    p->source.handle = probe_handle;
    p->source.destroy = probe_destroy;
    MT_REQUIRE(rt_source_add(&pool->poller, &p->source) == RT_OK);
}

static struct rt_pool *started(unsigned workers)
{
    struct rt_pool *pool;

    MT_REQUIRE(rt_pool_new(workers, 4096, &pool) == RT_OK);
    MT_REQUIRE(rt_pool_start(pool) == RT_OK);
    return pool;
}

static void make_pair(int fds[2])
{
    MT_REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
}

/* ---- attending ------------------------------------------------------------ */

static void attend_once(void)
{
    struct rt_pool *pool = started(2);
    struct probe p;

    probe_add(pool, &p);
    rt_source_attend(&p.source, RT_WRITABLE);
    MT_EVENTUALLY(atomic_load(&p.looks) == 1);
    MT_EQ(atomic_load(&p.attended), 1);
    MT_EQ(atomic_load(&p.writable), 1); /* a reason given is told, once */
    rt_source_attend(&p.source, RT_ATTEND);
    MT_EVENTUALLY(atomic_load(&p.looks) == 2);
    MT_EQ(atomic_load(&p.writable), 1);
    end_pool(pool, home);
    MT_EQ(atomic_load(&p.destroyed), 1);
}

/* Attenders publish a number and attend; a look after it must see it. */
struct published {
    struct rt_source source;
    _Atomic uint64_t made, seen;
};

static void published_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct published *p = RT_CONTAINER_OF(src, struct published, source);

    (void)worker;
    atomic_store(&p->seen, atomic_load(&p->made));
    if (what & RT_CLOSING)
        (void)rt_source_retire(src);
}

static void ignore_destroy(struct rt_source *src)
{
    (void)src;
}

static struct published boards[3];
static unsigned rounds;

static void *attender(void *arg)
{
    uint64_t rnd = (uintptr_t)arg;
    unsigned i, spins = 0;

    for (i = 0; i < rounds; i++) {
        struct published *p = &boards[mt_rand(&rnd) % 3];
        uint64_t mine = atomic_fetch_add(&p->made, 1) + 1;

        rt_source_attend(&p->source, 0);
        if (mt_rand(&rnd) % 4 == 0) {
            uint64_t limit = rt_now() + MT_HANG_MS * RT_MS;

            /* A closed loop: this is what hangs when a bell is lost. */
            while (atomic_load(&p->seen) < mine && rt_now() < limit)
                mt_relax(&spins);
            if (atomic_load(&p->seen) < mine) {
                MT_CHECK(!"a source that was attended to was not looked at");
                break;
            }
        }
    }
    return NULL;
}

static void attend_from_many(unsigned workers)
{
    struct rt_pool *pool = started(workers);
    pthread_t threads[3];
    unsigned i;

    rounds = (unsigned)MT_SCALE(60000);
    for (i = 0; i < 3; i++) {
        memset(&boards[i], 0, sizeof boards[i]);
        boards[i].source.handle = published_handle;
        boards[i].source.destroy = ignore_destroy;
        MT_REQUIRE(rt_source_add(&pool->poller, &boards[i].source) == RT_OK);
    }
    for (i = 0; i < 3; i++)
        threads[i] = mt_spawn(attender, (void *)(uintptr_t)(i + 1));
    for (i = 0; i < 3; i++)
        mt_join(threads[i]);
    for (i = 0; i < 3; i++)
        MT_EVENTUALLY(atomic_load(&boards[i].seen) == atomic_load(&boards[i].made));
    end_pool(pool, home);
}

/* ---- deadlines -------------------------------------------------------------- */

static void deadlines(void)
{
    struct rt_pool *pool = started(2);
    struct gate hold = { 0, 0 };
    struct probe p, q, holder;
    uint64_t start;

    probe_add(pool, &p);
    probe_add(pool, &q);
    probe_add(pool, &holder);
    /* Nobody looks until all are set: a deadline that was told already can be raised. */
    holder.hold_at = &hold;
    rt_source_attend(&holder.source, 0);
    MT_EVENTUALLY(atomic_load(&hold.waiting) == 1);
    start = rt_now();
    rt_source_due(&p.source, start + 3600 * RT_SEC);
    rt_source_due(&q.source, start + 100 * RT_MS);
    rt_source_due(&p.source, start + 30 * RT_MS); /* lowered */
    rt_source_due(&p.source, start + 60 * RT_MS); /* not raised */
    atomic_store(&hold.open, 1);
    MT_EVENTUALLY(atomic_load(&p.due) == 1);
    MT_CHECK(rt_now() >= start + 30 * RT_MS);
    MT_EVENTUALLY(atomic_load(&q.due) == 1);
    MT_CHECK(rt_now() >= start + 100 * RT_MS);
    MT_EQ(atomic_load(&p.due), 1); /* told once, until it is set anew */
    rt_source_due(&p.source, 1);   /* long past: at once */
    MT_EVENTUALLY(atomic_load(&p.due) == 2);
    end_pool(pool, home);
}

/* Threads lower deadlines all the time; none may be forgotten. */
struct timer {
    struct rt_source source;
    _Atomic uint64_t wanted; /* RT_NEVER once it was told */
};

static void timer_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct timer *t = RT_CONTAINER_OF(src, struct timer, source);
    uint64_t wanted = atomic_load(&t->wanted);

    (void)worker;
    if (what & RT_CLOSING) {
        (void)rt_source_retire(src);
        return;
    }
    if (wanted != RT_NEVER && wanted <= rt_now())
        atomic_compare_exchange_strong(&t->wanted, &wanted, RT_NEVER);
    else
        rt_source_due(src, wanted);
}

static struct timer timers[4];

static void *lowerer(void *arg)
{
    struct timer *t = arg;
    uint64_t rnd = (uintptr_t)arg;
    unsigned i;

    for (i = 0; i < rounds; i++) {
        uint64_t now = rt_now(), limit = now + MT_HANG_MS * RT_MS;
        uint64_t when = now + mt_rand(&rnd) % (300 * 1000);
        unsigned spins = 0;

        if (mt_rand(&rnd) % 2)
            rt_source_due(&t->source, when + RT_SEC); /* first late, then soon */
        atomic_store(&t->wanted, when);
        rt_source_due(&t->source, when);
        while (atomic_load(&t->wanted) != RT_NEVER && rt_now() < limit)
            mt_relax(&spins);
        if (atomic_load(&t->wanted) != RT_NEVER) {
            MT_CHECK(!"a deadline was forgotten");
            break;
        }
    }
    return NULL;
}

static void lowering_races(void)
{
    struct rt_pool *pool = started(2);
    pthread_t threads[4];
    unsigned i;

    rounds = (unsigned)MT_SCALE(1000);
    for (i = 0; i < 4; i++) {
        memset(&timers[i], 0, sizeof timers[i]);
        atomic_store(&timers[i].wanted, RT_NEVER);
        timers[i].source.handle = timer_handle;
        timers[i].source.destroy = ignore_destroy;
        MT_REQUIRE(rt_source_add(&pool->poller, &timers[i].source) == RT_OK);
    }
    for (i = 0; i < 4; i++)
        threads[i] = mt_spawn(lowerer, &timers[i]);
    for (i = 0; i < 4; i++)
        mt_join(threads[i]);
    end_pool(pool, home);
}

/* ---- readiness --------------------------------------------------------------- */

static void readiness(void)
{
    struct rt_pool *pool = started(2);
    struct probe p;
    uint64_t sent = 0;
    int fds[2];
    unsigned i;

    make_pair(fds);
    probe_add(pool, &p);
    p.fd = fds[0];
    MT_REQUIRE(write(fds[1], "before", 6) == 6); /* there before it is watched */
    MT_EQ(rt_source_watch(&p.source, fds[0], false, false), RT_OK);
    MT_EVENTUALLY(atomic_load(&p.bytes) == 6);
    MT_EQ(atomic_load(&p.writable), 0);
    for (i = 0, sent = 6; i < 2000; i++) {
        MT_REQUIRE(write(fds[1], "x", 1) == 1);
        sent++;
        if (i % 5 == 0)
            MT_EVENTUALLY(atomic_load(&p.bytes) == sent);
    }
    MT_EVENTUALLY(atomic_load(&p.bytes) == sent);
    MT_EQ(rt_source_watch(&p.source, fds[0], true, true), RT_OK);
    MT_EVENTUALLY(atomic_load(&p.writable) >= 1);
    MT_EQ(rt_source_watch(&p.source, fds[0], false, true), RT_OK);
    MT_EQ(atomic_load(&p.hangups), 0);
    close(fds[1]);
    MT_EVENTUALLY(atomic_load(&p.hangups) >= 1);
    rt_source_unwatch(&p.source, fds[0]);
    MT_EQ(rt_source_watch(&p.source, fds[0], false, true), RT_ESYS);
    end_pool(pool, home);
    close(fds[0]);
}

/* ---- retiring ------------------------------------------------------------------ */

static struct probe *_Atomic target;
static atomic_uint quit, attenders_out;

static void *pester(void *arg)
{
    unsigned spins = 0;

    (void)arg;
    while (!atomic_load(&quit)) {
        struct probe *p = atomic_load(&target);

        if (p != NULL) {
            rt_source_attend(&p->source, RT_WRITABLE);
            rt_source_due(&p->source, rt_now());
            mt_relax(&spins); /* one processor would be theirs alone */
        } else {
            atomic_fetch_add(&attenders_out, 1);
            while (atomic_load(&target) == NULL && !atomic_load(&quit))
                mt_relax(&spins);
            atomic_fetch_sub(&attenders_out, 1);
        }
    }
    return NULL;
}

/* Its memory stays with the pesterers, as a channel's does with its client. */
static void retire_while_attended(void)
{
    struct rt_pool *pool = started(2);
    unsigned i, total = (unsigned)MT_SCALE(3000), spins;
    pthread_t threads[2];

    atomic_store(&quit, 0);
    for (i = 0; i < 2; i++)
        threads[i] = mt_spawn(pester, NULL);
    for (i = 0; i < total; i++) {
        struct probe *p = malloc(sizeof *p);

        MT_REQUIRE(p != NULL);
        probe_add(pool, p);
        atomic_store(&target, p);
        while (atomic_load(&p->looks) < 2)
            sched_yield();
        atomic_store(&p->retire, 1);
        MT_EVENTUALLY(atomic_load(&p->destroyed) == 1 ||
                      (rt_source_attend(&p->source, 0), false));
        atomic_store(&target, NULL);
        for (spins = 0; atomic_load(&attenders_out) != 2;)
            mt_relax(&spins);
        MT_EQ(atomic_load(&p->destroyed), 1);
        free(p);
    }
    MT_EQ(atomic_load(&pool->poller.count), 0);
    atomic_store(&quit, 1);
    for (i = 0; i < 2; i++)
        mt_join(threads[i]);
    end_pool(pool, home);
}

/* ---- the lead ------------------------------------------------------------------- */

/* Pass the lead on in the middle of a batch of events: the others' events are
 * handled by the next leader, while the first one is held up. */
static void pass_lead_in_a_batch(bool attended)
{
    enum { OTHERS = 20 };
    struct rt_pool *pool = started(2);
    struct gate gate = { 0, 0 }, hold = { 0, 0 };
    struct probe holder, first, others[OTHERS];
    int fds[OTHERS + 1][2];
    unsigned i;

    /* Hold the leader up, so that all events come in one batch. */
    probe_add(pool, &holder);
    probe_add(pool, &first);
    for (i = 0; i < OTHERS; i++)
        probe_add(pool, &others[i]);
    first.pass_at = &gate;
    holder.pass_at = &hold;
    rt_source_attend(&holder.source, 0); /* worker A passes on and is held */
    MT_EVENTUALLY(atomic_load(&hold.waiting) == 1);
    for (i = 0; i <= OTHERS; i++) {
        struct probe *p = i == 0 ? &first : &others[i - 1];

        make_pair(fds[i]);
        p->fd = fds[i][0];
        MT_REQUIRE(rt_source_watch(&p->source, fds[i][0], false, false) == RT_OK);
    }
    for (i = 0; i <= OTHERS; i++) {
        if (attended)
            rt_source_attend(i == 0 ? &first.source : &others[i - 1].source, RT_READABLE);
        MT_REQUIRE(write(fds[i][1], "x", 1) == 1);
    }
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1); /* worker B, too */
    atomic_store(&hold.open, 1);                    /* A comes back and leads */
    for (i = 0; i < OTHERS; i++)
        MT_EVENTUALLY(atomic_load(&others[i].bytes) == 1);
    atomic_store(&gate.open, 1);
    MT_EVENTUALLY(atomic_load(&first.looks) >= 1);
    end_pool(pool, home);
    for (i = 0; i <= OTHERS; i++) {
        close(fds[i][0]);
        close(fds[i][1]);
    }
}

/* Regression: a worker that had passed the lead on took a job when it came back
 * though nobody led, and the sources of the pool had nobody. */
static void last_free_worker_leads(void)
{
    struct rt_pool *pool = started(2);
    struct gate hold = { 0, 0 }, pass = { 0, 1 }, gate = { 0, 0 };
    struct probe holder, p;
    struct call calls[2];
    unsigned i, looks;

    probe_add(pool, &holder);
    probe_add(pool, &p);
    holder.hold_at = &hold;
    holder.pass_at = &pass;
    rt_source_attend(&holder.source, 0);
    MT_EVENTUALLY(atomic_load(&hold.waiting) == 1);
    for (i = 0; i < 2; i++) {
        call_init(&calls[i], home, wait_at_gate, &gate);
        MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
    }
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1); /* the other worker */
    atomic_store(&hold.open, 1);
    MT_EVENTUALLY(atomic_load(&holder.looks) == 1);
    mt_sleep_ms(20);
    MT_EQ(atomic_load(&gate.waiting), 1);
    looks = atomic_load(&p.looks);
    rt_source_attend(&p.source, 0);
    MT_EVENTUALLY(atomic_load(&p.looks) > looks); /* while a call waits */
    atomic_store(&gate.open, 1);
    for (i = 0; i < 2; i++)
        call_home(home, &calls[i]);
    end_pool(pool, home);
}

/* ---- many ------------------------------------------------------------------------- */

static void a_thousand(void)
{
    enum { MANY = 1000 };
    struct rt_pool *pool = started(4);
    struct probe *probes = calloc(MANY, sizeof *probes);
    int (*fds)[2] = calloc(MANY, sizeof *fds);
    unsigned i, round;

    MT_REQUIRE(probes != NULL && fds != NULL);
    for (i = 0; i < MANY; i++) {
        probe_add(pool, &probes[i]);
        if (i < 400) { /* descriptors are few where a person runs this */
            make_pair(fds[i]);
            probes[i].fd = fds[i][0];
            MT_REQUIRE(rt_source_watch(&probes[i].source, fds[i][0], false, false) == RT_OK);
        }
    }
    MT_EQ(atomic_load(&pool->poller.count), MANY);
    for (round = 1; round <= 20; round++) {
        uint64_t soon = rt_now() + RT_MS;

        for (i = 0; i < MANY; i++) {
            if (i < 400)
                MT_REQUIRE(write(fds[i][1], "xy", 2) == 2);
            else if (i < 700)
                rt_source_attend(&probes[i].source, RT_WRITABLE);
            else
                rt_source_due(&probes[i].source, soon);
        }
        for (i = 0; i < MANY; i++) {
            struct probe *p = &probes[i];

            if (i < 400)
                MT_EVENTUALLY(atomic_load(&p->bytes) == 2 * round);
            else if (i < 700)
                MT_EVENTUALLY(atomic_load(&p->writable) == round);
            else
                MT_EVENTUALLY(atomic_load(&p->due) == round);
        }
    }
    end_pool(pool, home);
    for (i = 0; i < MANY; i++) {
        MT_EQ(atomic_load(&probes[i].destroyed), 1);
        if (i < 400) {
            close(fds[i][0]);
            close(fds[i][1]);
        }
    }
    free(fds);
    free(probes);
}

int main(void)
{
    unsigned fds;

    mt_seed();
    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    fds = mt_fds();
    attend_once();
    attend_from_many(1);
    attend_from_many(3);
    deadlines();
    lowering_races();
    readiness();
    retire_while_attended();
    pass_lead_in_a_batch(false);
    pass_lead_in_a_batch(true);
    last_free_worker_leads();
    a_thousand();
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(home);
    return mt_report("poller");
}
