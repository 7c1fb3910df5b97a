/* The poller: one epoll, the deadlines and the bell of a pool.
 *
 * A source is something a worker may have to look at: a connection, or anything
 * else with a descriptor, a deadline or a mailbox of its own work.  Exactly one
 * worker at a time, the leader, takes turns here; it handles what has come and
 * goes back to sleep.  Nobody else waits for descriptors, so ten thousand idle
 * connections cost an epoll entry each and no thread.
 *
 * A source is looked at because
 *   - its descriptor is ready (edge-triggered: the source remembers readiness
 *     itself, and a stale event is harmless, since it only means "try"),
 *   - somebody attended to it: rt_source_attend(), from any thread,
 *   - its deadline passed: rt_source_due(), from any thread.
 *
 * The bell is an eventfd in the same epoll.  It is written only while the
 * leader sleeps, and once a sleep:
 *
 *   any thread                      leader
 *   ----------                      ------
 *   1 publish (push, lower due)     1 sleep := ASLEEP
 *   2 if sleep is ASLEEP:           2 look at everything published
 *       CAS to RUNG, write          3 epoll_wait
 *
 * Why it is right: both first steps are seq_cst read-modify-writes followed by
 * the look, so at least one side sees the other (Dekker): either the leader
 * sees the work or the publisher sees ASLEEP.
 *
 * Deadlines are lower bounds.  `next_due` is never later than any source's
 * `due`; lowering is a compare and exchange by whoever has an earlier one, who
 * leaves the source in `lowered`, and raising happens when it has passed: then the
 * leader puts what is in `lowered` into a heap (rt_dues.h) and looks at its top.  So
 * a command with the usual timeout costs one comparison, and ten thousand sources
 * that are not due cost nothing. */
#ifndef RT_POLLER_H
#define RT_POLLER_H

#include <pthread.h>
#include <sys/epoll.h>

#include "rt_base.h"
#include "rt_dues.h"
#include "rt_err.h"
#include "rt_queue.h"

struct rt_worker;
struct rt_source;

/* Why a source is looked at; several may be set. */
enum rt_what {
    RT_ATTEND = 1,   /* somebody attended to it */
    RT_READABLE = 2, /* its descriptor can be read, or has closed */
    RT_WRITABLE = 4, /* its descriptor can be written */
    RT_DUE = 8,      /* its deadline passed */
    RT_CLOSING = 16, /* the pool closes: finish up and retire */
    RT_HANGUP = 32,  /* the peer closed, or the descriptor failed */
};

struct rt_poller {
    int epfd;
    int bellfd;
    _Atomic uint32_t sleep; /* AWAKE, ASLEEP, RUNG */
    _Atomic uint32_t ringers; /* threads about to write bellfd */
    _Atomic uint64_t next_due;
    _Atomic uint64_t own_due; /* the pool's deadline, which is no source's */
    struct rt_stack attention; /* sources to look at, each at most once */
    struct rt_stack retired;   /* sources to free at the next quiet moment */
    struct rt_stack lowered;   /* sources whose due was lowered */
    _Atomic uint64_t bells;    /* writes of bellfd */
    _Atomic uint64_t turns;    /* returns from epoll_wait */
    pthread_mutex_t lock;      /* of the list below; held for microseconds */
    struct rt_source *sources;
    struct rt_dues dues;       /* under the lock */
    bool closed;               /* under the lock: no source is taken any more */
    _Atomic uint32_t count;
};

struct rt_source {
    struct rt_node node;         /* in poller->attention */
    struct rt_node retired_node; /* in poller->retired */
    struct rt_node lowered_node; /* in poller->lowered */
    struct rt_source *prev, *next;
    struct rt_poller *poller;
    _Atomic uint32_t rung;       /* 1: in poller->attention, or about to be */
    _Atomic uint32_t what;       /* reasons kept for the next look */
    _Atomic uint64_t due;
    _Atomic uint32_t lowered;    /* 1: in poller->lowered, or about to be */
    uint64_t key;                /* in poller->dues; under its lock */
    uint32_t place;              /* there, from 1; 0: it is not in */
    /* Look at the source.  Called by the leader, or by a worker that passed the
     * lead on meanwhile.  It may call rt_worker_pass_lead() before anything
     * that takes long. */
    void (*handle)(struct rt_source *src, uint32_t what, struct rt_worker *worker);
    /* Free it: nobody can look at it any more. */
    void (*destroy)(struct rt_source *src);
};

int rt_poller_init(struct rt_poller *p);
void rt_poller_fini(struct rt_poller *p);

/* Close the descriptors, when no worker is left: what still refers to the pool
 * may live long.  Thread: the last worker. */
void rt_poller_shut(struct rt_poller *p);

/* Wake the leader if it sleeps.  Publish first.
 * Thread: any.  Blocks: no. */
void rt_poller_bell(struct rt_poller *p);

/* Have the leader look up once `when` has passed, for the pool's own sake.
 * Thread: any.  Blocks: no. */
void rt_poller_due(struct rt_poller *p, uint64_t when);

/* Take no more sources.  False when there are some still, and nothing is done.
 * Thread: any.  Blocks: for microseconds at most (a list). */
bool rt_poller_close(struct rt_poller *p);

/* Destroy what was retired.  Thread: the last worker, when all others ended. */
void rt_poller_free_retired(struct rt_poller *p);

/* Make src known to p.  0, RT_ENOMEM, or RT_ECLOSED after rt_poller_close().
 * Thread: any.  Blocks: for microseconds at most (a list). */
int rt_source_add(struct rt_poller *p, struct rt_source *src);

/* Forget src: from now on attending to it does nothing, and destroy is called at
 * the next quiet moment.  Its descriptors must be unwatched.
 * False when somebody has just attended to it: it will be looked at once more,
 * and that look is to try again.  On true nothing of src may be touched.
 * Thread: the worker that owns src. */
bool rt_source_retire(struct rt_source *src);

/* Have src looked at soon.  Any number of calls before the look are one.
 * Thread: any.  Blocks: no. */
void rt_source_attend(struct rt_source *src, uint32_t what);

/* Have src looked at once `when` has passed, if not before.
 * Thread: any.  Blocks: no. */
void rt_source_due(struct rt_source *src, uint64_t when);

/* Watch fd for reading, and for writing too where `write` is set.  Edge
 * triggered.  Thread: the worker that owns src.  0 or RT_ESYS. */
int rt_source_watch(struct rt_source *src, int fd, bool write, bool known);

/* Stop watching fd.  Before it is closed: a forked child may hold it open, and
 * then closing alone leaves it in the epoll, pointing to src.
 * Thread: the worker that owns src. */
void rt_source_unwatch(struct rt_source *src, int fd);

/* enum rt_what of a descriptor's epoll events. */
uint32_t rt_poller_what(uint32_t events);

/* One turn: handle what has come, sleep when nothing has, unless `stay_awake`
 * says that there is something else to do.
 * Thread: the leader.  GIL: not held.  Blocks: yes, in epoll. */
void rt_poller_turn(struct rt_poller *p, struct rt_worker *worker,
                    bool (*stay_awake)(struct rt_worker *worker));

/* Hand what this worker fetched and has not handled yet back to the poller.
 * Thread: the leader, before it passes the lead on. */
void rt_poller_put_back(struct rt_poller *p, struct rt_worker *worker);

#endif
