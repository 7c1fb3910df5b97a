/* A lock that nobody waits for.
 *
 * Who finds it taken leaves a note and goes; who holds it goes round once more
 * before it leaves, when there was a note.
 *
 *   enter: FREE -> BUSY, or BUSY -> AGAIN and go away
 *   leave: BUSY -> FREE, or AGAIN -> BUSY and one more round
 *
 * Used: publish (push onto a stack, set a flag), then enter; a holder looks at
 * everything published after it has entered and after each leave that fails.
 * Why it is right: both are read-modify-writes of one word, so either the one who
 * comes finds it free, or its holder finds the note. */
#ifndef RDS_OWNER_H
#define RDS_OWNER_H

#include "../runtime/rt_base.h"

enum { RDS_FREE = 0, RDS_BUSY = 1, RDS_AGAIN = 2 };

/* Try to hold it.  When false, the holder goes round once more.
 * Thread: any.  Blocks: no. */
static inline bool rds_owner_enter(_Atomic uint32_t *owner)
{
    uint32_t seen = RDS_FREE;

    for (;;) {
        /* Partner: rds_owner_leave() of the holder. */
        if (seen == RDS_FREE) {
            if (atomic_compare_exchange_weak(owner, &seen, RDS_BUSY))
                return true;
        } else if (atomic_compare_exchange_weak(owner, &seen, RDS_AGAIN)) {
            return false;
        }
    }
}

/* Let go.  False: somebody left a note, and it is still held. */
static inline bool rds_owner_leave(_Atomic uint32_t *owner)
{
    uint32_t busy = RDS_BUSY;

    /* Partner: rds_owner_enter() of whoever came meanwhile. */
    if (atomic_compare_exchange_strong(owner, &busy, RDS_FREE))
        return true;
    atomic_store(owner, RDS_BUSY);
    return false;
}

#endif
