/* Lanes under load: many lanes, several submitters, cancels and deadlines at any
 * moment, shared and pinned, beside jobs of no lane.  Checked inside the jobs: never
 * two of a lane at once, and each submitter's in the order in which it sent them. */
#include "lanes.h"

#define SUBMITTERS 3
#define LANES 40
#define WINDOW 60

struct lane_state {
    struct track track;
    atomic_uint last[SUBMITTERS]; /* the number of each one's last job that ran */
};

struct storm {
    struct rt_pool *pool;
    struct lane_state *lanes;
    unsigned lane_count, window, total, index;
    uint64_t seed;
};

struct sent {
    struct call call;
    struct lane_state *lane; /* or NULL */
    unsigned submitter, number, pause;
    bool cancelled;
};

static void work(struct call *call, struct rt_worker *worker)
{
    struct sent *sent = RT_CONTAINER_OF(call, struct sent, call);
    unsigned spins = 0, i;

    (void)worker;
    if (sent->lane != NULL) {
        track_enter(&sent->lane->track);
        if (atomic_exchange(&sent->lane->last[sent->submitter], sent->number) >= sent->number)
            MT_CHECK(!"a lane's jobs out of order");
    }
    if (sent->pause == 1)
        mt_sleep_ms(1);
    else
        for (i = 0; i < sent->pause; i++)
            mt_relax(&spins);
    if (sent->lane != NULL)
        track_leave(&sent->lane->track);
}

static void send_one(struct storm *s, struct sent *sent, struct rt_mailbox *mb, unsigned number)
{
    unsigned which = (unsigned)(mt_rand(&s->seed) % (s->lane_count + (s->window > 2 ? 4 : 0)));
    int err;

    call_init(&sent->call, mb, work, NULL);
    sent->lane = which < s->lane_count ? &s->lanes[which] : NULL;
    if (sent->lane != NULL)
        sent->call.arg = &sent->lane->track;
    sent->submitter = s->index;
    sent->number = number;
    sent->pause = mt_rand(&s->seed) % 200 == 0 ? 1 : (unsigned)(mt_rand(&s->seed) % 100);
    if (s->window <= 2)
        sent->pause = 0; /* the lane runs dry all the time */
    sent->cancelled = false;
    if (mt_rand(&s->seed) % 16 == 0)
        sent->call.job.deadline = rt_now() + mt_rand(&s->seed) % (2 * RT_MS);
    if (sent->lane != NULL)
        err = rt_lane_submit(sent->lane->track.lane, &sent->call.job);
    else
        err = rt_pool_submit(s->pool, &sent->call.job);
    MT_REQUIRE(err == RT_OK);
    if (mt_rand(&s->seed) % 10 == 0)
        sent->cancelled = rt_job_cancel(&sent->call.job);
}

static void *storm(void *arg)
{
    struct storm *s = arg;
    struct sent *window = calloc(WINDOW, sizeof *window);
    unsigned number = 0, done = 0, i;
    struct rt_mailbox *mb;
    struct call *call;

    MT_REQUIRE(window != NULL && rt_mailbox_new(&mb) == RT_OK);
    for (i = 0; i < s->window && number < s->total; i++)
        send_one(s, &window[i], mb, ++number);
    while (done < s->total && (call = call_next(mb, 6 * MT_HANG_MS)) != NULL) {
        struct sent *sent = RT_CONTAINER_OF(call, struct sent, call);
        int err = call->job.err;

        done++;
        if (atomic_load(&call->runs) != (err == RT_OK))
            MT_CHECK(!"a job that ran says that it did not, or the other way round");
        if (err == RT_ECANCELLED && !sent->cancelled)
            MT_CHECK(!"a job was cancelled by nobody");
        if (err == RT_ETIMEOUT && call->job.deadline == RT_NEVER)
            MT_CHECK(!"a job without a deadline timed out");
        if (number < s->total)
            send_one(s, sent, mb, ++number);
    }
    MT_EQ(done, s->total);
    rt_mailbox_release(mb);
    free(window);
    return NULL;
}

static void run(unsigned workers, unsigned lane_count, unsigned window, uint64_t *rnd)
{
    struct lane_state *lanes = calloc(lane_count, sizeof *lanes);
    struct storm storms[SUBMITTERS];
    pthread_t threads[SUBMITTERS];
    struct rt_mailbox *home;
    struct rt_pool *pool;
    uint64_t ran = 0;
    unsigned i;

    MT_REQUIRE(lanes != NULL && rt_mailbox_new(&home) == RT_OK);
    MT_REQUIRE(rt_pool_new(workers, 4096, &pool) == RT_OK);
    for (i = 0; i < lane_count; i++)
        track_init(&lanes[i].track, pool, i % 3 == 0);
    for (i = 0; i < SUBMITTERS; i++) {
        storms[i] = (struct storm){ .pool = pool, .lanes = lanes, .lane_count = lane_count,
                                    .window = window,
                                    .total = (unsigned)MT_SCALE(15000), .index = i,
                                    .seed = mt_rand(rnd) };
        threads[i] = mt_spawn(storm, &storms[i]);
    }
    for (i = 0; i < SUBMITTERS; i++)
        mt_join(threads[i]);
    for (i = 0; i < lane_count; i++) {
        ran += atomic_load(&lanes[i].track.run);
        rt_lane_release(lanes[i].track.lane);
    }
    printf("%u workers, %u lanes, window %u: %llu jobs of lanes ran\n", workers, lane_count, window,
           (unsigned long long)ran);
    MT_EQ(atomic_load(&pool->depth), 0);
    end_pool(pool, home);
    rt_mailbox_release(home);
    free(lanes);
}

/* One job at a time, each sent at the very moment when the turn that ran the last one
 * ends: the look after `scheduled` was cleared is all that sees it. */
struct ping {
    struct call call;
    atomic_uint *ran;
};

static void ping(struct call *call, struct rt_worker *worker)
{
    (void)worker;
    atomic_fetch_add(RT_CONTAINER_OF(call, struct ping, call)->ran, 1);
}

static void closed_loop(bool pinned, uint64_t *rnd)
{
    unsigned total = (unsigned)MT_SCALE(60000), i, spins = 0, pause;
    struct ping *pings = calloc(total, sizeof *pings);
    struct rt_mailbox *home;
    struct rt_pool *pool;
    struct rt_lane *lane;
    atomic_uint ran = 0;
    uint64_t give_up;

    MT_REQUIRE(pings != NULL && rt_mailbox_new(&home) == RT_OK);
    MT_REQUIRE(rt_pool_new(2, 4096, &pool) == RT_OK);
    MT_REQUIRE(rt_lane_new(pool, pinned, &lane) == RT_OK);
    for (i = 0; i < total; i++) {
        call_init(&pings[i].call, home, ping, NULL);
        pings[i].ran = &ran;
        MT_REQUIRE(rt_lane_submit(lane, &pings[i].call.job) == RT_OK);
        give_up = rt_now() + MT_HANG_MS * RT_MS;
        while (atomic_load(&ran) == i) {
            mt_relax(&spins);
            if (spins % 1024 == 0 && rt_now() > give_up)
                MT_REQUIRE(!"a lane forgot a job");
        }
        for (pause = (unsigned)(mt_rand(rnd) % 128); pause > 0; pause--)
            MT_PAUSE();
    }
    for (i = 0; i < total; i++)
        call_home(home, &pings[i].call);
    rt_lane_release(lane);
    end_pool(pool, home);
    rt_mailbox_release(home);
    free(pings);
}

int main(void)
{
    uint64_t rnd = mt_seed();

    run(1, LANES, WINDOW, &rnd);
    run(2, 1, WINDOW, &rnd);
    run(3, LANES, WINDOW, &rnd);
    run(4, 2000, WINDOW, &rnd);
    run(2, 2, 1, &rnd);
    run(3, 1, 2, &rnd);
    closed_loop(false, &rnd);
    closed_loop(true, &rnd);
    MT_EVENTUALLY(mt_threads() == 0);
    return mt_report("stress lane");
}
