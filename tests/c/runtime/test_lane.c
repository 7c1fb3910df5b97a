/* Lanes: order, one at a time, fairness, pinning, and their ends. */
#include "hosted.h"
#include "lanes.h"

#define MANY 2000

static struct rt_mailbox *home;

static void in_order(unsigned workers, bool pinned)
{
    struct tracked *calls = calloc(MANY, sizeof *calls);
    struct rt_pool *pool;
    struct track track;
    unsigned i;

    MT_REQUIRE(calls != NULL && rt_pool_new(workers, 65536, &pool) == RT_OK);
    track_init(&track, pool, pinned);
    for (i = 0; i < MANY; i++) {
        call_init(&calls[i].call, home, track_in_order, &track);
        calls[i].number = i;
        MT_REQUIRE(rt_lane_submit(track.lane, &calls[i].call.job) == RT_OK);
        if (i % 97 == 0)
            call_home(home, &calls[i].call);
    }
    for (i = 0; i < MANY; i++)
        call_home(home, &calls[i].call);
    MT_EQ(atomic_load(&track.run), MANY);
    MT_EQ(atomic_load(&pool->depth), 0);
    rt_lane_release(track.lane);
    end_pool(pool, home);
    free(calls);
}

static void lists(void)
{
    struct rt_joblist list, none;
    struct tracked calls[100];
    struct rt_pool *pool;
    struct track track;
    unsigned i;

    MT_REQUIRE(rt_pool_new(3, 100, &pool) == RT_OK);
    track_init(&track, pool, false);
    rt_joblist_init(&none);
    MT_EQ(rt_lane_submit_all(track.lane, &none), RT_OK);
    rt_joblist_init(&list);
    for (i = 0; i < 100; i++) {
        call_init(&calls[i].call, home, track_in_order, &track);
        calls[i].number = i;
        rt_joblist_append(&list, &calls[i].call.job);
    }
    MT_EQ(rt_lane_submit_all(track.lane, &list), RT_OK);
    MT_CHECK(list.head == NULL);
    for (i = 0; i < 100; i++)
        call_home(home, &calls[i].call);
    /* The same without a lane: one wake-up. */
    for (i = 0; i < 100; i++) {
        call_init(&calls[i].call, home, NULL, NULL);
        rt_joblist_append(&list, &calls[i].call.job);
    }
    MT_EQ(rt_pool_submit_all(pool, &list), RT_OK);
    MT_EQ(rt_pool_submit_all(pool, &none), RT_OK);
    for (i = 0; i < 100; i++)
        call_home(home, &calls[i].call);
    rt_lane_release(track.lane);
    end_pool(pool, home);
}

/* ---- fairness ------------------------------------------------------------- */

struct seen {
    struct track *busy;
    unsigned at; /* how many the busy lane had run */
};

static void look_at_busy(struct call *call, struct rt_worker *worker)
{
    struct seen *seen = call->arg;

    (void)worker;
    seen->at = atomic_load(&seen->busy->run);
}

static void one_turn_each(void)
{
    struct tracked *calls = calloc(MANY, sizeof *calls);
    struct gate gate = { 0, 0 };
    struct call blocked, others[5];
    struct seen seen[5];
    struct rt_lane *lanes[5];
    struct rt_pool *pool;
    struct track track;
    unsigned i;

    MT_REQUIRE(calls != NULL && rt_pool_new(1, 65536, &pool) == RT_OK);
    track_init(&track, pool, false);
    call_init(&blocked, home, wait_at_gate, &gate);
    MT_EQ(rt_pool_submit(pool, &blocked.job), RT_OK);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    for (i = 0; i < MANY; i++) {
        call_init(&calls[i].call, home, track_in_order, &track);
        calls[i].number = i;
        MT_REQUIRE(rt_lane_submit(track.lane, &calls[i].call.job) == RT_OK);
    }
    for (i = 0; i < 5; i++) { /* the last one is a job of no lane */
        seen[i] = (struct seen){ .busy = &track };
        call_init(&others[i], home, look_at_busy, &seen[i]);
        MT_REQUIRE(rt_lane_new(pool, false, &lanes[i]) == RT_OK);
        if (i < 4)
            MT_EQ(rt_lane_submit(lanes[i], &others[i].job), RT_OK);
        else
            MT_EQ(rt_pool_submit(pool, &others[i].job), RT_OK);
    }
    atomic_store(&gate.open, 1);
    for (i = 0; i < MANY; i++)
        call_home(home, &calls[i].call);
    for (i = 0; i < 5; i++) {
        call_home(home, &others[i]);
        MT_CHECK(seen[i].at >= 1 && seen[i].at <= RT_LANE_JOBS);
        rt_lane_release(lanes[i]);
    }
    call_home(home, &blocked);
    rt_lane_release(track.lane);
    end_pool(pool, home);
    free(calls);
}

/* A lane that waits does not hold up the others. */
static void a_blocked_lane(void)
{
    struct gate gate = { 0, 0 };
    struct call blocked[2], others[50];
    struct rt_lane *lane, *second;
    struct rt_pool *pool;
    unsigned i;

    MT_REQUIRE(rt_pool_new(2, 1024, &pool) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, false, &lane) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, false, &second) == RT_OK);
    for (i = 0; i < 2; i++) {
        call_init(&blocked[i], home, wait_at_gate, &gate);
        MT_EQ(rt_lane_submit(lane, &blocked[i].job), RT_OK);
    }
    for (i = 0; i < 50; i++) {
        call_init(&others[i], home, NULL, NULL);
        MT_EQ(i % 2 ? rt_lane_submit(second, &others[i].job)
                    : rt_pool_submit(pool, &others[i].job), RT_OK);
    }
    for (i = 0; i < 50; i++)
        call_home(home, &others[i]);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    mt_sleep_ms(2);
    MT_EQ(atomic_load(&gate.waiting), 1); /* the lane's second job waits for its first */
    atomic_store(&gate.open, 1);
    for (i = 0; i < 2; i++)
        call_home(home, &blocked[i]);
    rt_lane_release(lane);
    rt_lane_release(second);
    end_pool(pool, home);
}

/* ---- pinned ---------------------------------------------------------------- */

static void spread(void)
{
    struct rt_lane *lanes[12];
    struct call calls[12];
    struct rt_pool *pool;
    unsigned i;

    MT_REQUIRE(rt_pool_new(4, 1024, &pool) == RT_OK);
    for (i = 0; i < 12; i++) {
        MT_REQUIRE(rt_lane_new(pool, true, &lanes[i]) == RT_OK);
        call_init(&calls[i], home, NULL, NULL);
        MT_EQ(rt_lane_submit(lanes[i], &calls[i].job), RT_OK);
    }
    for (i = 0; i < 4; i++)
        MT_EQ(atomic_load(&pool->workers[i].lanes), 3);
    for (i = 0; i < 12; i++) {
        call_home(home, &calls[i]);
        rt_lane_release(lanes[i]);
    }
    for (i = 0; i < 4; i++)
        MT_EVENTUALLY(atomic_load(&pool->workers[i].lanes) == 0);
    end_pool(pool, home);
}

/* Regression: another thread was making the pool's first worker when a pinned lane was
 * to have one of those that there are, and it got the one before the first. */
static void pinned_while_the_pool_starts(void)
{
    struct rt_lane *lane;
    struct rt_pool *pool;
    struct call call;
    uint32_t started;

    MT_REQUIRE(rt_pool_new(3, 64, &pool) == RT_OK);
    MT_REQUIRE(rt_pool_start(pool) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, true, &lane) == RT_OK);
    started = atomic_exchange(&pool->started, 0); /* as at that moment */
    call_init(&call, home, NULL, NULL);
    MT_EQ(rt_lane_submit(lane, &call.job), RT_OK);
    MT_EQ(atomic_load(&lane->worker), 1);
    MT_EQ(atomic_load(&pool->workers[0].lanes), 1);
    atomic_store(&pool->started, started);
    call_home(home, &call);
    rt_lane_release(lane);
    end_pool(pool, home);
}

/* A source: the pool carries a connection. */
struct mute {
    struct rt_source source;
    atomic_uint looks, destroyed;
    atomic_bool end;
};

static void mute_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct mute *mute = RT_CONTAINER_OF(src, struct mute, source);

    (void)worker;
    atomic_fetch_add(&mute->looks, 1);
    if ((what & RT_CLOSING) != 0 || atomic_load(&mute->end)) {
        atomic_store(&mute->end, true);
        (void)rt_source_retire(src);
    }
}

static void mute_destroy(struct rt_source *src)
{
    atomic_store(&RT_CONTAINER_OF(src, struct mute, source)->destroyed, 1);
}

/* Each worker has a pinned lane, one of them leads: it lets another lead, if there is
 * one, and takes its turn; if there is none it stays with the connections. */
static void beside_connections(unsigned workers)
{
    struct mute mute = { .source = { .handle = mute_handle, .destroy = mute_destroy } };
    struct gate gate = { 0, 0 };
    struct call *blocked = calloc(workers, sizeof *blocked), *calls = calloc(workers, sizeof *calls);
    struct track *tracks = calloc(workers, sizeof *tracks);
    struct rt_pool *pool;
    unsigned i, round, looks;

    MT_REQUIRE(blocked != NULL && calls != NULL && tracks != NULL);
    MT_REQUIRE(rt_pool_new(workers, 1024, &pool) == RT_OK);
    MT_REQUIRE(rt_pool_add_source(pool, &mute.source) == RT_OK);
    for (i = 0; i < workers; i++)
        track_init(&tracks[i], pool, true);
    for (round = 0; round < 200; round++) {
        for (i = 0; i < workers; i++) {
            call_init(&calls[i], home, NULL, NULL);
            MT_EQ(rt_lane_submit(tracks[i].lane, &calls[i].job), RT_OK);
        }
        for (i = 0; i < workers; i++)
            call_home(home, &calls[i]);
    }
    /* All lanes block, but for one: its worker is the last free one. */
    for (i = 0; i < workers; i++) {
        call_init(&blocked[i], home, wait_at_gate, &gate);
        MT_EQ(rt_lane_submit(tracks[i].lane, &blocked[i].job), RT_OK);
    }
    MT_EVENTUALLY(atomic_load(&gate.waiting) == workers - 1);
    for (i = 0; i < 20; i++) {
        looks = atomic_load(&mute.looks);
        rt_source_attend(&mute.source, 0);
        MT_EVENTUALLY(atomic_load(&mute.looks) > looks);
    }
    MT_EQ(atomic_load(&gate.waiting), workers - 1);
    atomic_store(&gate.open, 1);
    for (i = 0; i < workers; i++) {
        call_home(home, &blocked[i]);
        rt_lane_release(tracks[i].lane);
    }
    end_pool(pool, home);
    MT_EVENTUALLY(atomic_load(&mute.destroyed) == 1);
    free(blocked);
    free(calls);
    free(tracks);
}

/* The first connection comes when every worker is inside a job. */
static void a_connection_while_all_are_busy(unsigned workers)
{
    struct mute mute = { .source = { .handle = mute_handle, .destroy = mute_destroy } };
    struct gate gate = { 0, 0 };
    struct call blocked[3], calls[20];
    struct rt_pool *pool;
    unsigned i, looks;

    MT_REQUIRE(rt_pool_new(workers, 1024, &pool) == RT_OK);
    for (i = 0; i < workers; i++) {
        call_init(&blocked[i], home, wait_at_gate, &gate);
        MT_EQ(rt_pool_submit(pool, &blocked[i].job), RT_OK);
    }
    MT_EVENTUALLY(atomic_load(&gate.waiting) == workers);
    MT_REQUIRE(rt_pool_add_source(pool, &mute.source) == RT_OK);
    for (i = 0; i < 20; i++) {
        looks = atomic_load(&mute.looks);
        rt_source_attend(&mute.source, 0);
        MT_EVENTUALLY(atomic_load(&mute.looks) > looks);
    }
    MT_EVENTUALLY(mt_threads() == workers + 1); /* those of the last pool may be on their way out */
    atomic_store(&gate.open, 1);
    for (i = 0; i < workers; i++)
        call_home(home, &blocked[i]);
    /* And then they may all be inside jobs again. */
    atomic_store(&gate.open, 0);
    atomic_store(&gate.waiting, 0);
    for (i = 0; i < workers; i++) {
        call_init(&blocked[i], home, wait_at_gate, &gate);
        MT_EQ(rt_pool_submit(pool, &blocked[i].job), RT_OK);
    }
    MT_EVENTUALLY(atomic_load(&gate.waiting) == workers);
    looks = atomic_load(&mute.looks);
    rt_source_attend(&mute.source, 0);
    MT_EVENTUALLY(atomic_load(&mute.looks) > looks);
    atomic_store(&gate.open, 1);
    for (i = 0; i < workers; i++)
        call_home(home, &blocked[i]);
    for (i = 0; i < 20; i++) {
        call_init(&calls[i], home, NULL, NULL);
        MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
    }
    for (i = 0; i < 20; i++)
        call_home(home, &calls[i]);
    end_pool(pool, home);
    MT_EVENTUALLY(atomic_load(&mute.destroyed) == 1);
}

/* ---- ends ------------------------------------------------------------------- */

static void outcomes(bool pinned)
{
    struct gate gate = { 0, 0 };
    struct call running, queued[3], extra;
    struct rt_pool *pool;
    struct rt_lane *lane;
    unsigned i;

    MT_REQUIRE(rt_pool_new(2, 3, &pool) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, pinned, &lane) == RT_OK);
    call_init(&running, home, wait_at_gate, &gate);
    MT_EQ(rt_lane_submit(lane, &running.job), RT_OK);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    for (i = 0; i < 3; i++) {
        call_init(&queued[i], home, NULL, NULL);
        if (i == 1)
            queued[i].job.deadline = rt_now() + RT_MS;
        MT_EQ(rt_lane_submit(lane, &queued[i].job), RT_OK);
    }
    call_init(&extra, home, NULL, NULL);
    MT_EQ(rt_lane_submit(lane, &extra.job), RT_EFULL);
    MT_EQ(rt_job_state(&extra.job), RT_JOB_IDLE);
    MT_CHECK(rt_job_cancel(&queued[0].job));
    MT_CHECK(rt_job_cancel(&running.job));
    mt_sleep_ms(5);
    rt_lane_release(lane); /* what was submitted is run all the same */
    atomic_store(&gate.open, 1);
    call_home(home, &running);
    for (i = 0; i < 3; i++)
        call_home(home, &queued[i]);
    MT_EQ(running.job.err, RT_OK);
    MT_EQ(queued[0].job.err, RT_ECANCELLED);
    MT_EQ(queued[1].job.err, RT_ETIMEOUT);
    MT_EQ(queued[2].job.err, RT_OK);
    MT_EQ(atomic_load(&queued[0].runs) + atomic_load(&queued[1].runs), 0);
    end_pool(pool, home);
}

static void closing(bool pinned, bool late)
{
    struct gate gate = { 0, 0 };
    struct call running, calls[40], refused;
    struct rt_pool *pool;
    struct rt_lane *lane;
    unsigned i;

    MT_REQUIRE(rt_pool_new(2, 64, &pool) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, pinned, &lane) == RT_OK);
    call_init(&running, home, wait_at_gate, &gate);
    MT_EQ(rt_lane_submit(lane, &running.job), RT_OK);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    for (i = 0; i < 40; i++) {
        call_init(&calls[i], home, NULL, NULL);
        MT_EQ(rt_lane_submit(lane, &calls[i].job), RT_OK);
    }
    MT_EQ(rt_pool_close(pool, late ? 0 : RT_NEVER, NULL), RT_OK);
    call_init(&refused, home, NULL, NULL);
    MT_EQ(rt_lane_submit(lane, &refused.job), RT_ECLOSED);
    mt_sleep_ms(2);
    MT_CHECK(!rt_pool_wait(pool, 0));
    atomic_store(&gate.open, 1);
    call_home(home, &running);
    for (i = 0; i < 40; i++) {
        call_home(home, &calls[i]);
        MT_EQ(calls[i].job.err, late ? RT_ECLOSED : RT_OK);
    }
    MT_CHECK(rt_pool_wait(pool, rt_now() + 60 * RT_SEC));
    rt_lane_release(lane);
    rt_pool_release(pool);
}

/* ---- what hosted jobs hold ---------------------------------------------------- */

static pthread_mutex_t costly = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint taken, left, ended;

static void host_leave(struct rt_worker *worker)
{
    MT_CHECK(worker->held);
    worker->held = false;
    atomic_fetch_add(&left, 1);
    pthread_mutex_unlock(&costly);
}

static void host_idle(struct rt_worker *worker)
{
    MT_CHECK(!worker->held && worker->finished.head == NULL);
}

static void host_ended(struct rt_worker *worker)
{
    MT_CHECK(!worker->held);
    atomic_fetch_add(&ended, 1);
}

static void costly_run(struct rt_job *job, struct rt_worker *worker)
{
    struct call *call = call_of(job);

    if (!worker->held) {
        pthread_mutex_lock(&costly);
        atomic_fetch_add(&taken, 1);
        worker->held = true;
        worker->guest = call->arg;
    }
    atomic_fetch_add(&call->runs, 1);
    rt_worker_finish(worker, job, RT_OK);
}

static void not_held(struct call *call, struct rt_worker *worker)
{
    (void)call;
    MT_CHECK(!worker->held);
    pthread_mutex_lock(&costly); /* a deadlock, if it were */
    pthread_mutex_unlock(&costly);
}

static void held_from_one_to_the_next(bool in_lane)
{
    static const struct rt_host host = { .leave = host_leave, .idle = host_idle,
                                         .ended = host_ended };
    struct gate gate = { 0, 0 };
    struct call blocked, calls[300];
    struct rt_pool *pool;
    struct rt_lane *lane;
    unsigned i, mixed;

    for (mixed = 0; mixed < 2; mixed++) {
        atomic_store(&taken, 0);
        atomic_store(&left, 0);
        atomic_store(&ended, 0);
        MT_REQUIRE(rt_pool_new(1, 1024, &pool) == RT_OK);
        rt_pool_set_host(pool, &host, (size_t)1 << 20);
        MT_REQUIRE(rt_lane_new(pool, false, &lane) == RT_OK);
        call_init(&blocked, home, wait_at_gate, &gate);
        MT_EQ(rt_pool_submit(pool, &blocked.job), RT_OK);
        for (i = 0; i < 300; i++) {
            call_init(&calls[i], home, not_held, &gate);
            if (!mixed || i % 2 == 0) {
                calls[i].job.run = costly_run;
                calls[i].job.hosted = true;
            }
            MT_EQ(in_lane ? rt_lane_submit(lane, &calls[i].job)
                          : rt_pool_submit(pool, &calls[i].job), RT_OK);
        }
        atomic_store(&gate.open, 1);
        call_home(home, &blocked);
        for (i = 0; i < 300; i++)
            call_home(home, &calls[i]);
        /* Once for all, unless other work comes between. */
        MT_EQ(atomic_load(&taken), mixed ? 150 : 1);
        rt_lane_release(lane);
        end_pool(pool, home);
        MT_EQ(atomic_load(&left), atomic_load(&taken));
        MT_EQ(atomic_load(&ended), 1);
        atomic_store(&gate.open, 0);
    }
}

static void slow_leave(struct rt_worker *worker)
{
    static atomic_uint nth;

    worker->held = false;
    if (atomic_fetch_add(&nth, 1) % 3 == 0)
        mt_sleep_ms(1); /* results wait for it */
}

/* Regression: a call that another worker ran next was home before the one that went
 * before it, whose worker was slow to let go. */
static void home_in_order(void)
{
    static const struct rt_host host = { .leave = slow_leave, .idle = no_lock_idle,
                                         .ended = no_lock_ended };
    enum { CALLS = 300 };
    struct call calls[CALLS], *came;
    struct rt_pool *pool;
    struct rt_lane *lane;
    unsigned i;

    MT_REQUIRE(rt_pool_new(3, 1024, &pool) == RT_OK);
    rt_pool_set_host(pool, &host, (size_t)1 << 20);
    MT_REQUIRE(rt_lane_new(pool, false, &lane) == RT_OK);
    for (i = 0; i < CALLS; i++) {
        hosted_init(&calls[i], home, NULL, NULL);
        if (i % 10 == 9)
            calls[i].job.deadline = 1; /* long over: it is not run */
        MT_EQ(rt_lane_submit(lane, &calls[i].job), RT_OK);
        while (i % 10 < 8 && atomic_load(&calls[i].runs) == 0)
            rt_pause();
    }
    for (i = 0; i < CALLS; i++) {
        came = call_next(home, MT_HANG_MS);
        MT_CHECK(came == &calls[i]);
    }
    rt_lane_release(lane);
    end_pool(pool, home);
}

int main(void)
{
    unsigned fds;

    mt_seed();
    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    fds = mt_fds();
    in_order(1, false);
    in_order(4, false);
    in_order(1, true);
    in_order(4, true);
    lists();
    one_turn_each();
    a_blocked_lane();
    spread();
    pinned_while_the_pool_starts();
    beside_connections(2);
    beside_connections(4);
    a_connection_while_all_are_busy(1);
    a_connection_while_all_are_busy(2);
    a_connection_while_all_are_busy(3);
    outcomes(false);
    outcomes(true);
    closing(false, false);
    closing(false, true);
    closing(true, false);
    closing(true, true);
    held_from_one_to_the_next(false);
    held_from_one_to_the_next(true);
    home_in_order();
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(home);
    return mt_report("lane");
}
