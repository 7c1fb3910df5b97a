/* The table of a lessor's leases, for closing them all and for a forked child.
 *
 * Blocks are only ever added and freed with the table, so that a child, which has a
 * snapshot of some moment in its parent's threads, can go through it.  But for that,
 * it belongs to whoever holds the lessor. */
#ifndef RDS_SLOTS_H
#define RDS_SLOTS_H

#include "../runtime/rt_base.h"

#define RDS_SLOTS 64

struct rds_lease;

struct rds_slots {
    struct rds_lease *lease[RDS_SLOTS];
    unsigned used;
    struct rds_slots *_Atomic next;
};

void rds_slots_fini(struct rds_slots *slots);

/* A free place, to be filled or given back with rds_slots_clear(); NULL: no memory. */
struct rds_lease **rds_slots_take(struct rds_slots *slots);
void rds_slots_clear(struct rds_slots *slots, struct rds_lease **slot);

/* A lease of which `is` is true, or NULL. */
struct rds_lease *rds_slots_find(struct rds_slots *slots, bool (*is)(struct rds_lease *lease));

/* Call act for every lease. */
void rds_slots_for_each(struct rds_slots *slots, void (*act)(struct rds_lease *lease));

#endif
