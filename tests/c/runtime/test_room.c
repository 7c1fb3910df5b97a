/* Room: who found the queue full is told when there is some, always and once. */
#include "calls.h"

#include "rt_lane.h"

static struct rt_mailbox *home;

/* One who asks to be told: a call that is never run. */
static void seek(struct rt_pool *pool, struct call *seeker, struct rt_mailbox *mb)
{
    call_init(seeker, mb, NULL, NULL);
    rt_pool_seek_room(pool, &seeker->job);
}

static bool is_home(struct call *call)
{
    (void)call_next(home, 0);
    return atomic_load(&call->homes) != 0;
}

static void at_once_where_there_is_room(void)
{
    struct rt_pool *pool;
    struct call seeker;

    MT_REQUIRE(rt_pool_new(1, 2, &pool) == RT_OK);
    seek(pool, &seeker, home);
    call_home(home, &seeker);
    MT_EQ(seeker.job.err, RT_OK);
    MT_EQ(atomic_load(&seeker.runs), 0);
    end_pool(pool, home);
}

static void when_a_job_leaves(bool in_lane)
{
    struct gate gate = { 0, 0 }, second = { 0, 0 };
    struct call running, queued[2], seekers[3], extra;
    struct rt_lane *lane = NULL;
    struct rt_pool *pool;
    unsigned i;

    MT_REQUIRE(rt_pool_new(1, 2, &pool) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, false, &lane) == RT_OK);
    call_init(&running, home, wait_at_gate, &gate);
    MT_EQ(rt_pool_submit(pool, &running.job), RT_OK);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    for (i = 0; i < 2; i++) {
        call_init(&queued[i], home, wait_at_gate, &second);
        MT_EQ(in_lane ? rt_lane_submit(lane, &queued[i].job) : rt_pool_submit(pool, &queued[i].job),
              RT_OK);
    }
    for (i = 0; i < 3; i++)
        seek(pool, &seekers[i], home);
    call_init(&extra, home, NULL, NULL);
    MT_EQ(rt_pool_submit(pool, &extra.job), RT_EFULL); /* it leaves no room that there was not */
    MT_CHECK(call_next(home, 20) == NULL);
    atomic_store(&gate.open, 1);
    call_home(home, &running);
    for (i = 0; i < 3; i++)
        call_home(home, &seekers[i]);
    MT_EVENTUALLY(atomic_load(&second.waiting) == 1); /* one is in work, one is queued */
    MT_EQ(rt_pool_submit(pool, &extra.job), RT_OK);
    seek(pool, &seekers[0], home);
    MT_CHECK(!is_home(&seekers[0]));
    MT_CHECK(rt_job_cancel(&seekers[0].job)); /* it comes home all the same */
    atomic_store(&second.open, 1);
    for (i = 0; i < 2; i++)
        call_home(home, &queued[i]);
    call_home(home, &extra);
    call_home(home, &seekers[0]);
    rt_lane_release(lane);
    end_pool(pool, home);
}

/* What is queued when a pool ends leaves the queue too. */
static void when_the_pool_closes(void)
{
    struct gate gate = { 0, 0 };
    struct call running, queued, seeker, last;
    struct rt_pool *pool;

    MT_REQUIRE(rt_pool_new(1, 1, &pool) == RT_OK);
    call_init(&running, home, wait_at_gate, &gate);
    call_init(&queued, home, NULL, NULL);
    call_init(&last, home, NULL, NULL);
    MT_EQ(rt_pool_submit(pool, &running.job), RT_OK);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    MT_EQ(rt_pool_submit(pool, &queued.job), RT_OK);
    seek(pool, &seeker, home);
    MT_EQ(rt_pool_close(pool, 0, &last.job), RT_OK);
    MT_EQ(rt_pool_submit(pool, &seeker.job), RT_ECLOSED);
    MT_CHECK(!is_home(&seeker));
    atomic_store(&gate.open, 1);
    call_home(home, &seeker);
    call_home(home, &queued);
    MT_EQ(queued.job.err, RT_ECLOSED);
    call_home(home, &running);
    call_home(home, &last);
    seek(pool, &seeker, home); /* the queue is empty: whoever asks now is told so */
    call_home(home, &seeker);
    rt_pool_release(pool);
}

/* ---- many who want the little room there is ------------------------------------------ */

struct wanter {
    struct rt_pool *pool;
    struct rt_lane *lane; /* or NULL */
    unsigned total;
    uint64_t seed;
    _Atomic uint64_t refused;
};

/* Send one after the other, two under way, and after a refusal nothing but the seeker
 * may bring the next one: a lost word is a hang. */
static void *want(void *arg)
{
    struct wanter *w = arg;
    struct call calls[2], seeker;
    uint64_t rnd = w->seed;
    struct rt_mailbox *mb;
    unsigned sent;

    MT_REQUIRE(rt_mailbox_new(&mb) == RT_OK);
    for (sent = 0; sent < w->total;) {
        struct rt_joblist list;
        unsigned i, n = 1 + (unsigned)(mt_rand(&rnd) % 2);
        int err;

        rt_joblist_init(&list);
        for (i = 0; i < n; i++) {
            call_init(&calls[i], mb, NULL, NULL);
            rt_joblist_append(&list, &calls[i].job);
        }
        err = w->lane != NULL ? rt_lane_submit_all(w->lane, &list)
                              : rt_pool_submit_all(w->pool, &list);
        if (err == RT_EFULL) {
            rt_count(&w->refused, 1);
            seek(w->pool, &seeker, mb);
            if (!call_home(mb, &seeker))
                break;
            continue;
        }
        MT_REQUIRE(err == RT_OK);
        sent += n;
        for (i = 0; i < n; i++)
            call_home(mb, &calls[i]);
    }
    rt_mailbox_release(mb);
    return NULL;
}

static void crowd(unsigned workers, uint32_t queue, bool in_lane, uint64_t *rnd)
{
    enum { WANTERS = 4 };
    struct wanter wanters[WANTERS];
    pthread_t threads[WANTERS];
    uint64_t refused = 0;
    struct rt_pool *pool;
    unsigned i;

    MT_REQUIRE(rt_pool_new(workers, queue, &pool) == RT_OK);
    for (i = 0; i < WANTERS; i++) {
        wanters[i] = (struct wanter){ .pool = pool, .seed = mt_rand(rnd),
                                      .total = (unsigned)MT_SCALE(20000) };
        if (in_lane && i % 2 == 0)
            MT_REQUIRE(rt_lane_new(pool, false, &wanters[i].lane) == RT_OK);
        threads[i] = mt_spawn(want, &wanters[i]);
    }
    for (i = 0; i < WANTERS; i++) {
        mt_join(threads[i]);
        rt_lane_release(wanters[i].lane);
        refused += wanters[i].refused;
    }
    printf("%u workers, a queue of %u%s: refused %llu times\n", workers, queue,
           in_lane ? ", lanes" : "", (unsigned long long)refused);
    MT_EQ(atomic_load(&pool->depth), 0);
    end_pool(pool, home);
}

/* ---- what is refused takes no room ------------------------------------------------------ */

static atomic_bool enough;

/* Again and again more than there is room for: one place is taken for good. */
static void *ask_too_much(void *arg)
{
    struct rt_pool *pool = arg;
    struct call calls[4];
    struct rt_joblist list;
    unsigned i;

    while (!atomic_load(&enough)) {
        rt_joblist_init(&list);
        for (i = 0; i < 4; i++) {
            call_init(&calls[i], home, NULL, NULL);
            rt_joblist_append(&list, &calls[i].job);
        }
        if (rt_pool_submit_all(pool, &list) != RT_EFULL)
            MT_CHECK(!"four fitted into the room of three");
    }
    return NULL;
}

static void refusals_take_no_room(void)
{
    struct gate gate = { 0, 0 };
    struct call running, queued, small;
    struct rt_pool *pool;
    struct rt_lane *lane;
    pthread_t thread;
    unsigned i;

    MT_REQUIRE(rt_pool_new(2, 4, &pool) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, false, &lane) == RT_OK);
    call_init(&running, home, wait_at_gate, &gate);
    call_init(&queued, home, NULL, NULL);
    MT_EQ(rt_lane_submit(lane, &running.job), RT_OK);
    MT_EVENTUALLY(atomic_load(&gate.waiting) == 1);
    MT_EQ(rt_lane_submit(lane, &queued.job), RT_OK); /* it waits for the one before it */
    thread = mt_spawn(ask_too_much, pool);
    for (i = 0; i < MT_SCALE(20000); i++) {
        call_init(&small, home, NULL, NULL);
        if (!MT_CHECK(rt_pool_submit(pool, &small.job) == RT_OK))
            break;
        call_home(home, &small);
    }
    atomic_store(&enough, true);
    mt_join(thread);
    atomic_store(&gate.open, 1);
    call_home(home, &running);
    call_home(home, &queued);
    rt_lane_release(lane);
    end_pool(pool, home);
}

int main(void)
{
    uint64_t rnd = mt_seed();
    unsigned fds, workers;

    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    fds = mt_fds();
    at_once_where_there_is_room();
    when_a_job_leaves(false);
    when_a_job_leaves(true);
    when_the_pool_closes();
    refusals_take_no_room();
    for (workers = 1; workers <= 2; workers++) {
        crowd(workers, 2, false, &rnd);
        crowd(workers, 3, true, &rnd);
    }
    MT_EVENTUALLY(mt_threads() == 0);
    MT_FDS_CLOSED(fds);
    rt_mailbox_release(home);
    return mt_report("room");
}
