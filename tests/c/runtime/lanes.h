/* Lanes for tests: each remembers what it ran, and that it ran nothing at the same
 * time. */
#ifndef LANES_H
#define LANES_H

#include "calls.h"
#include "rt_lane.h"

struct track {
    struct rt_lane *lane;
    atomic_uint inside, run;
    atomic_ulong thread; /* of the last job */
    bool pinned;
};

/* A call of a lane: arg is the track, number its place in the lane's order. */
struct tracked {
    struct call call;
    unsigned number;
};

static inline void track_enter(struct track *track)
{
    unsigned long self = (unsigned long)pthread_self(), before;

    if (atomic_exchange(&track->inside, 1) != 0)
        MT_CHECK(!"two jobs of a lane at once");
    before = atomic_exchange(&track->thread, self);
    if (track->pinned && before != 0 && before != self)
        MT_CHECK(!"a pinned lane on two threads");
}

static inline void track_leave(struct track *track)
{
    atomic_fetch_add(&track->run, 1);
    if (atomic_exchange(&track->inside, 0) != 1)
        MT_CHECK(!"two jobs of a lane at once");
}

static inline void track_in_order(struct call *call, struct rt_worker *worker)
{
    struct track *track = call->arg;

    (void)worker;
    track_enter(track);
    if (RT_CONTAINER_OF(call, struct tracked, call)->number != atomic_load(&track->run))
        MT_CHECK(!"a lane's jobs out of order");
    track_leave(track);
}

static inline void track_init(struct track *track, struct rt_pool *pool, bool pinned)
{
    memset(track, 0, sizeof *track);
    track->pinned = pinned;
    MT_REQUIRE(rt_lane_new(pool, pinned, &track->lane) == RT_OK);
}

#endif
