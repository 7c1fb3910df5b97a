/* The baton: which workers may compete with the loops for the GIL.
 *
 * For: calls that compute.  They get no faster by several workers that want the GIL at
 * the same time, but a loop's thread, which wants it too, then has it only now and then:
 * whoever wants it waits for 5 ms before it makes another let go, and Python gives it to
 * any of those who wait.
 *
 * Two measures.  One worker at a time waits for the GIL; the others wait for their turn
 * to do so.  And while calls are of the kind that computes, a worker keeps the others out
 * from when it takes the GIL until it lets go of it: the baton.  A call that waits for
 * something outside would hold them up for nothing; so they wait for 5 ms at most, and
 * when they have, or when a call turns out to have waited rather than computed, nobody
 * waits for the baton any more until calls compute again.
 *
 * Correct: neither lock is waited for with the GIL held.  Whether a call computes is a
 * guess that costs time when it is wrong, and nothing else. */
#ifndef OFFLOOP_BATON_H
#define OFFLOOP_BATON_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct rt_worker;

struct core_baton {
    pthread_mutex_t door;  /* held by the worker that waits for the GIL */
    pthread_mutex_t lock;  /* of the following */
    pthread_cond_t passed;
    const struct rt_worker *bearer;
    unsigned computing;    /* stretches in a row that computed */
};

/* 0, or -1: the system has no more of such things. */
int core_baton_init(struct core_baton *baton);
void core_baton_fini(struct core_baton *baton);

/* Wait until the worker may compete, and then for the GIL, by calling
 * PyEval_RestoreThread(ts).  Thread: worker, without the GIL. */
struct _ts;
void core_baton_take(struct core_baton *baton, const struct rt_worker *worker, struct _ts *ts);

/* The worker has let go of the GIL. */
void core_baton_pass(struct core_baton *baton, const struct rt_worker *worker);

/* What a stretch of calls was like: ns that passed, and ns that the thread computed. */
void core_baton_learn(struct core_baton *baton, uint64_t passed, uint64_t computed);

#endif
