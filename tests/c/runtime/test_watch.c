/* Workers that look for the next call before they sleep: what comes meanwhile is found,
 * nothing else has to wait for them, and they stop where it does not pay. */
#include "hosted.h"
#include "lanes.h"

#include <sched.h>

static struct rt_mailbox *home;

static uint64_t polls_of(const struct rt_pool *pool, uint64_t *hits)
{
    uint64_t polls = 0;
    unsigned i;

    *hits = 0;
    for (i = 0; i < pool->worker_count; i++) {
        polls += rt_read(&pool->workers[i].stats.polls);
        *hits += rt_read(&pool->workers[i].stats.poll_hits);
    }
    return polls;
}

static bool two_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 1;
}

/* One call after another is found by looking, by way of a lane as well. */
static void found(unsigned workers, bool by_lane, bool pinned)
{
    struct rt_pool *pool = watching_pool(workers, 10 * RT_MS);
    struct rt_lane *lane = NULL;
    uint64_t hits = 0, until = rt_now() + 60 * RT_SEC;
    struct call call;

    if (by_lane)
        MT_REQUIRE(rt_lane_new(pool, pinned, &lane) == RT_OK);
    while (hits < 20 && rt_now() < until) {
        hosted_init(&call, home, NULL, NULL);
        MT_EQ(by_lane ? rt_lane_submit(lane, &call.job) : rt_pool_submit(pool, &call.job), RT_OK);
        call_home(home, &call);
        MT_CHECK(polls_of(pool, &hits) >= hits);
    }
    MT_CHECK(hits >= 20);
    rt_lane_release(lane);
    end_pool(pool, home);
}

/* A call that does nothing, there and back. */
static void call_once(struct rt_pool *pool)
{
    struct call call;

    hosted_init(&call, home, NULL, NULL);
    MT_EQ(rt_pool_submit(pool, &call.job), RT_OK);
    call_home(home, &call);
}

/* How often workers who watch for so long look, in so many calls. */
static uint64_t polls_in(unsigned calls, uint64_t limit)
{
    struct rt_pool *pool = watching_pool(2, limit);
    uint64_t polls, hits;

    while (calls-- > 0)
        call_once(pool);
    polls = polls_of(pool, &hits);
    end_pool(pool, home);
    return polls;
}

/* Where nothing follows within the time, it is left out most of the times. */
static void given_up(void)
{
    MT_CHECK(polls_in(400, 1) < 200);
    MT_EQ(polls_in(400, 0), 0);
}

/* The second of two calls that are made at once does not wait for the one that looked. */
static void several_at_once(void)
{
    struct rt_pool *pool = watching_pool(3, 5 * RT_MS);
    unsigned round, i;

    for (round = 0; round < (unsigned)MT_SCALE(300); round++) {
        struct gate gate = { 0, 0 };
        struct call calls[3];

        call_once(pool);
        for (i = 0; i < 3; i++) {
            hosted_init(&calls[i], home, wait_at_gate, &gate);
            MT_EQ(rt_pool_submit(pool, &calls[i].job), RT_OK);
        }
        MT_EVENTUALLY(atomic_load(&gate.waiting) == 3);
        atomic_store(&gate.open, 1);
        for (i = 0; i < 3; i++)
            call_home(home, &calls[i]);
    }
    end_pool(pool, home);
}

/* A pool that is closed while a worker looks ends at once. */
static void closed_meanwhile(void)
{
    unsigned round;

    for (round = 0; round < 100; round++) {
        struct rt_pool *pool = watching_pool(1 + round % 3, 3 * RT_MS);

        call_once(pool);
        end_pool(pool, home);
    }
}

/* On one CPU there is nobody who could make a call meanwhile. */
static void on_one_cpu(void)
{
    struct rt_pool *pool;
    cpu_set_t before, one;
    int cpu = 0;

    MT_REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
    while (!CPU_ISSET(cpu, &before))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    MT_REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    pool = watching_pool(2, RT_MS);
    MT_EQ(pool->busy_poll, 0);
    MT_REQUIRE(sched_setaffinity(0, sizeof before, &before) == 0);
    rt_pool_release(pool);
}

int main(void)
{
    mt_seed();
    MT_REQUIRE(rt_mailbox_new(&home) == RT_OK);
    on_one_cpu();
    if (two_cpus()) {
        found(1, false, false);
        found(3, false, false);
        found(3, true, false);
        found(3, true, true);
    }
    given_up();
    several_at_once();
    closed_meanwhile();
    MT_EVENTUALLY(mt_threads() == 0);
    rt_mailbox_release(home);
    return mt_report("watch");
}
